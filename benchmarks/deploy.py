"""Compiled artifacts against eager execution: ``python -m benchmarks.deploy [--check]``.

Eager with our operator, the artifacts of both formats that ``tvm_na.compile`` makes of the same model, and eager with
other operators are interleaved in one process. Peers are given what they like best, as in :mod:`benchmarks.peers`.
"""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

import tvm_na
from benchmarks.common import RESULTS, numbers_table, start, write_json
from benchmarks.model import replaced
from benchmarks.peers import DenseMaskAttention, FlexAttention
from benchmarks.photographs import crops
from tvm_na.deploy.artifact import Artifact
from tvm_na.deploy.manifest import WEIGHTS
from tvm_na.functional import Backend
from tvm_na.measure.timing import Timing, format_time, interleaved_ratio, measure
from tvm_na.models import create_model
from tvm_na.models.registry import get_spec
from tvm_na.reference.accuracy import LOGITS_BUDGET, relative_error

EAGER = "eager, tvm_na"
#: Crops of photographs on which the artifacts' logits are compared with the eager reference's as well.
CROPS = 50
#: The format of each artifact; ratios are those of the first one.
ARTIFACTS = {"artifact, aoti": "aoti", "artifact, tvm": "tvm"}
ARTIFACT, WITHOUT_TORCH = ARTIFACTS
PEERS = ("eager, gather", "eager, masked SDPA", "eager, flex_attention")
#: Times of the AOTInductor artifact over those of eager with our operator and of eager with the best peer, and of the
#: artifact without PyTorch over that of the other.
GOALS = {"eager": 0.85, "best_peer": 0.5, "without_torch": 1.3}


@dataclass(frozen=True)
class Deployed:
    """What was measured, by candidate.

    Attributes:
        errors: Relative error of the logits against the model in float64.
        crops: Largest relative error of an artifact's logits on crops of photographs against the eager reference.
        artifacts: Of each artifact: ``bytes``, those of its ``weights``, the ``seconds`` of compiling it and of loading
            it (verification included), its ``problems`` and those ``untuned``, from its manifest.
    """

    timings: dict[str, Timing]
    errors: dict[str, float]
    crops: dict[str, float]
    artifacts: dict[str, dict[str, Any]]

    @property
    def best_peer(self) -> str | None:
        """The fastest peer with right logits."""
        right = [name for name in PEERS if name in self.timings and self.errors[name] <= LOGITS_BUDGET]
        return min(right, key=lambda name: self.timings[name].median, default=None)

    def ratio(self, name: str | None, of: str = ARTIFACT) -> float | None:
        """The time of ``of`` over a candidate's, the median over the rounds; None if either's numbers are wrong."""
        if name is None or max(self.errors[of], self.errors[name]) > LOGITS_BUDGET:
            return None
        return interleaved_ratio(self.timings[of], self.timings[name])

    def ratios(self) -> dict[str, float | None]:
        """What :data:`GOALS` are set for."""
        return {
            "eager": self.ratio(EAGER),
            "best_peer": self.ratio(self.best_peer),
            "without_torch": self.ratio(ARTIFACT, of=WITHOUT_TORCH),
        }


def compare(name: str, input_size: int, batch: int, dynamic: bool, rounds: int, console: Console) -> Deployed:
    """Compile a model with random weights, and time it on noise against eager execution with every operator."""
    torch.manual_seed(0)
    x = torch.randn(batch, 3, input_size, input_size)
    reference = create_model(name, backend=Backend.REFERENCE).eval()
    ours = copy.deepcopy(reference)
    ours.set_backend(Backend.COMPILED)
    with tempfile.TemporaryDirectory() as folder, console.status("compiling") as status:
        size = "dynamic" if dynamic else batch
        made = {
            key: _compiled(ours, x, size, format, Path(folder) / format, status.update)
            for key, format in ARTIFACTS.items()
        }
        status.update("measuring")
        with torch.inference_mode():
            others = [replaced(reference, x, attention) for attention in (DenseMaskAttention, FlexAttention)]
            artifacts = {key: artifact for key, (artifact, _) in made.items()}
            models: dict[str, Any] = {EAGER: ours, **artifacts, **dict(zip(PEERS, (reference, *others), strict=True))}
            expected = copy.deepcopy(reference).double()(x.double())
            errors = {candidate: relative_error(model(x), expected) for candidate, model in models.items()}
            on_crops = _errors_on_crops(reference, artifacts, name, x.shape)
            timings = measure({k: partial(m, x) for k, m in models.items()}, rounds=rounds, sample_time=0.2)
    return Deployed(timings, errors, on_crops, {key: about for key, (_, about) in made.items()})


