"""What is told of the suite's results, of pretended ones; and that the pages are what the committed ones give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.suite import __main__ as suite
from benchmarks.suite.report import tables, verdicts
from benchmarks.suite.report.render import page, with_numbers
from benchmarks.suite.report.results import Results
from tests.helpers import ROOT

MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "device": "cpu",
    "cpu": "Some CPU",
    "flags": ["avx2"],
    "cores": 2,
    "target": "llvm-x86-avx2",
    "versions": {"torch": "2.13.0", "natten": "not installed"},
}
MM = 2 * 1024**3
README = """before <!-- headline: make bench -->old<!-- end of headline -->
<!-- numbers: make bench -->
old
<!-- end of numbers -->
after
"""


def compared(*refused: str, **seconds: Any) -> dict[str, Any]:
    names = {"ours": "tvm_na", "default": "tvm_na, default", "float32": "tvm_na, float32", "mm": "torch.mm"}
    samples = {names.get(n, n): list(s) if isinstance(s, tuple) else [s] * 3 for n, s in seconds.items()}
    found = {name: {"samples": s, "calls": 1} for name, s in samples.items()}
    return {"candidates": found, "refused": dict.fromkeys(refused, "not | there")}


def case(**content: Any) -> dict[str, Any]:
    return {"about": {}, "load_before": 0.25, "took": 1.0, **content}


def models(way: str, *seconds: float) -> dict[str, Any]:
    names = ("NAT-Tiny", "NAT-Tiny without attention", "Swin-T", "ConvNeXt-T")
    one = compared(**{f"{name}, {way}": s for name, s in zip(names, seconds, strict=True)})
    return case(batch=1, sources={"NAT-Tiny": "tvm_na.models", "Swin-T": "timm"}, **one)


def put(folder: Path, machine: dict[str, Any], **parts: Any) -> None:
    for name, cases in parts.items():
        content = {"part": name, "quick": False, "machine": machine, "cases": cases}
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps(content), encoding="utf-8")


def put_halves(folder: Path, *flags: str) -> None:
    lone = {"note": "", "batch": 1, "useful": MM // 1000}
    stages = {"56²": (1.0, 0.8, 4.0), "7²": (1.1, 1.0, 9.0)}
    op = {
        f"NAT-Tiny {name}": case(
            **lone,
            forward=compared("flex", ours=ours, float32=1.0, gather=peer),
            training=compared(ours=back, float32=1.0, gather=0.5),
        )
        for name, (ours, back, peer) in stages.items()
    }
    memory = {
        "224², tvm_na": case(peak=7 * 10**6, inputs=18 * 10**6),
        "224², tvm_na, float32": case(peak=13 * 10**6, inputs=36 * 10**6),
    }
    names = ("NAT-Tiny", "NAT-Tiny, float32", "Swin-T")
    seconds = {f"{name}, torch.compile": s for name, s in zip(names, (0.3, 0.1, 0.6), strict=True)}
    models = {"torch.compile, batch 1": case(batch=1, sources={}, **compared(**seconds))}
    machine = {**MACHINE, "flags": ["avx2", *flags]}
    training = {
        "autocast, batch 8": case(batch=8, sources={}, **compared(**{"NAT-Tiny": 3.0, "NAT-Tiny, float32": 2.0}))
    }
    parts = {"op": op, "memory": memory, "models": models, "training": training}
    put(folder, machine, **{f"{name}_bfloat16": cases for name, cases in parts.items()})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stage = compared("natten, no bias", ours=(1e-3, 2e-3, 1e-3), default=2e-3, gather=4e-3, flex=(8e-3,), mm=1.0)
    back = compared("flex", ours=4e-3, gather=2e-3, mm=1.0)
    lone = {"note": "", "batch": 1, "useful": MM // 1000}
    op = {"NAT-Tiny 56²": case(**lone, forward=stage, training=back)}
    op["StyleNAT 256²"] = case(**{**lone, "note": "half"}, forward={**compared(ours=1e-3, mm=1.0)})
    op["gone"] = case(failed="took longer than 180 s")
    packages = models("AOTInductor", 9.0, 0.09, 0.1, 0.1)
    del packages["candidates"]["NAT-Tiny, AOTInductor"]
    packages["candidates"] |= {
        f"NAT-Tiny, {w}": {"samples": [s] * 3, "calls": 1} for w, s in (("aoti", 0.096), ("tvm", 0.12))
    }
    whole = {
        "making aoti, NAT-Tiny": case(seconds=100.0, bytes=10**8),
        "eager, batch 1": models("eager", 0.1, 0.09, 0.1, 0.1),
        "torch.compile, batch 1": models("torch.compile", 0.1, 0.08, 0.09, 0.11),
        "packages, batch 1": packages,
    }
    grown = {
        f"{n}²": case(**{**lone, "useful": n * n}, forward=compared(ours=n * 1e-3, gather=n**2 * 1e-3, mm=1.0))
        for n in (10, 20)
    }
    parts = {
        "op": op,
        "growth": grown,
        "models": whole,
        "memory": {
            "NAT-Tiny, batch 32": case(peak=10**8),
            "Swin-T, batch 32": case(peak=2 * 10**8),
            "112², natten": case(refused="no"),
            "112², tvm_na": case(peak=3 * 10**6),
            "112², SDPA": case(peak=2 * 10**6),
        },
        "training": {"eager, batch 8": case(batch=8, sources={}, **compared(**{"NAT-Tiny": 1.5, "Swin-T": 1.0}))},
        "start": {
            "tvm_na": case(
                first={"import": 1.0, "first call": 2.0, "second call": 1e-3}, warm=[{"first call": 0.1}] * 3
            )
        },
    }
    put(tmp_path, MACHINE, **parts)
    return tmp_path


def test_ratios_are_of_neighbors_beside_the_bound(folder: Path) -> None:
    forward, _ = Results.read(folder).operator()
    assert forward.best_peer == "gather" and forward.over_peer == pytest.approx(4.0)
    assert forward.ratio("flex", "tvm_na") == pytest.approx(8.0), "measured once: of medians"
    assert forward.bound == pytest.approx(1e-3, rel=1e-3) and forward.over_bound == pytest.approx(1.0, rel=1e-3)
    (back,) = Results.read(folder).operator("op", "training")
    assert back.bound == pytest.approx(3.5e-3, rel=1e-3) and back.over_peer == pytest.approx(0.5)


def test_goals_are_met_missed_or_not_measured(folder: Path) -> None:
    found = {goal.name: (goal.got, goal.verdict) for goal in verdicts.goals(Results.read(folder))}
    assert list(found.values()) == [
        (pytest.approx(4.0), "missed"),
        (pytest.approx(4.0), "met"),
        (pytest.approx(1.0, rel=1e-3), "met"),
        (pytest.approx(0.5), "missed"),
        (pytest.approx(1.25), "missed"),
        (pytest.approx(1 / 0.9), "missed"),
        (pytest.approx(0.96), "met"),
        (pytest.approx(1.2), "missed"),
        (pytest.approx(0.5), "met"),
        (pytest.approx(1.5), "missed"),
    ]
    assert {goal.verdict for goal in verdicts.goals(Results({}))} == {"not measured"}


def test_where_others_are_ahead_is_told_the_worst_first(folder: Path) -> None:
    found = [(loss.where, loss.who, round(loss.ratio, 2)) for loss in verdicts.losses(Results.read(folder))]
    assert found == [
        ("training, NAT-Tiny 56²", "gather", 2.0),
        ("training step, eager, batch 8", "Swin-T", 1.5),
        ("peak memory of the operator, 112², SDPA", "SDPA", 1.5),
        ("NAT-Tiny, tvm", "Swin-T", 1.2),
        ("NAT-Tiny, tvm", "ConvNeXt-T", 1.2),
        ("NAT-Tiny, torch.compile", "Swin-T", 1.11),
    ]


@pytest.mark.parametrize(
    ("flags", "gain"), [((), (1.1, "missed")), (("avx512_bf16",), (pytest.approx(1.1**0.5), "missed"))]
)
def test_goals_of_half_precision(folder: Path, flags: tuple[str, ...], gain: tuple[Any, str]) -> None:
    put_halves(folder, *flags)
    results = Results.read(folder)
    found = [(goal.got, goal.verdict) for goal in verdicts.goals_of_dtype(results.others["bfloat16"], "bfloat16")]
    assert found == [
        gain,
        (1.0, "met"),
        (pytest.approx((4.0 * 9.0 / 1.1) ** 0.5), "met"),
        (pytest.approx(4.0), "met"),
        (1.0, "met"),  # what float32 packs: 13 MB less an output of 12
    ]
    assert {goal.verdict for goal in verdicts.goals_of_dtype(Results({}), "float16")} == {"not measured"}
    losses = {(loss.where, loss.who, loss.why) for loss in verdicts.losses(results)}
    assert ("training, NAT-Tiny 7², bfloat16", "gather", "ours takes 1.00x its time in float32") in losses


def test_the_page_has_half_precision_where_it_was_measured(folder: Path) -> None:
    assert "Half precision:" not in page(Results.read(folder))
    put_halves(folder)
    text = page(Results.read(folder))
    assert "## Half precision: bfloat16" in text
    assert "| NAT-Tiny 56² | 1,000 | 1,000 | 1.00x | 4,000 | — | 4.00x |" in text
    assert "| torch.compile, batch 1 | 300 | 100 | 600 | 3.00x | 0.50x |" in text
    assert "| autocast, batch 8 | 3,000 | 2,000 | 1.50x |" in text and "| 224² | 7.00 | 13.0 | 0.54x |" in text
    assert "NAT-Tiny 56², bfloat16, NAT-Tiny 7², bfloat16 | not \\| there |" in text
    assert "| operator at NAT-Tiny's stages, bfloat16 / float32, worst stage | <= 1.05x | 1.10x | missed |" in text


def test_the_page_has_every_part_and_what_has_no_time(folder: Path) -> None:
    results = Results.read(folder)
    text = page(results)
    for heading in ("operator", "Growth", "Models", "Training", "Memory", "The first call", "What has no time"):
        assert f"\n## {heading}" in text or f"\n## The {heading}" in text
    assert "| natten | NAT-Tiny 56² | not \\| there |" in text
    assert "- op, gone: took longer than 180 s" in text and "- StyleNAT 256²: half." in text
    assert "are of timm (Swin-T); tvm_na.models (NAT-Tiny)." in text and "| exponent | 0.50 | 1.00 |" in text
    assert "Eager, attention is 10 % of NAT-Tiny's time; without any it takes 0.90x" in text
    assert "| the fastest way of each, by medians | 1.20x | 1.07x | 0.96x |" in text
    assert "Nothing is measured yet" in page(Results({}))


def test_numbers_of_the_readme_are_between_two_comments(folder: Path) -> None:
    results = Results.read(folder)
    text = with_numbers(README, results)
    assert text.startswith("before <!-- headline: make bench -->4.0x to 4.0x<!--") and "old" not in text
    assert text.endswith("<!-- end of numbers -->\nafter\n")
    assert "| NAT-Tiny 56² | 1.00 | 2.00 | 4.00 | 8.00 | — | 4.00x |" in text and "takes 100 ms" in text
    assert with_numbers(text, results) == text
    assert with_numbers("none", Results({})) == "none"
    with pytest.raises(ValueError, match="readme: required"):
        with_numbers("none", results)


@pytest.mark.parametrize(
    ("number", "text"), [(0.00012345, "0.0001"), (0.1, "0.100"), (12.345, "12.3"), (1234.5, "1,234")]
)
def test_numbers_have_three_digits(number: float, text: str) -> None:
    assert tables.digits(number) == text


def test_a_report_is_written_and_a_rehearsal_is_not_published(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "docs").mkdir(parents=True)
    (root / "README.md").write_text(README)
    monkeypatch.setattr(suite, "ROOT", root)
    monkeypatch.setattr(suite, "PUBLISHED", root / "published")
    told = CliRunner().invoke(suite.app, ["report", str(folder), "--publish"])
    assert told.exit_code == 0, told.output
    assert (root / "docs" / "BENCHMARKS.md").read_text() == page(Results.read(root / "published"))
    assert "NAT-Tiny" in (root / "README.md").read_text()
    pictures = sorted(file.name for file in (root / "docs" / "pictures").iterdir())
    assert pictures == ["bench-growth.png", "bench-models.png", "bench-op.png"]
    alone = tmp_path / "alone"
    alone.mkdir()
    put_halves(alone)
    assert CliRunner().invoke(suite.app, ["report", str(alone)]).exit_code == 0
    assert CliRunner().invoke(suite.app, ["report", str(alone), "--publish"]).exit_code == 0
    published = (root / "docs" / "BENCHMARKS.md").read_text()
    assert "Half precision" in published and "Growth" in published, "beside what was published before"
    content = json.loads((folder / "op.json").read_text())
    (folder / "op.json").write_text(json.dumps({**content, "quick": True}))
    assert CliRunner().invoke(suite.app, ["report", str(folder), "--publish"]).exit_code == 2
    assert CliRunner().invoke(suite.app, ["report", str(tmp_path / "root")]).exit_code == 2


def test_parts_are_known_by_name_and_devices_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(suite.app, ["--only", "speed"]).exit_code == 2
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    told = CliRunner().invoke(suite.app, ["--device", "cuda"])
    assert told.exit_code == 2 and "required a CUDA device, got none" in told.output


def test_the_pages_are_what_the_committed_results_give() -> None:
    results = Results.read(suite.PUBLISHED)
    assert (ROOT / "docs" / "BENCHMARKS.md").read_text(encoding="utf-8") == page(results)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_numbers(readme, results) == readme
    sizes = [file.stat().st_size for file in suite.PUBLISHED.glob("*.json")]
    assert sum(sizes) < 300_000
