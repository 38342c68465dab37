"""What the benchmark of models tells."""

from __future__ import annotations

import io

from rich.console import Console

from benchmarks import model
from benchmarks.model import Comparison
from tvm_na.measure.timing import Timing


def told(comparison: Comparison) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(model.table_of(comparison, "m", 128))
    return console.export_text()


def test_images_per_second_are_told_beside_flex() -> None:
    names = ("compiled", "flex", "compiled, torch.compile", "flex, torch.compile")
    seconds = dict(zip(names, (0.1, 0.3, 0.1, 0.2), strict=True))
    errors = {name: 0.5 if name == names[2] else 1e-3 for name in names}
    timings = {name: Timing((value,)) for name, value in seconds.items() if name != names[2]}
    found = Comparison(timings, errors, model.BUDGET["cuda"])
    assert [found.faster_than(name) for name in ("flex", "flex, torch.compile")] == [0.3 / 0.1, None]
    text = told(found)
    assert "3.00x" in text and "1280" in text and "5.0e-01" in text and "wrong numbers" in text


def test_backends_that_differ_have_no_speedup() -> None:
    timings = {model.OURS: Timing((1.0,)), model.REFERENCE: Timing((4.0,))}
    errors = dict.fromkeys(timings, 1e-6)
    assert Comparison(timings, errors, model.BUDGET["cpu"]).faster_than(model.REFERENCE) == 4.0
    assert Comparison(timings, errors, model.BUDGET["cpu"], 0.1).faster_than(model.REFERENCE) is None
