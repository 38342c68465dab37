"""Products of pairs of bfloat16: right where nothing has them, there where a CPU has them, nowhere else.

On this machine the instruction is two products and two sums of float32 (``definitions`` of ``te/common/dots.py``);
everything around it is what other CPUs get. ``test_cpu_dots_emulated.py`` runs the instruction itself.
"""

from __future__ import annotations

import functools
import pickle
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import edges
from tests.conftest import TOLERANCE
from tests.helpers import random_inputs, reference64, share
from tests.jit.compiling import compile_all
from tests.schedules.test_cpu import CORNERS, assembly_for, drawn, errors, run
from tests.te.expressions import assert_local
from tvm_na.problems.attention import NAProblem
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cpu import attention as cpu
from tvm_na.targets.target import detect_target, list_targets, parse_target
from tvm_na.te.attention import dots
from tvm_na.te.attention.lanes_tile import DotsTile, LanesTile
from tvm_na.te.common.dots import definitions
from tvm_na.tune.builder import source_of

LIMIT = TOLERANCE["bfloat16"]
WITH_DOTS = {name: parse_target(name).dot for name in list_targets() if parse_target(name).dot}
SMALL = NAProblem.make((9, 9), 5, 2, 32, dtype="bfloat16", bias=True)


def module_of(problem: NAProblem, tile: DotsTile | None = None, plan: Plan | None = None) -> Any:
    target = detect_target()
    tile = tile or cpu.tiles(problem, target, DotsTile)[0]
    scheduled = cpu.SPACE.apply(dots.forward(problem, tile), target, plan or Plan())
    assert scheduled is not None
    return scheduled.schedule.mod


def kernel_of(problem: NAProblem, tile: DotsTile | None = None) -> Any:
    return compile_all([module_of(problem, tile)])[0]


@pytest.mark.parametrize("block", range(share(12)))
def test_random_problems_agree_with_the_reference(block: int) -> None:
    """At drawn points of tiles of the first and the last rank."""
    rng = random.Random(block)
    problems = [drawn(4 * block + k).with_dtype("bfloat16") for k in range(4)]
    modules = []
    for k, problem in enumerate(problems):
        every = cpu.tiles(problem, detect_target(), DotsTile)
        tile = replace(rng.choice([every[0], every[-1], rng.choice(every)]), exact_values=bool(k % 3))
        sketch = rng.choice(cpu.SPACE.sketches(dots.forward(problem, tile), detect_target()))
        modules.append(module_of(problem, tile, Plan(sketch, sample=True, seed=4 * block + k + 1)))
    for k, (problem, kernel) in enumerate(zip(problems, compile_all(modules), strict=True)):
        found = errors(problem, kernel, batch=1 + k % 2, seed=k)
        assert all(e <= LIMIT for e in found), (str(problem), found)


@pytest.mark.parametrize("name", CORNERS)
def test_corners_agree_with_the_reference(name: str) -> None:
    problem = CORNERS[name].with_dtype("bfloat16")
    found = errors(problem, kernel_of(problem), batch=2, seed=0)
    assert all(e <= LIMIT for e in found), found


def test_scores_are_sums_of_float32_and_weights_sum_to_one() -> None:
    """Ones attended to give ones, to bfloat16's last bit; the log-sum-exp is far more exact than bfloat16."""
    problem = NAProblem.make((8, 20), 7, 1, 64, dtype="bfloat16", return_lse=True)
    query, key, value, _ = random_inputs(problem, 1, 0)
    out, lse = run(problem, kernel_of(problem), (query, key, torch.ones_like(value), None), 1.0)
    _, wanted = reference64(problem, (query, key, value, None), 1.0)
    assert torch.equal(out, torch.ones_like(out))
    assert lse is not None and wanted is not None
    assert (lse - wanted).abs().max() <= 2e-3


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize(("kernel_size", "causal"), [(3, False), (4, False), (3, True), (4, True)])
def test_a_value_outside_of_the_window_stays_outside(kernel_size: int, causal: bool, poison: float) -> None:
    """Of an odd window a pair reaches beyond it."""
    problem = NAProblem.make((6, 13), kernel_size, 1, 8, is_causal=causal, dtype="bfloat16")
    kernel = kernel_of(problem)
    assert_local(problem, lambda inputs: run(problem, kernel, inputs, 0.3), poison, step=7)


