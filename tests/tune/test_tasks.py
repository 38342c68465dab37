"""What is to be tuned: from models, from files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.invoking import invoke
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.targets.target import detect_target, parse_target
from tvm_na.tune.tasks import TuneTask, formulations_of, label, merged, tasks_from_file, tasks_of

PROBLEM = NAProblem.make((9, 9), 3, 1, 8)
OTHER = NAProblem.make((9, 9), 3, 1, 8, bias=True)
LINEAR = DenseProblem.make(49, 32, 48, activation="gelu")
WINDOW: dict[str, Any] = {"spatial": [9, 9], "kernel_size": 3, "heads": 1, "head_dim": 8}


def test_layers_are_weights_and_repeated_problems_are_one_task() -> None:
    assert tasks_of({PROBLEM: 3, OTHER: 1}) == [TuneTask(PROBLEM, 3.0), TuneTask(OTHER, 1.0)]
    assert merged([TuneTask(PROBLEM), TuneTask(OTHER), TuneTask(PROBLEM, 2.0)]) == [
        TuneTask(PROBLEM, 3.0),
        TuneTask(OTHER, 1.0),
    ]


@pytest.mark.parametrize(
    ("problem", "weight", "error", "says"),
    [
        ("9x9", 1.0, TypeError, "problem: required one of NAProblem, .*UnfusedProblem, got str"),
        (PROBLEM, "1", TypeError, "weight: required a number, got str"),
        (PROBLEM, True, TypeError, "weight: required a number, got bool"),
        (PROBLEM, 0, ValueError, "weight: required a finite number > 0, got 0"),
        (PROBLEM, float("nan"), ValueError, "weight: required a finite number > 0, got nan"),
    ],
)
def test_bad_tasks(problem: Any, weight: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        TuneTask(problem, weight)


def write(folder: Path, content: Any) -> Path:
    file = folder / "problems.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def test_problems_of_every_operator_come_from_a_file(tmp_path: Path) -> None:
    backward = BackwardProblem(OTHER)
    entries = [
        json.loads(PROBLEM.to_json()),
        {**WINDOW, "bias": True, "weight": 4},
        {**WINDOW, "kernel_size": [3, 3]},
        {**WINDOW, "bias": True, "operator": "backward"},
        {"operator": "dense", "spatial": 49, "in_channels": 32, "out_channels": 48, "activation": "gelu"},
        *({**json.loads(problem.to_json()), "weight": 3} for problem in (backward, LINEAR)),
    ]
    file = write(tmp_path, entries)
    wanted = {PROBLEM: 2.0, OTHER: 4.0, backward: 4.0, LINEAR: 4.0}
    assert tasks_from_file(file) == [TuneTask(problem, weight) for problem, weight in wanted.items()]
    shown = invoke("tune", "--problems", file, "--dry-run").stdout
    assert all(str(problem) in shown for problem in wanted)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "required a JSON file, got .*problems.json"),
        ("{}", "required a list of one problem or more, got .* with dict"),
        ("[]", "required a list of one problem or more"),
        ([1], r"required JSON objects, got 1 \(.*entry 0\)"),
        ([{"spatial": [9, 9]}], r".*missing.*entry 0"),
        ([{**WINDOW, "spatial": [2, 2]}], r"kernel_size: .*entry 0"),
        ([{**WINDOW, "weight": -1}], r"weight: required a finite number > 0, got -1 \(.*entry 0\)"),
        ([{**WINDOW, "operator": "backward", "heads": 0}], "heads: required an integer >= 1, got 0.*entry 0"),
        ([{**WINDOW, "operator": ["backward"]}], r"operator: required one of .*, got \('backward',\).*entry 0"),
        ([{**WINDOW, "operator": 1}], "operator: required one of .*, got 1.*entry 0"),
        ([{"operator": "conv"}], "operator: required one of backward, dense, unfused, or none .*, got 'conv'.*entry 0"),
        ([{"operator": "dense", "spatial": 49, "in_channels": 0, "out_channels": 1}], "in_channels: required.*entry 0"),
    ],
)
def test_bad_files(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"problems: {says}"):
        tasks_from_file(write(tmp_path, content))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        tasks_from_file(tmp_path / "problems.json")


def test_a_problem_has_formulations_with_spaces() -> None:
    found = formulations_of(PROBLEM, detect_target())
    assert found
    assert len({f.text for f in found}) == len(found)
    for formulation in found:
        assert formulation.problem == PROBLEM
        assert formulation.default is next(iter(formulation.spaces.values()))
        assert formulation.points == sum(s.points for s in formulation.spaces.values()) > 1
        assert [name for name, s in formulation.spaces.items() if s.sketch != name] == []


def test_spaces_of_which_none_is_known_to_be_faster_are_searched() -> None:
    target = parse_target("cuda-sm_90")
    small = formulations_of(NAProblem.make((14, 14), 7, 2, 32, dtype="float16", bias=True), target)
    names = [f.space.name for f in small]
    assert list(dict.fromkeys(names)) == ["cuda-strip", "cuda-band"] and len({f.text for f in small}) == len(small)
    large = formulations_of(NAProblem.make((64, 64), 40, 2, 32, dtype="float16"), target)
    assert {f.space.name for f in large} == {"cuda-flash"}


def test_a_problem_without_a_space_is_refused() -> None:
    with pytest.raises(ValueError, match="problem: required one that has a compiled kernel on llvm-.*, got 9"):
        formulations_of(NAProblem.make((9, 9), 3, 1, 8, dtype="tf32"), detect_target())


def test_labels_say_what_differs() -> None:
    texts = ['{"formulation":"lanes","queries":2,"exact_values":true,"vector":8}']
    assert label(texts[0], texts) == "lanes"
    texts.append('{"formulation":"lanes","queries":4,"exact_values":false,"vector":8}')
    assert [label(text, texts) for text in texts] == ["queries 2, exact values", "queries 4, no exact values"]
    texts.append('{"formulation":"band","vector":8}')
    assert [label(text, texts) for text in texts][2] == "band"
    assert label(texts[0], texts) == "lanes, queries 2, exact values"
