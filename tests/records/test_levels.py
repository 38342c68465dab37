"""A record of one level of an instruction set helps another: transferred by name, with vectors that this one has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tvm_na.problems.attention import NAProblem
from tvm_na.records import index, rejections, select
from tvm_na.records.compact import write_compact
from tvm_na.records.record import Record
from tvm_na.records.rejections import InapplicableError
from tvm_na.records.replay import replayed, transferred
from tvm_na.records.write import structural_hash
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan
from tvm_na.targets.target import list_targets, other_levels, parse_target

SSE4, AVX2, AVX512 = map(parse_target, ("llvm-x86-sse4", "llvm-x86-avx2", "llvm-x86-avx512"))
NEON, NEON_BF16 = map(parse_target, ("llvm-aarch64-neon", "llvm-aarch64-neon-bf16"))
AVX512_BF16, AMX = map(parse_target, ("llvm-x86-avx512-bf16", "llvm-x86-amx-bf16"))
PROBLEM = NAProblem.make((14, 14), 7, 4, 32, bias=True)
CLOSE, FURTHER = NAProblem.make((14, 14), 7, 4, 32), NAProblem.make((14, 14), 7, 4, 64, bias=True)


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tmp_path / "user"))
    monkeypatch.setattr(select, "shipped_folder", lambda name: tmp_path / "shipped" / name)
    for owner, name in ((index, "_loaded"), (rejections, "_rejected")):
        monkeypatch.setattr(owner, name, {})


def record_of(problem: NAProblem, target: Any, number: int = 0, seconds: float = 1e-3) -> Record:
    """The default point of a formulation, but for its first parameter, as if it had been measured."""
    space = spaces_for(problem, target)[0]
    func = space.formulations(problem, target)[number]
    scheduled = space.apply(func, target, Plan("pack in task"))
    assert scheduled is not None
    values = {**scheduled.values, "rows per task": 7}
    about = (str(func.attrs["tvm_na.formulation"]), "1", target.name, 2, (seconds,), Path(), 0)
    return Record(problem, *about, sketch="pack in task", parameters=tuple(values.items()), kernel="0" * 16)


def recorded(folder: Path, *records: Record) -> None:
    for name in {record.target for record in records}:
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_compact(folder / name, [record for record in records if record.target == name])


def chosen(target: Any, problem: NAProblem = PROBLEM, mode: str = "all") -> str:
    """The target and the problem of the record that is chosen, "" for the default."""
    found = select.select(problem, target, 2, mode)
    if found.record is None:
        return ""
    assert ("from " in found.reason) == (found.record.target != target.name)
    return f"{found.kind} {found.record.target} {'same' if found.record.problem == problem else 'other'}"


def test_levels_are_those_of_one_instruction_set() -> None:
    assert {level.name for level in other_levels(AVX2)} == {level.name for level in (SSE4, AVX512, AVX512_BF16, AMX)}
    assert other_levels(NEON) == [NEON_BF16] and not other_levels(parse_target("cuda-sm_90"))
    assert all(target not in other_levels(target) for target in map(parse_target, list_targets()))


def test_where_a_target_has_none_others_help(tmp_path: Path) -> None:
    recorded(tmp_path / "shipped", record_of(PROBLEM, AVX2))
    assert chosen(AVX512) == chosen(SSE4) == "nearest llvm-x86-avx2 same"
    assert chosen(AVX512, CLOSE) == "nearest llvm-x86-avx2 other"
    assert chosen(NEON) == chosen(AVX512, mode="user") == chosen(AVX512, mode="off") == ""
    reason = select.select(PROBLEM, AVX512, 2, "all").reason
    assert reason == "from llvm-x86-avx2, no usable record for this problem; distance 1"
    recorded(tmp_path / "user", record_of(PROBLEM, SSE4))  # shorter vectors, too
    assert chosen(AVX512) == "nearest llvm-x86-avx2 same"
    recorded(tmp_path / "user", record_of(PROBLEM, AVX512))
    assert chosen(AVX2) == "record llvm-x86-avx2 same" and chosen(SSE4) == "record llvm-x86-sse4 same"


@pytest.mark.parametrize(
    ("recorded_for", "target"), [(AVX512, AVX512_BF16), (AVX512, AMX), (AVX512_BF16, AVX512), (NEON, NEON_BF16)]
)
def test_where_kernels_are_the_same_records_are_taken_as_they_are(
    tmp_path: Path, recorded_for: Any, target: Any
) -> None:
    """Those of the target itself come first."""
    record = record_of(PROBLEM, recorded_for)
    recorded(tmp_path / "shipped", record)
    assert chosen(target) == f"record {recorded_for.name} same"
    assert chosen(target, CLOSE) == f"nearest {recorded_for.name} other"
    func, wanted = (replayed(record, PROBLEM, level)["main"] for level in (target, recorded_for))
    assert structural_hash(func) == structural_hash(wanted)
    recorded(tmp_path / "shipped", record_of(PROBLEM, target, seconds=2e-3))
    assert chosen(target) == f"record {target.name} same"
    recorded(tmp_path / "user", record)
    assert chosen(target) == f"record {recorded_for.name} same"


def test_records_without_dot_products_do_not_keep_a_target_from_its_own(tmp_path: Path) -> None:
    """Of another level or dtype; one with them serves where they are the same instruction."""
    half = PROBLEM.with_dtype("bfloat16")
    recorded(tmp_path / "shipped", record_of(PROBLEM, AVX512_BF16), record_of(half, AVX512))
    assert chosen(AVX512_BF16, half) == chosen(AMX, half) == ""
    assert chosen(AVX512, half) == "record llvm-x86-avx512 same"
    record = record_of(half, AVX512_BF16)
    recorded(tmp_path / "shipped", record)
    assert '"dots"' in record.formulation
    assert chosen(AMX, half) == "record llvm-x86-avx512-bf16 same"
    with pytest.raises(InapplicableError, match="has no formulation .*dots"):
        transferred(record, half, AVX512)


@pytest.mark.parametrize(
    ("own", "target", "wanted"),
    [
        (PROBLEM, AVX512, "record llvm-x86-avx512 same"),
        (CLOSE, AVX512, "nearest llvm-x86-avx512 other"),  # a distance of 0.5
        (FURTHER, AVX512, "nearest llvm-x86-avx2 same"),  # a distance of 4
        (CLOSE, SSE4, "nearest llvm-x86-sse4 other"),
        (FURTHER, SSE4, "nearest llvm-x86-avx2 same"),
    ],
)
def test_the_same_problem_elsewhere_is_nearer_than_a_distant_one_here(
    tmp_path: Path, own: NAProblem, target: Any, wanted: str
) -> None:
    recorded(tmp_path / "shipped", record_of(PROBLEM, AVX2), record_of(own, target))
    assert chosen(target) == wanted


@pytest.mark.parametrize("target", [SSE4, AVX2, AVX512], ids=lambda target: target.name)
@pytest.mark.parametrize("source", [SSE4, AVX2, AVX512], ids=lambda target: target.name)
def test_the_vectors_are_those_that_the_target_has(source: Any, target: Any) -> None:
    """Of the record's length where there are such, else the nearest; the rest by name."""
    record = record_of(PROBLEM, source)
    func = transferred(record, PROBLEM, target)["main"]
    wanted, found = json.loads(record.formulation), json.loads(str(func.attrs["tvm_na.formulation"]))
    offered = {
        json.loads(str(f.attrs["tvm_na.formulation"]))["vector"]
        for f in spaces_for(PROBLEM, target)[0].formulations(PROBLEM, target)
    }
    assert found["vector"] == min(offered, key=lambda vector: abs(vector.bit_length() - wanted["vector"].bit_length()))
    assert (found["formulation"], found["exact_values"]) == (wanted["formulation"], wanted["exact_values"])