def _errors_on_crops(reference: nn.Module, artifacts: dict[str, Any], name: str, shape: torch.Size) -> dict[str, float]:
    errors = dict.fromkeys(artifacts, 0.0)
    for images in crops(CROPS - CROPS % shape[0], get_spec(name).preprocessing, shape[-1]).split(shape[0]):
        expected = reference(images)
        for key, artifact in artifacts.items():
            errors[key] = max(errors[key], relative_error(artifact(images), expected))
    return errors


def _compiled(
    model: nn.Module, x: torch.Tensor, batch: int | str, format: Any, output: Path, report: Any
) -> tuple[Artifact, dict[str, Any]]:
    start = time.perf_counter()
    tvm_na.compile(model, x, batch=batch, output=output, format=format, report=report)
    compiled = time.perf_counter()
    artifact = tvm_na.load(output)
    seconds = {"compile": compiled - start, "load": time.perf_counter() - compiled}
    files = artifact.manifest.files
    about = {
        "bytes": sum(file["bytes"] for file in files.values()),
        "weights": sum(file["bytes"] for name, file in files.items() if name == WEIGHTS),
        "seconds": seconds,
        "problems": artifact.manifest.problems,
        "untuned": artifact.manifest.code.get("untuned", []),
    }
    return artifact, about


def table_of(found: Deployed, title: str) -> Table:
    """Median, spread, error and what each artifact takes of the time, for every candidate."""
    ratios = [f"{kind} / it" for kind in ARTIFACTS.values()]
    table = numbers_table("candidate", "median", "spread", "error of the logits", *ratios, title=title)
    for name, timing in found.timings.items():
        shown = [_in_words(found.ratio(name, of)) if name != of else "" for of in ARTIFACTS]
        error = f"{found.errors[name]:.1e}"
        table.add_row(name, format_time(timing.median), format_time(timing.spread), error, *shown)
    return table


def _in_words(ratio: float | None) -> str:
    return "wrong numbers" if ratio is None else f"{ratio:.2f}"


def main(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")] = "nat_tiny",
    input_size: Annotated[int, typer.Option(min=224, help="Height and width in pixels; peers do not pad.")] = 224,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="An artifact for any batch, not for this one.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of every candidate.")] = 11,
    output: Annotated[Path | None, typer.Option(help="JSON file to write; results/deploy_MODEL.json if none.")] = None,
    check: Annotated[bool, typer.Option(help="Exit 1 where a goal is missed.")] = False,
) -> None:
    """Compare an artifact's latency and logits with eager execution (random weights, fixed seed)."""
    console = Console()
    load = start("cpu", console)
    found = compare(name, input_size, batch, dynamic, rounds, console)
    kind = "any batch" if dynamic else f"batch {batch} alone"
    title = f"{name}, batch {batch}, {input_size}x{input_size}, {torch.get_num_threads()} threads; artifact: {kind}"
    console.print(table_of(found, title))
    ratios = found.ratios()
    content = {
        "benchmark": "deploy",
        "model": name,
        "batch": batch,
        "dynamic": dynamic,
        "input_size": input_size,
        "rounds": rounds,
        "load_before": load,
        "ratios": ratios,
        "goals": GOALS,
        "best_peer": found.best_peer,
        "errors_on_crops": {"crops": CROPS, **found.crops},
        "artifacts": found.artifacts,
        "candidates": {k: {**t.to_dict(), "relative_error": found.errors[k]} for k, t in found.timings.items()},
    }
    write_json(output or RESULTS / f"deploy_{name}.json", content)
    for artifact, error in found.crops.items():
        console.print(f"{artifact}, {CROPS} crops of photographs: relative error {error:.1e}, goal {LOGITS_BUDGET:.0e}")
    missed = any(error > LOGITS_BUDGET for error in found.crops.values())
    for against, goal in GOALS.items():
        ratio = ratios[against]
        console.print(f"{against}: {_in_words(ratio)}, goal {goal}")
        missed |= ratio is None or ratio > goal
    if check and missed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
