"""Artifacts of the format ``wasm``: in wasmtime, and by their own JavaScript in node."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tvm_na
from tests.cli.invoking import error_of, invoke
from tests.deploy import node as in_node
from tests.deploy.artifacts import CLASSES, LIMIT, SIZE, Made, seal, small_model, wasm_artifact
from tests.deploy.node import node, numbers
from tests.helpers import relative_error
from tvm_na.deploy import int8, manifest
from tvm_na.deploy.wasm import build
from tvm_na.deploy.wasm import plan as plans
from tvm_na.deploy.wasm.artifact import WasmArtifact
from tvm_na.deploy.weights import map_weights, write_weights
from tvm_na.images.preprocessing import Preprocessing
from tvm_na.models import attention_maps
from tvm_na.models.preprocessing import preprocess

pytest.importorskip("ziglang", reason="test_wasm_artifact links with ziglang: pip install 'tvm_na[wasm]'")
pytest.importorskip("wasmtime", reason="test_wasm_artifact runs in wasmtime: pip install 'tvm_na[wasm]'")


@pytest.fixture(scope="module")
def wasm(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An artifact of the format ``wasm``, of a model of one level."""
    return wasm_artifact(tmp_path_factory)


@pytest.fixture
def copy(wasm: Made, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(wasm.path, tmp_path / "copy.artifact"))


def images(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(batch))


