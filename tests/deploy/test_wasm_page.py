"""The page of an artifact of the format ``wasm``: its parts, its script in node, and all of it in a browser."""

from __future__ import annotations

import functools
import http.server
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.deploy import node as in_node
from tests.deploy.artifacts import CLASSES, SIZE, Made, wasm_artifact
from tests.serve.browser import browser, find_browser
from tvm_na.deploy.wasm.build import WEB

_LOCAL = re.compile(r'(?:from |import\(|src=|new URL\()"\./([\w.]+)"')


@pytest.fixture(scope="module")
def wasm(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An artifact of the format ``wasm``."""
    pytest.importorskip("ziglang", reason="test_wasm_page links with ziglang: pip install 'tvm_na[wasm]'")
    pytest.importorskip("wasmtime", reason="test_wasm_page runs in wasmtime: pip install 'tvm_na[wasm]'")
    return wasm_artifact(tmp_path_factory)


def test_the_page_needs_nothing_but_its_folder() -> None:
    files = {file.name: file.read_text(encoding="utf-8") for file in WEB.iterdir()}
    for name, text in files.items():
        assert not re.search(r"https?://|@import|url\(|<link|eval\(", text), name
        assert {*_LOCAL.findall(text)} <= {*files}, name
    assert "page.mjs" in _LOCAL.findall(files["index.html"]) and "tvm_na.mjs" in _LOCAL.findall(files["page.mjs"])


def test_what_the_script_asks_for_exists() -> None:
    ids = set(re.findall(r'\bid="(\w+)"', (WEB / "index.html").read_text(encoding="utf-8")))
    assert set(re.findall(r'\bat\("(\w+)"\)', (WEB / "page.mjs").read_text(encoding="utf-8"))) <= ids


def test_an_image_in_node(wasm: Made) -> None:
    """With a pretended document: five classes, a map for the size of map that there is, and one more for a click."""
    in_node.require("test_an_image_in_node")
    script = Path(__file__).with_name("page_in_node.mjs")
    done = subprocess.run(["node", script, wasm.path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["title"] == "small_for_tests" and "llvm-wasm32" in said["about"] and said["random"]
    assert re.fullmatch(r"\d+ ms", said["state"]) and said["again"] and "Click on the image" in said["explained"]
    probabilities = [row[1] for row in said["rows"]]
    assert len(probabilities) == 5 and sorted(probabilities, reverse=True) == probabilities
    assert all(re.fullmatch(rf"class [0-{CLASSES - 1}]", row[0]) for row in said["rows"])
    assert said["drawn"] == [(SIZE // 4) ** 2]
    assert said["pixels"][3] == said["pixels"][7] == 255 and any(said["pixels"][:3])


@contextmanager
def served(folder: Path, isolated: bool) -> Iterator[str]:
    """The address of a folder on a static file server."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            if isolated:
                self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("isolated", [False, True])
def test_an_image_in_a_browser(wasm: Made, tmp_path: Path, isolated: bool) -> None:
    executable = find_browser()
    if executable is None:
        pytest.skip("test_an_image_in_a_browser needs chromium on PATH, there is none")
    Image.effect_noise((64, 48), 60).convert("RGB").save(tmp_path / "image.png")
    with browser(executable, tmp_path / "profile") as page, served(wasm.path, isolated) as address:
        page.do("Page.navigate", url=address)
        page.wait_for("document.getElementById('progress').hidden")
        assert page.evaluate("crossOriginIsolated") == isolated
        assert isolated or "1 thread" in page.evaluate("document.getElementById('about').textContent")
        page.drop("#drop", tmp_path / "image.png")
        page.wait_for("document.querySelectorAll('#maps canvas').length === 1")
        assert page.evaluate("document.querySelectorAll('#classes tr').length") == 5
        page.evaluate("document.getElementById('maps').replaceChildren()")
        point = page.center("#seen")
        page.click(point["x"] + 90, point["y"] - 90)
        page.wait_for("document.querySelectorAll('#maps canvas').length === 1")
        assert not page.errors