@functools.lru_cache(maxsize=2)
def _at_edges(size: str) -> tuple[NAProblem, Any]:
    """A problem, and what calls its kernel with tensors by name."""
    problem = edges.problem_of(size, "bfloat16")
    kernel = kernel_of(problem)

    def called(tensors: edges.Tensors, scale: float) -> edges.Tensors:
        inputs = (tensors["query"], tensors["key"], tensors["value"], tensors["rpb"])
        out, lse = run(problem, kernel, inputs, scale)
        assert lse is not None
        return {"out": out, "lse": lse}

    return problem, called


@pytest.mark.parametrize("edge", edges.EDGES)
@pytest.mark.parametrize("size", edges.SIZES)
def test_finite_answers_at_the_edge(size: str, edge: str) -> None:
    problem, called = _at_edges(size)
    edges.assert_edge(problem, edge, called, lse_dtype="bfloat16")


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("size", edges.SIZES)
def test_how_far_a_bad_number_reaches(size: str, poison: float) -> None:
    problem, called = _at_edges(size)
    for name in ("query", "key", "value", "rpb"):
        edges.assert_reach(problem, name, poison, called)


@pytest.mark.parametrize("name", WITH_DOTS)
def test_the_default_has_the_instruction_in_both_products(name: str) -> None:
    assert DotsTile.of(cpu.SPACE.formulations(SMALL, parse_target(name))[0]) is not None
    code = assembly_for(SMALL, parse_target(name))
    register = {"vdpbf16ps": "%[yz]mm", "bfdot": r"v\d+\.8h"}[WITH_DOTS[name]]
    loops = [part for part in code.split(".LBB") if len(re.findall(rf"{WITH_DOTS[name]}\s.*{register}", part)) >= 8]
    assert len(loops) >= 2
    assert not any(re.search(r"\b(callq?|bl|vfn?madd\w*|fmla)\s", part) for part in loops)


def test_without_the_instruction_there_are_none() -> None:
    """And none for other dtypes."""
    assert not parse_target("llvm-x86-avx512").dot and set(WITH_DOTS.values()) == {"vdpbf16ps", "bfdot"}
    for problem, name in [(SMALL, "llvm-x86-avx512"), (SMALL, "llvm-aarch64-neon")] + [
        (SMALL.with_dtype(dtype), "llvm-x86-avx512-bf16") for dtype in ("float16", "float32")
    ]:
        assert all(LanesTile.of(func) for func in cpu.SPACE.formulations(problem, parse_target(name)))
    with pytest.raises(ValueError, match="problem: required one in bfloat16, got .*float32"):
        dots.forward(SMALL.with_dtype("float32"), DotsTile(2, 8))


@pytest.mark.parametrize(("instruction", "lanes"), [("vdpbf16ps", {4, 8, 16}), ("bfdot", {2, 4}), ("", set())])
def test_lanes_that_no_instruction_has_are_products_of_float32(instruction: str, lanes: set[int]) -> None:
    for n in (1, 2, 4, 5, 8, 16):
        text = definitions([n, n], instruction)
        assert text.count("define") == 1
        assert ("fmul" in text) == (n not in lanes) == ("llvm." not in text)


@pytest.mark.slow
def test_a_process_that_made_no_such_kernel_compiles_one(tmp_path: Path) -> None:
    """As workers of the tuner do: the operator is known where a module is read."""
    (tmp_path / "source.pickle").write_bytes(pickle.dumps(source_of(module_of(SMALL))))
    program = (
        "import pickle, sys; from tvm_na.targets.target import detect_target; from tvm_na.tune import builder; "
        "source = pickle.load(open(sys.argv[1], 'rb')); "
        "print(builder.compile_source(source, detect_target(), sys.argv[2]))"
    )
    files = [str(tmp_path / name) for name in ("source.pickle", "kernel.so")]
    done = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "None" and Path(files[1]).stat().st_size, done.stdout