def right(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return small_model(levels=1)(x)


# --- here, in wasmtime


def test_it_gives_what_the_model_gives_for_any_batch(wasm) -> None:
    artifact = tvm_na.load(wasm.path)
    assert isinstance(artifact, WasmArtifact)
    for batch in (1, 3, 1, 2):
        x = images(batch)
        out = artifact(x)
        assert isinstance(out, torch.Tensor) and relative_error(out, right(x)) <= LIMIT / 10
        array = artifact(x.numpy())
        assert isinstance(array, np.ndarray) and np.array_equal(array, out.numpy())
    assert artifact.manifest.check["relative_error"] <= LIMIT / 10


def test_what_it_refuses_here(wasm) -> None:
    artifact = tvm_na.load(wasm.path)
    for wrong, error in ((images().double(), TypeError), (images()[0], ValueError), ("x", TypeError)):
        with pytest.raises(error, match="images: required "):
            artifact(wrong)


def test_memory_that_cannot_grow_is_an_error_here(wasm) -> None:
    found = manifest.read_manifest(wasm.path)
    small = WasmArtifact(wasm.path, found, most_pages=40)
    with pytest.raises(RuntimeError, match=r"memory: required \d+ bytes more than the \d+ that there are, got none"):
        small(images(400))
    assert relative_error(small(images()), right(images())) <= LIMIT / 10


def test_files_of_it(wasm) -> None:
    found, plan = manifest.read_manifest(wasm.path), json.loads((wasm.path / manifest.PLAN).read_text())
    assert (found.kind, found.target["name"], found.requires) == ("wasm", "llvm-wasm32", {})
    assert {*found.files} >= {"tvm_na.mjs", "tvm_na.d.ts", "index.html", "package.json", manifest.SHARED_MODULE}
    assert found.files[manifest.MODULE]["bytes"] < 500_000
    weights = map_weights(wasm.path / manifest.WEIGHTS)
    assert {t["weight"] for t in plan["tensors"] if "weight" in t} == {*weights} == {*found.code["weights"]}
    assert len(plan["attentions"]) == 1 and plan["attentions"][0]["spatial"] == [SIZE // 4, SIZE // 4]


def drawn_plan(rng: random.Random) -> plans.Plan:
    """Calls of random tensors that are there, some by other names, and new ones; unplaced."""
    plan = plans.Plan([plans.Tensor([None, 8], "float32", 0), plans.Tensor([8], "float32", 1, "weight")])
    for _ in range(20):
        given = [rng.randrange(len(plan.tensors)) for _ in range(rng.randint(1, 3))]
        made = []
        for _ in range(rng.randint(1, 2)):
            made.append(len(plan.tensors))
            plan.tensors.append(plans.Tensor([None, rng.randint(1, 300)], "float32", made[-1]))
        plan.calls.append(("kernel", [*given, *made]))
        alias = rng.randrange(len(plan.tensors))
        plan.tensors.append(plans.Tensor(plan.tensors[alias].shape, "float32", plan.tensors[alias].buffer))
    plan.outputs = [len(plan.tensors) - 1, made[0]]
    return plan


@pytest.mark.parametrize("seed", range(10))
def test_tensors_that_are_needed_at_once_do_not_overlap(seed: int) -> None:
    plan = drawn_plan(random.Random(seed))
    plans._place_in_arena(plan)
    uses: dict[int, list[int]] = {}
    for number, (_, tensors) in enumerate([*plan.calls, ("", plan.outputs)]):
        for t in tensors:
            uses.setdefault(plan.tensors[t].buffer, []).append(number)
    assert plan.tensors[0].offset is None and plan.tensors[1].offset is None
    placed = [(t, plan.tensors[t], uses[t]) for t in uses if t > 1]
    for one, a, of_a in placed:
        assert a.offset % 64 == 0 and a.offset + a.bytes <= plan.arena
        for other, b, of_b in placed:
            if one < other and of_a[0] <= of_b[-1] and of_b[0] <= of_a[-1]:
                assert a.offset + a.bytes <= b.offset or b.offset + b.bytes <= a.offset
    assert plan.arena < sum(a.bytes for _, a, _ in placed)  # memory is used again


def test_without_wasmtime_it_is_refused(wasm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest.machine, "is_there", lambda: False)
    with pytest.raises(ValueError, match=r"required the package wasmtime \(pip install 'tvm_na\[wasm\]'\), got none"):
        tvm_na.load(wasm.path)


def test_commands_take_it(wasm, photo: Path) -> None:
    said = invoke("check", wasm.path).stdout
    assert all(part in said for part in ("llvm-wasm32", "finite", "a browser or node"))
    assert f"class {CLASSES - 1}" in invoke("run", wasm.path, photo, "--top", CLASSES).stdout
    assert "call, median" in invoke("bench", "artifact", wasm.path, "--rounds", 2).stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "wasm", "--target", "llvm-x86-sse4"], "target: required llvm-wasm32 or llvm-wasm32-relaxed"),
        (["--format", "tvm", "--target", "llvm-wasm32"], "target: required one of another CPU with the format tvm"),
        (["--format", "tvm", "--weights-dtype", "float16"], "weights_dtype: required None or int8 with the format tvm"),
        (
            ["--format", "wasm", "--precision", "bfloat16"],
            "precision: required float32 or float64 with the format wasm",
        ),
        (["--format", "wasm", "--precision", "float64", "--weights-dtype", "float16"], "weights_dtype: required None"),
        (["--format", "wasm", "--runtime", "x"], "runtime: required the format tvm with it"),
    ],
)
def test_what_is_not_made(options: list[str], says: str, tmp_path: Path) -> None:
    model = ["compile", "nat_pico", "--input-size", 32, "-o", tmp_path / "x"]
    assert says in error_of(*model, *options)
    assert not list(tmp_path.iterdir())


# --- float16 in the file


def test_weights_that_fit_are_stored_in_two_bytes() -> None:
    fits, fits_not = np.float32([1, -2.5, 0, 65504]), np.float32([1, 1 / 3])
    assert build._narrow(fits).dtype == np.float16 and build._narrow(fits_not) is fits_not
    assert build._narrow(np.float32([70000])).dtype == np.float32
    model = small_model()
    rounded = int8.rounded(model, "float16")
    assert all(build._narrow(m.weight.numpy()).dtype == np.float16 for m in rounded.modules() if int8._is_product(m))
    model.get_parameter("head.weight").data[0, 0] = 1e5
    with pytest.raises(ValueError, match="weights_dtype: required weights of at most 65504 with float16, got 1e"):
        int8.rounded(model, "float16")


def halved(folder: Path) -> None:
    """Let a file have all its weights in float16."""
    weights = {name: array.astype(np.float16) for name, array in map_weights(folder / manifest.WEIGHTS).items()}
    write_weights(folder / manifest.WEIGHTS, weights)
    seal(folder)


# --- in node


