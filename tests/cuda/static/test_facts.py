"""Facts of compiled kernels: what warps do, against the emulation of all threads, which reads CUDA C++ and not PTX."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.cuda_funcs import COLUMNS, ROWS, SHARED_BYTES, needs_compiler, row_sums
from tests.schedules.cuda_kernels import BAND, FLASH, GATHER, TARGET, kernel_of, scheduled
from tvm_na.cuda import late, toolchain
from tvm_na.cuda.lowering import lowered
from tvm_na.cuda.static.facts import facts_of
from tvm_na.cuda.static.ptx import functions_of
from tvm_na.cuda.static.walk import walk
from tvm_na.problems.attention import NAProblem

pytestmark = needs_compiler
#: Small ones, with borders; the first is emulated by other tests too.
CASES = {
    "band": (NAProblem.make((14, 14), 7, 2, 32, dtype="float16", bias=True, return_lse=True), BAND),
    "flash": (NAProblem.make((4, 9, 20), (3, 5, 7), 2, 32, dtype="float16"), FLASH),
    "gather": (NAProblem.make((9, 10), 5, 2, 16, dtype="float32", bias=True), GATHER),
}


@pytest.mark.parametrize("name", CASES)
def test_warps_do_what_they_do_in_the_emulation(name: str) -> None:
    problem, space = CASES[name]
    point, batch = scheduled(problem, space=space), 2
    kernel, code = kernel_of(problem, point), lowered(late.written(point.schedule.mod), TARGET)
    arguments = {a.name: torch.zeros(a.shape_for(batch), dtype=getattr(torch, a.dtype)) for a in problem.arguments()}
    (counts,) = kernel.launch(arguments, batch)
    (text,) = functions_of(toolchain.find_compiler().parts(code.source, TARGET.arch)[1].decode()).values()
    launch = code.launch(text.name, batch)
    assert launch.threads == kernel.launches[0].block
    walked = walk(text, launch.threads, launch.blocks, range(launch.blocks), batch)
    met = dict.fromkeys(("mma.", "ldmatrix.", "shfl."), 0)
    barriers = 0
    for block, often in zip(text.blocks, walked.executed, strict=True):
        for instruction in block.instructions:
            for op in met:
                met[op] += instruction.op.startswith(op) * int(often.sum())
            barriers += instruction.op.startswith(("bar.sync", "barrier.sync")) * int(often.sum())
    assert met == {"mma.": counts.mma, "ldmatrix.": counts.ldmatrix, "shfl.": counts.shuffles}
    warps = len(walked.wavefronts) // launch.blocks
    assert barriers == counts.barriers * warps
    assert (walked.copied.sum() > 0) == (counts.copies > 0) == (space != GATHER)
    # Of the logarithm's argument; by the sign of the scale, and whether a maximum has grown.
    assert walked.guessed == {BAND: 2, FLASH: 2, GATHER: 0}[space]


def test_facts_of_a_small_function() -> None:
    """The sums of four rows, a warp each."""
    (found,) = facts_of(row_sums(), TARGET, NAProblem.make((9, 10), 5, 2, 16), 7)
    assert (found.blocks, found.threads, found.warps, found.shared_bytes) == (7, 128, 4, SHARED_BYTES)
    assert found.cached == ROWS * COLUMNS * 4 + 32  # x and the scale
    assert found.spill_bytes == found.products == found.copies == 0 and found.busiest == 1
    assert found.written == ROWS * 32
    assert found.at_once == 16 and found.executed > 20
