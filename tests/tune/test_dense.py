"""Dense problems in the tuner and among its records, together with attention."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.records.tuned import commit_drawn
from tests.te.dense_kernels import compile_all, scheduled
from tvm_na.cli import app
from tvm_na.jit import build
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.records import select
from tvm_na.reference.case import WrongNumbers
from tvm_na.reference.cases import case_of
from tvm_na.targets.target import detect_target, parse_target
from tvm_na.te.dense.product import tile_of
from tvm_na.tune.options import batch_for
from tvm_na.tune.tasks import TuneTask, formulations_of, tasks_from_file

TARGET = detect_target()
LINEAR = DenseProblem.make(49, 32, 48, activation="gelu")
CONV = DenseProblem.make((10, 10), 8, 16, kernel_size=3, stride=2, padding=1, bias=False)
ATTENTION = NAProblem.make((9, 9), 3, 1, 8)


def test_the_nearest_is_of_the_same_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "user_folder", lambda name: tmp_path)
    near = DenseProblem.make(49, 32, 96, activation="gelu")
    assert select.select(near, TARGET, threads=1).kind == "default"
    commit_drawn(tmp_path, ATTENTION)
    assert select.select(near, TARGET, threads=1).kind == "default"
    offered = {f.text for f in formulations_of(near, TARGET)}
    number = next(n for n, f in enumerate(formulations_of(LINEAR, TARGET)) if f.text in offered)
    commit_drawn(tmp_path, LINEAR, formulation=number)  # type: ignore[arg-type]
    selection = select.select(near, TARGET, threads=1)
    assert selection.kind == "nearest" and selection.record is not None and selection.record.problem == LINEAR
    module = build.scheduled_module(near, TARGET, selection)[0]
    assert tile_of(module["main"]).to_json() == selection.record.formulation
    other = NAProblem.make((9, 9), 3, 1, 16)
    found = select.select(other, TARGET, threads=1)
    assert found.record is not None and found.record.problem == ATTENTION


def test_a_case_has_weights_as_the_kernel_wants_them() -> None:
    for problem in (LINEAR, CONV):
        tile, point = scheduled(problem)
        case = case_of(problem, 2, tile.to_json())
        (kernel,) = compile_all([point])
        outputs = case.outputs()
        kernel(*case.inputs, *outputs)
        case.check(outputs, 2e-6)
        outputs[0][-1, -1, ..., -1] += 1
        with pytest.raises(WrongNumbers, match="out: required a relative error"):
            case.check(outputs, 2e-6)
        assert torch.equal(case_of(problem, 2, tile.to_json()).inputs[0], case.inputs[0])


def test_files_may_mix_operators(tmp_path: Path) -> None:
    file = tmp_path / "problems.json"
    file.write_text(
        json.dumps(
            [
                {"operator": "dense", "spatial": 49, "in_channels": 32, "out_channels": 48, "activation": "gelu"},
                {**json.loads(CONV.to_json()), "weight": 3},
                json.loads(ATTENTION.to_json()),
            ]
        ),
        encoding="utf-8",
    )
    assert tasks_from_file(file) == [TuneTask(LINEAR), TuneTask(CONV, 3.0), TuneTask(ATTENTION)]
    result = CliRunner().invoke(app, ["tune", "--problems", str(file), "--dry-run"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert str(CONV) in result.output
    for wrong, says in (
        ({"operator": "conv"}, "operator: required one of backward, dense, unfused, or none for attention, got 'conv'"),
        ({"operator": "dense", "spatial": 49, "in_channels": 0, "out_channels": 1}, "in_channels: required"),
    ):
        file.write_text(json.dumps([wrong]), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"problems: {says}.*entry 0"):
            tasks_from_file(file)


def test_the_batch_must_fit() -> None:
    assert LINEAR.bytes == 4 * (49 * 32 + 32 * 48 + 48 + 49 * 48)
    large = DenseProblem.make(2**20, 64, 64)
    assert batch_for(large, TARGET, 0, None, None) == 1
    with pytest.raises(ValueError, match="batch: required at most 31"):
        batch_for(large, TARGET, 32, None, None)


def test_other_targets_have_their_own_tiles() -> None:
    for name, vector in (("llvm-x86-avx512", 16), ("llvm-x86-sse4", 4), ("llvm-aarch64-neon", 4)):
        found = formulations_of(CONV, parse_target(name))
        assert {json.loads(f.text)["vector"] for f in found} == {vector}