def test_node_gives_what_the_model_gives(wasm) -> None:
    in_node.require("test_node_gives_what_the_model_gives")
    code = """
        const found = [], [images] = given;
        for (const threads of [1, 2, "auto"]) {
            const progress = [], model = await na.load(folder, { threads, onProgress: (p) => progress.push(p) });
            for (const batch of [1, 3, 1]) found.push(model.run(Float32Array.from(images[batch])));
            const end = progress.at(-1);
            if (end.loaded !== end.total) throw new Error("progress");
            if (threads !== "auto" && model.threads !== threads) throw new Error("threads");
            model.close();
        }
        return found;
    """
    given = {batch: images(batch).flatten().tolist() for batch in (1, 3)}
    found = node(wasm.path, code, given)
    assert len(found) == 9
    for out, batch in zip(found, [1, 3, 1] * 3, strict=True):
        assert relative_error(torch.from_numpy(numbers(out)), right(images(batch))) <= LIMIT / 10


def test_node_reads_float16(copy: Path) -> None:
    in_node.require("test_node_reads_float16")
    halved(copy)
    x = images()
    found = node(copy, "return (await na.load(base)).run(Float32Array.from(given[0]))", x.flatten().tolist())
    assert relative_error(torch.from_numpy(numbers(found)), tvm_na.load(copy)(x)) <= LIMIT / 10
    assert relative_error(torch.from_numpy(numbers(found)), right(x)) > LIMIT  # it was rounded


def test_node_widens_every_float16(wasm) -> None:
    in_node.require("test_node_widens_every_float16")
    code = """
        const { widen } = await import(base + "weights.mjs"), out = new Uint32Array(65536);
        widen(new Uint8Array(Uint16Array.from(out, (_, n) => n).buffer), out);
        return out;
    """
    right = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    found = np.array(node(wasm.path, code), np.uint32).view(np.float32)
    assert np.array_equal(found, right, equal_nan=True) and np.array_equal(np.signbit(found), np.signbit(right))


def test_node_tells_what_a_pixel_attends_to(wasm) -> None:
    in_node.require("test_node_tells_what_a_pixel_attends_to")
    pixels = [(0, 0), (SIZE - 1, 5), (13, 20)]
    code = """
        const model = await na.load(folder, { threads: 1 }), image = Float32Array.from(given[0]);
        return given[1].map(([row, column]) => model.attention(image, { row, column }));
    """
    x = images()
    found = node(wasm.path, code, x.flatten().tolist(), pixels)
    for pixel, maps in zip(pixels, found, strict=True):
        wanted = attention_maps(small_model(levels=1), x, pixel)
        assert [(m["height"], m["width"]) for m in maps] == [tuple(w.shape) for w in wanted]
        for one, other in zip(maps, wanted, strict=True):
            assert np.abs(np.array(one["weights"]) - other.flatten().numpy()).max() <= 1e-5


def test_neighbors_in_javascript(wasm) -> None:
    """The windows of the reference: any kernel, stride, dilation, causal or not."""
    in_node.require("test_neighbors_in_javascript")
    from tvm_na.reference.attention import axis_neighbors

    axes = [(11, 3, 1, 1, False), (11, 3, 2, 2, False), (12, 5, 3, 2, True), (9, 4, 4, 1, False), (10, 3, 1, 3, True)]
    code = """
        const { neighbors } = await import(base + "attention.mjs");
        return given[0].map(([n, ...window]) => Array.from({ length: n }, (_, i) => neighbors(i, n, ...window)));
    """
    for axis, found in zip(axes, node(wasm.path, code, axes), strict=True):
        positions, relative, exists = (table.tolist() for table in axis_neighbors(*axis))
        wanted = [
            [[p, r] for p, r, e in zip(*row, strict=True) if e] for row in zip(positions, relative, exists, strict=True)
        ]
        assert found == wanted, axis