def test_what_the_target_has_in_no_form_is_refused() -> None:
    record = record_of(PROBLEM, AVX2)
    changes = {'{"formulation": "gone"}': "has no formulation", "[": "Error", "7": "Error"}
    changes['{"formulation": "lanes", "vector": "8"}'] = "TypeError"
    for formulation, says in changes.items():
        with pytest.raises(InapplicableError, match=says):
            transferred(replace(record, formulation=formulation), PROBLEM, AVX512)


def test_that_another_levels_record_does_not_apply_is_nothing_to_warn_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorded(tmp_path / "shipped", replace(record_of(PROBLEM, AVX2), formulation='{"formulation": "gone"}'))
    selection = select.select(PROBLEM, AVX512, 2, "all")
    assert selection.record is not None
    select.reject(selection, PROBLEM, AVX512, InapplicableError("gone", "formulation"))
    assert chosen(AVX512) == "" and not caplog.messages


def test_on_cpus_a_record_of_another_dtype_helps_halves(tmp_path: Path) -> None:
    """Of the other half rather than of float32, of the problem's own rather than either; float64 has its own alone."""
    of_dtype = {dtype: PROBLEM.with_dtype(dtype) for dtype in ("float32", "float16", "bfloat16", "float64")}
    taken = []
    for dtype in ("float32", "bfloat16", "float16"):
        recorded(tmp_path / "user", *(record_of(of_dtype[d], AVX2) for d in (*taken, dtype)))
        taken.append(dtype)
        found = select.select(of_dtype["float16"], AVX2, 2)
        assert found.record is not None and found.record.problem == of_dtype[dtype]
        assert found.kind == ("record" if dtype == "float16" else "nearest")
        assert transferred(found.record.load(), of_dtype["float16"], AVX2)["main"] is not None
    assert chosen(AVX2, of_dtype["float64"]) == ""
    assert chosen(parse_target("cuda-sm_90"), of_dtype["float16"]) == ""
