"""The page: that it is whole in itself, and what it does in a real browser."""

from __future__ import annotations

import re

import pytest
import torch

from tests.serve.browser import browser, find_browser
from tests.serve.serving import CLASSES, attention, color_classifier, color_logits, picture, served
from tvm_na.serve.app import PAGE


def test_the_page_is_served_and_may_load_nothing_else():
    with served() as server:
        response = server.http.get("/")
        assert response.text == PAGE.read_text(encoding="utf-8")
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert not re.search(r"https?:|src=|@import|url\(|<link", response.text)


def test_what_the_script_asks_for_exists():
    text = PAGE.read_text(encoding="utf-8")
    gets, posts = re.findall(r'fetch\("(/\w+)"\)', text), re.findall(r'post\("(/\w+)"', text)
    assert (gets, posts) == (["/info"], ["/classify", "/overlay"])
    with served() as server:
        paths = server.http.get("/openapi.json").json()["paths"]
        assert {(path, "get") for path in gets} | {(path, "post") for path in posts} <= {
            (path, method) for path, methods in paths.items() for method in methods
        }
        info, answer = server.http.get("/info").json(), server.classify(picture(1)).json()
    assert set(re.findall(r"\binfo\.(\w+)", text)) <= set(info)
    assert set(re.findall(r"\banswer\.(\w+)", text)) <= set(answer)
    assert set(re.findall(r"\bfound\.(\w+)", text)) <= set(answer["predictions"][0])
    assert set(re.findall(r'\b(?:at|show)\("(\w+)"', text)) <= set(re.findall(r'\bid="(\w+)"', text))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    executable = find_browser()
    if executable is None:
        pytest.skip("needs chromium on PATH, there is none")
    with browser(executable, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def image(tmp_path):
    (tmp_path / "image.png").write_bytes(picture(200, size=(64, 48)))
    return tmp_path / "image.png"


ROWS = "[...document.querySelectorAll('#classes tr')].map((row) => row.innerText)"
SHOWN = "!document.getElementById('{}').hidden"


def test_an_image_that_is_dropped_is_classified(page, image):
    asked = []
    labels = tuple(f"<i>color {i}</i>" for i in range(CLASSES))
    classifier = color_classifier(labels=labels, attention=lambda x, p: asked.append(p) or attention(x, p))
    with served(classifier) as server:
        page.do("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        page.wait_for("document.title === 'tvm-na' && info !== null")
        assert page.evaluate("document.getElementById('title').textContent") == "colors"
        page.drop("#drop", image)
        page.wait_for(SHOWN.format("overlay") + " && document.getElementById('overlay').naturalWidth")
        rows = page.evaluate(ROWS)
        best = color_logits(torch.full((1, 3, 8, 8), 200 / 255)).softmax(-1).max()
        assert len(rows) == 5
        assert rows[0].split("\t") == ["<i>color 200</i>", "", f"{best:.2%}"]
        assert page.evaluate("document.getElementById('overlay').naturalWidth") == 4 * 8 + 3 * 4
        assert page.evaluate("document.getElementById('seen').naturalWidth") == 64
        point = page.center("#seen")
        page.click(point["x"] + 100, point["y"] - 100)  # 256 pixels wide for 8 of the model's
        page.wait_for("document.getElementById('state').textContent === ''")
        for _ in range(100):
            if len(asked) == 2:
                break
            page.evaluate("new Promise((done) => setTimeout(done, 20))")
        assert asked == [(4, 4), (0, 7)]
        assert server.outcomes() == {"ok": 1}
    assert page.errors == []


def test_an_image_that_is_chosen_without_overlays(page, image):
    with served() as server:
        page.do("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        page.wait_for("document.title === 'tvm-na' && info !== null")
        page.choose("#file", image)
        page.wait_for(SHOWN.format("result"))
        assert page.evaluate(ROWS)[0].startswith("class 200\t")
        assert "No attention overlay: it only knows colors" in page.evaluate("document.body.innerText")
        assert not page.evaluate(SHOWN.format("overlay"))
    assert page.errors == []


def test_what_goes_wrong_is_said(page, image, tmp_path):
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    (tmp_path / "large.png").write_bytes(bytes(20_000))
    with served(max_request_mb=0.01) as server:
        page.do("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        page.wait_for("document.title === 'tvm-na' && info !== null")
        for name, message in (("text.png", "image: required JPEG, PNG"), ("large.png", "required at most 10000 bytes")):
            page.drop("#drop", tmp_path / name)
            page.wait_for(f"document.getElementById('state').textContent.includes({message!r})")
            assert not page.evaluate(SHOWN.format("result"))
        page.drop("#drop", image)
        page.wait_for(SHOWN.format("result"))
        assert server.outcomes() == {"invalid": 1, "ok": 1}
    page.errors.clear()  # Chromium logs every answer that is an error