def test_pixels_are_those_of_pillow(wasm, tmp_path: Path) -> None:
    in_node.require("test_pixels_are_those_of_pillow")
    rng = np.random.default_rng(0)
    for (width, height), how in [
        ((80, 61), "bicubic"),
        ((33, 120), "bilinear"),
        ((20, 19), "bicubic"),
        ((36, 36), "bicubic"),
    ]:
        preprocessing = Preprocessing(input_size=SIZE, interpolation=how)
        pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        code = """
            const { readFileSync } = await import("node:fs"), [file, width, height, preprocessing] = given;
            return na.pixelsOf({ data: new Uint8Array(readFileSync(file)), width, height }, preprocessing);
        """
        (tmp_path / "pixels").write_bytes(pixels.tobytes())
        found = node(wasm.path, code, str(tmp_path / "pixels"), width, height, dataclasses.asdict(preprocessing))
        wanted = preprocess(Image.fromarray(pixels[..., :3]), preprocessing).flatten().numpy()
        assert np.abs(np.array(found) - wanted).max() <= 1e-6


def test_digests_without_the_browser_s_own(wasm) -> None:
    in_node.require("test_digests_without_the_browser_s_own")
    lengths = [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000]
    code = """
        const { digest } = await import(base + "sha256.mjs"), byte = (_, i) => (7 * i) % 256;
        return given[0].map((length) => digest(Uint8Array.from({ length }, byte)));
    """
    for length, found in zip(lengths, node(wasm.path, code, lengths), strict=True):
        assert bytes(found) == hashlib.sha256(bytes(7 * i % 256 for i in range(length))).digest(), length


_TOLD = """
    const told = async (call) => {
        try { await call(); return ["", "nothing"]; } catch (error) { return [error.name, error.message]; }
    };
"""


def test_bad_input_in_javascript(wasm) -> None:
    in_node.require("test_bad_input_in_javascript")
    sample = 3 * SIZE * SIZE
    calls = {
        'model.run("x")': ("TypeError", 'images: required a Float32Array, got "x"'),
        "model.run([1, 2])": ("TypeError", "images: required a Float32Array, got Array"),
        f"model.run(new Float64Array({sample}))": ("TypeError", "images: required a Float32Array, got Float64Array"),
        "model.run(new Float32Array(7))": ("RangeError", f"images: required a multiple of {sample} numbers"),
        "model.run(new Float32Array(0))": ("RangeError", f"images: required a multiple of {sample} numbers"),
        f"model.attention(new Float32Array({2 * sample}), middle)": (
            "RangeError",
            f"images: required {sample} numbers",
        ),
        "model.attention(image, 3)": ("TypeError", "pixel: required {row, column}, got 3"),
        "model.attention(image, { row: 0, column: 32 })": (
            "RangeError",
            f"pixel: required a row and column inside of {SIZE}",
        ),
        "model.attention(image, { row: 0.5, column: 1 })": ("RangeError", "pixel: required a row and column"),
        "na.load(7)": ("TypeError", "source: required a URL or a path, got 7"),
        'na.load(folder + "/none")': ("Error", "manifest.json: required a file in file:"),
        "na.load(folder, 3)": ("TypeError", "options: required an object, got 3"),
        'na.load(folder, { threads: "two" })': ("TypeError", 'threads: required an integer or "auto", got "two"'),
        "na.load(folder, { threads: 0 })": ("RangeError", "threads: required 1 to 64, got 0"),
        "na.load(folder, { onProgress: 1 })": ("TypeError", "onProgress: required a function, got 1"),
        "na.load(folder, { maximumBytes: 9 })": ("RangeError", "maximumBytes: required an integer >= "),
        "na.pixelsOf(3, {})": ("TypeError", "image: required {data, width, height} with bytes as data, got 3"),
        "na.pixelsOf({ data: new Uint8Array(5), width: 1, height: 1 }, {})": ("RangeError", "image: required 4 bytes"),
    }
    code = f"""
        {_TOLD} const model = await na.load(folder, {{ threads: 1 }}), middle = {{ row: 3, column: 3 }};
        const image = new Float32Array({sample}), found = {{}};
        for (const call of given[0]) found[call] = await told(() => eval(call));
        found.after = await told(() => {{ model.run(image); }});
        model.close();
        found.closed = await told(() => model.run(image));
        return found;
    """
    found = node(wasm.path, code, list(calls))
    for call, (name, message) in calls.items():
        assert found[call][0] == name and found[call][1].startswith(message), (call, found[call])
    assert found["after"] == ["", "nothing"]
    assert found["closed"] == ["Error", "model: required one that is not closed, got a closed one"]


