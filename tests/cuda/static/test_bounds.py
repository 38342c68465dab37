"""Times of a made-up kernel by hand, what a multiprocessor has room for, and rates that are told by their names."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tvm_na.cuda.static.bounds import BOUNDS, estimate, estimate_all
from tvm_na.cuda.static.facts import Facts, busiest, sample_of
from tvm_na.targets.gpus import GPUS, MULTIPROCESSORS, blocks_at_once, gpu_of, like, together, waits
from tvm_na.targets.target import list_targets, parse_target

A100, H100, H200 = GPUS
FACTS = Facts(
    name="k",
    arch="sm_90",
    registers=128,
    spill_bytes=0,
    stack_bytes=0,
    shared_bytes=60_000,
    threads=200,
    blocks=1320,
    at_once=2,
    language="SASS",
    code=600,
    instructions={"HMMA": 64, "FFMA": 536},
    loops=((100, 1.0), (500, 4.0)),
    products=64.0,
    matrices=32.0,
    copies=14.0,
    busiest=1.0,
    special=40.0,
    float32=256.0,
    float64=0.0,
    wavefronts=300.0,
    cached=0.0,
    uncached=40_000.0,
    written=8_000.0,
    tensors=67_000_000,
    guessed=0,
)


def test_bounds_are_those_of_the_busiest_multiprocessor() -> None:
    found = estimate(FACTS, H200)
    warps = 10 * 7  # of ten blocks, each of 200 threads
    wanted = {
        "issue": warps * 2100 / 4,
        "tensor": warps * 64 * 1.6,
        "float": warps * 32 * 256 / 128,
        "special": warps * 32 * 40 / 16,
        "shared": warps * 300,
        "L2": 1320 * 48_000 / 132 / 24,
    }
    assert list(found.bounds) == list(BOUNDS)
    for name, cycles in wanted.items():
        assert found.bounds[name] == pytest.approx(cycles / 1.83e9), name
    assert found.bounds["memory"] == pytest.approx(67e6 / 4.8e12)
    assert found.largest == "issue" and found.gpu == "H200"
    assert found.seconds == pytest.approx(together(list(found.bounds.values())))
    assert max(found.bounds.values()) < found.seconds < sum(found.bounds.values())
    one_more = estimate(dataclasses.replace(FACTS, blocks=1321), H200)
    assert one_more.bounds["issue"] == pytest.approx(1.1 * found.bounds["issue"])


def test_few_warps_wait_longer() -> None:
    few = estimate(dataclasses.replace(FACTS, at_once=1, threads=64), H100)
    assert few.seconds == pytest.approx(together(list(few.bounds.values())) * (1 + 6 / 16))
    assert [waits(n) for n in (0, 4, 8, 64)] == [1.5, 1.25, 1, 1]


def test_functions_come_one_after_the_other() -> None:
    one, both = estimate(FACTS, H200), estimate_all([FACTS, FACTS], H200)
    assert both.seconds == pytest.approx(2 * one.seconds)
    assert both.bounds == {name: pytest.approx(2 * one.bounds[name]) for name in BOUNDS}


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gpu: required one of sm_90, got A100 \(sm_80\)"):
        estimate(FACTS, A100)
    with pytest.raises(ValueError, match="facts: required a kernel of which a multiprocessor can have a block, got k"):
        estimate(dataclasses.replace(FACTS, at_once=0), H200)


def test_facts_come_back_from_json() -> None:
    assert Facts.of_dict(json.loads(json.dumps(FACTS.to_dict()))) == FACTS
    with pytest.raises(TypeError, match="more"):
        Facts.of_dict({**FACTS.to_dict(), "more": 1})


@pytest.mark.parametrize(
    ("arch", "warps", "registers", "shared", "wanted"),
    [
        ("sm_90", 7, 119, 67328, 2),  # registers: 4 warps of each scheduler
        ("sm_90", 4, 255, 113152, 2),
        ("sm_90", 8, 244, 121856, 1),
        ("sm_90", 1, 16, 0, 32),
        ("sm_90", 32, 64, 0, 1),
        ("sm_80", 4, 32, 163 * 1024, 1),
        ("sm_86", 4, 32, 0, 12),
        ("sm_75", 4, 32, 32 * 1024, 2),
        ("sm_90", 8, 255, 228 * 1024, 0),
        ("sm_90", 16, 170, 0, 0),
    ],
)
def test_blocks_on_a_multiprocessor(arch: str, warps: int, registers: int, shared: int, wanted: int) -> None:
    assert blocks_at_once(arch, warps, registers, shared) == wanted


def test_gpus_are_found_by_target_and_name() -> None:
    sm_90 = parse_target("cuda-sm_90")
    assert gpu_of(sm_90) is H100 and gpu_of(sm_90, "h200") is H200 and like(sm_90) is H100
    assert gpu_of(parse_target("cuda-sm_80")) is A100 is like(parse_target("cuda-sm_120"))
    for target, name in (("cuda-sm_90", "A100"), ("cuda-sm_75", None), ("cuda-sm_90", "B300")):
        with pytest.raises(ValueError, match=r"gpu: required one of A100 \(sm_80\), .* got"):
            gpu_of(parse_target(target), name)
    archs = {parse_target(name).arch for name in list_targets() if name.startswith("cuda")}
    assert set(MULTIPROCESSORS) == archs and {gpu.arch for gpu in GPUS} < archs


def test_products_of_the_table_are_those_of_data_sheets() -> None:
    """Of an A100 312 TFLOPS; of an H100 62 % of 989."""
    for gpu, wanted in ((A100, 312e12), (H100, 0.62 * 989e12)):
        flops = 2 * 16 * 8 * 16 / gpu.product * gpu.multiprocessors * gpu.clock
        assert flops == pytest.approx(wanted, rel=0.02)


def test_samples_and_copies() -> None:
    import numpy as np

    assert sample_of(2, 1024) == [0, 1] and len(sample_of(3000, 256)) == 2
    some = sample_of(3584, 32)
    assert len(some) == 5 and min(some) >= 0 and max(some) < 3584
    assert len({block % 28 for block in some}) > 2
    assert busiest(np.array([4, 4, 4, 4]), 2) == busiest(np.zeros(4, int), 2) == 1
    assert busiest(np.array([8, 0, 0, 0, 8, 0, 0, 0]), 4) == 4
