"""Schedules in words."""

from __future__ import annotations

import json

import pytest

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.unfused import KINDS, UnfusedProblem
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Choice, Plan
from tvm_na.schedules.describe import _DECISIONS, _STRUCTURES, formulation_in_words, in_words
from tvm_na.targets.target import parse_target

LANES = json.dumps({"formulation": "lanes", "queries": 2, "vector": 8, "exact_values": False, "pack_values": True})


def choices(**values: int) -> list[Choice]:
    return [Choice(name.replace("_", " "), (value,), value) for name, value in values.items()]


def test_every_part_has_its_phrase() -> None:
    made = choices(rows_per_task=14, heads_per_task=1, tiles_at_once=28, score_queries_at_once=2, score_rows_at_once=4)
    made += choices(softmax_rows_at_once=7, value_queries_at_once=2, value_vectors_at_once=4)
    assert in_words(LANES, "pack in task, value rows outside", made).split("; ") == [
        "a tile of 2 queries in one row, vectors of 8 lanes, values of the whole box, values packed",
        "keys and values packed inside of each task",
        "a block of tiles meets one row of values after the other",
        "tasks of 14 rows x 1 head",
        "28 tiles at once",
        "scores in blocks of 2 queries x 4 rows",
        "softmax over 7 rows at once",
        "sums of values in blocks of 2 queries x 4 vectors",
    ]


def test_what_has_no_phrase_is_told_by_name() -> None:
    said = in_words('{"formulation": "ring", "rows": 2, "swizzle": false}', "ring", choices(stages=3, tiles_at_once=1))
    assert said == "ring, rows 2, no swizzle; ring; 1 tile at once; stages 3"


def test_a_field_more_or_less_is_no_error() -> None:
    more, less = json.loads(LANES), json.loads(LANES)
    more["prefetch"] = True
    del less["pack_values"]
    assert formulation_in_words(json.dumps(more)).endswith("values packed, prefetch")
    assert formulation_in_words(json.dumps(less)) == "lanes, queries 2, vector 8, no exact values"


@pytest.mark.parametrize("text", ["", "3", "not JSON"])
def test_a_formulation_is_a_json_object(text: str) -> None:
    with pytest.raises(ValueError, match="formulation_json: required a JSON object"):
        in_words(text, "pack first", [])


@pytest.mark.parametrize("lse", [False, True])
def test_the_cpu_space_is_told_completely(lse: bool) -> None:
    problem, target = NAProblem.make((9, 9), 3, 2, 8, return_lse=lse), parse_target("llvm-x86-avx2")
    (space,) = spaces_for(problem, target)
    known = {name for _, counted in _DECISIONS for name in counted}
    for func in space.formulations(problem, target, 1)[:1]:
        for name in space.structures(func, target):
            scheduled = space.apply(func, target, Plan(name))
            assert scheduled is not None
            assert {choice.name for choice in scheduled.choices} <= known
            assert set(scheduled.structure.split(", ")) <= _STRUCTURES.keys()
            said = in_words(str(func.attrs["tvm_na.formulation"]), scheduled.structure, scheduled.choices)
            assert said.startswith("a tile of ") and "{}" not in said


def test_the_tensor_core_space_is_told_completely() -> None:
    problem, target = NAProblem.make((16, 16), 7, 2, 32, dtype="float16"), parse_target("cuda-sm_90")
    space = spaces_for(problem, target)[0]
    known = {name for _, counted in _DECISIONS for name in counted}
    said = []
    for func in space.formulations(problem, target, 1):
        for name in space.structures(func, target):
            scheduled = space.apply(func, target, Plan(name))
            assert scheduled is not None and scheduled.structure in _STRUCTURES
            assert {choice.name for choice in scheduled.choices} <= known
            said.append(in_words(str(func.attrs["tvm_na.formulation"]), scheduled.structure, scheduled.choices))
    assert said[0].startswith("sub-tiles of 2 x 8 queries on tensor cores, scores kept; a warp for each sub-tile")
    assert "scores computed twice" in said[-1] and said[-1].endswith("of the band at once")


def test_the_cuda_space_is_told_completely() -> None:
    problem, target = NAProblem.make((9, 9), 3, 2, 8), parse_target("cuda-sm_90")
    (space,) = spaces_for(problem, target)
    known = {name for _, counted in _DECISIONS for name in counted}
    said = []
    for func in space.formulations(problem, target, 1):
        scheduled = space.apply(func, target, Plan())
        assert scheduled is not None
        assert {choice.name for choice in scheduled.choices} <= known
        said.append(in_words(str(func.attrs["tvm_na.formulation"]), scheduled.structure, scheduled.choices))
    assert said[0].startswith(
        "each query reads its own window, products in 4 parts, scores kept; keys and values through"
    )
    assert "scores computed twice, their sums in 4 lanes" in said[-1]
    assert all("{}" not in words for words in said)


@pytest.mark.parametrize("bias", [False, True])
def test_the_cuda_space_of_gradients_is_told_completely(bias: bool) -> None:
    problem, target = BackwardProblem.make((30, 30), 21, 2, 16, bias=bias), parse_target("cuda-sm_90")
    (space,) = spaces_for(problem, target)
    known = {name for _, counted in _DECISIONS for name in counted}
    for func in space.formulations(problem, target, 1):
        scheduled = space.apply(func, target, Plan())
        assert scheduled is not None and scheduled.structure in _STRUCTURES
        assert {choice.name for choice in scheduled.choices} <= known
        said = in_words(str(func.attrs["tvm_na.formulation"]), scheduled.structure, scheduled.choices)
        assert said.startswith("each query reads its own window, each key its queries, ") and "{}" not in said


def test_the_unfused_cuda_space_is_told_completely() -> None:
    target, said = parse_target("cuda-sm_90"), {}
    known = {name for _, counted in _DECISIONS for name in counted}
    for kind in KINDS:
        problem = UnfusedProblem.make(kind, (9, 9), 3, 2, 32)
        for space in spaces_for(problem, target):
            func = space.formulations(problem, target, 1)[0]
            scheduled = space.apply(func, target, Plan())
            assert scheduled is not None and scheduled.structure in _STRUCTURES
            assert {choice.name for choice in scheduled.choices} <= known
            said[kind] = in_words(str(func.attrs["tvm_na.formulation"]), scheduled.structure, scheduled.choices)
    assert said["qk"].startswith("each window read by itself, products in 8 parts; keys and values through the first")
    assert said["qk"].endswith("9 keys at once; products unrolled up to 64 steps; outputs unrolled up to 64 steps")
    assert said["av_transposed"].startswith("each window read by itself, 4 channels of a thread; ")
    assert "32 indices of the bias at once" in said["bias_parts"]
    assert said.keys() == set(KINDS) - {"bias_sums"}