def test_memory_that_cannot_grow_is_an_error_in_javascript(wasm) -> None:
    in_node.require("test_memory_that_cannot_grow_is_an_error_in_javascript")
    code = f"""
        {_TOLD} const found = [];
        for (const threads of [1, 2]) {{
            const model = await na.load(folder, {{ threads, maximumBytes: 60 * 65536 }});
            found.push(await told(() => model.run(new Float32Array(given[0]))));
            model.run(new Float32Array(given[0] / 400));
            model.close();
        }}
        return found;
    """
    for name, message in node(wasm.path, code, 400 * 3 * SIZE * SIZE):
        assert name == "Error" and message.startswith("memory: required "), message


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a weight": (lambda p: flip(p / manifest.WEIGHTS), "weights.safetensors: required the SHA-256 "),
    "the plan": (lambda p: flip(p / manifest.PLAN), "plan.json: required the SHA-256 "),
    "the module": (lambda p: flip(p / manifest.MODULE), "model.wasm: required the SHA-256 "),
    "half of the weights": (lambda p: cut(p / manifest.WEIGHTS), "weights.safetensors: required "),
    "no weights": (lambda p: (p / manifest.WEIGHTS).unlink(), "weights.safetensors: required a file in "),
    "no JSON": (lambda p: (p / "manifest.json").write_text("{"), "manifest.json: required JSON, got a damaged file"),
    "another format": (lambda p: (p / "manifest.json").write_text("{}"), "manifest.json: required the format tvm_na"),
    "an older plan": (lambda p: replan(p, version=0), "plan.json: required the format tvm_na plan 1, got "),
    "a function that is not there": (
        lambda p: replan(p, functions=["none"] * 99),
        "model.wasm: required the function none",
    ),
    "other weights": (lambda p: write_weights(p / manifest.WEIGHTS, {}) or seal(p), "weights.safetensors: required a "),
}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def replan(folder: Path, **changes: Any) -> None:
    file = folder / manifest.PLAN
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    seal(folder)


def test_damage_is_refused_in_javascript(wasm: Made, tmp_path: Path) -> None:
    in_node.require("test_damage_is_refused_in_javascript")
    for name, (damage, _) in DAMAGE.items():
        damage(Path(shutil.copytree(wasm.path, tmp_path / name)))
    code = f"{_TOLD} return Promise.all(given[0].map((p) => told(() => na.load(p, {{ threads: 1 }}))));"
    found = node(wasm.path, code, [str(tmp_path / name) for name in DAMAGE])
    for (name, message), (what, (_, says)) in zip(found, DAMAGE.items(), strict=True):
        assert name == "Error" and message.startswith(says), (what, message)


def test_damage_is_refused_here(copy: Path) -> None:
    flip(copy / manifest.PLAN)
    with pytest.raises(ValueError, match="plan.json: required the SHA-256"):
        tvm_na.load(copy)


def test_npm_packs_it(wasm, tmp_path: Path) -> None:
    in_node.require("test_npm_packs_it")
    if shutil.which("npm") is None:
        pytest.skip("test_npm_packs_it needs npm")
    words = ["npm", "pack", "--offline", "--json", "--ignore-scripts", "--pack-destination", str(tmp_path)]
    said = subprocess.run(words, cwd=wasm.path, capture_output=True, text=True, check=True).stdout
    (packed,) = json.loads(said)
    assert {file["path"] for file in packed["files"]} == {*manifest.read_manifest(wasm.path).files, "manifest.json"}
    unpacked = tmp_path / "node_modules" / "tvm-na-artifact"
    unpacked.mkdir(parents=True)
    subprocess.run(["tar", "xf", packed["filename"], "-C", unpacked, "--strip-components=1"], cwd=tmp_path, check=True)
    script = 'import { load } from "tvm-na-artifact"; console.log((await load()).manifest.kind);'
    words = ["node", "--input-type=module", "-e", script]
    assert subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "wasm\n"
