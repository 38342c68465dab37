"""A whole model on an NVIDIA GPU, images per second: ``python -m benchmarks.cuda_model [MODEL] [--output FILE]``.

float16, the same weights in every candidate: with our kernels, and with ``flex_attention`` (compiled, with the relative
position bias as its ``score_mod``) in place of our operator; each as it is, and through ``torch.compile``. Logits are
compared with the model in float64 first; what is wrong gets no time. Candidates take turns, inputs rotate, times are
those of CUDA events.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.gpu_machine import gpu_machine
from benchmarks.model import replaced
from benchmarks.peers import window_mask_mod
from benchmarks.report import RESULTS
from tvm_na.functional import Backend
from tvm_na.measure.cuda import rotating
from tvm_na.measure.timing import CudaClock
from tvm_na.models import create_model
from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.problems.attention import NAProblem
from tvm_na.reference.accuracy import relative_error

OURS, FLEX = "tvm_na", "flex"
#: Of logits, relative to the largest: float16 throughout some twenty layers.
_BUDGET = 2e-2
_CHECKED = 2  # images


class FlexAttention(nn.Module):
    """A :class:`NeighborhoodAttention2D` by ``flex_attention``, for one input size."""

    def __init__(self, module: NeighborhoodAttention2D, problem: NAProblem, device: str) -> None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        super().__init__()
        self.module, self.problem = module, problem
        tokens = math.prod(problem.spatial)
        plain = NAProblem.make(problem.spatial, problem.kernel_size, 1, 1, dilation=problem.dilation)
        self.mask = create_block_mask(window_mask_mod(plain), None, None, tokens, tokens, device=device)
        self.attend: Any = flex_attention
        if device != "cpu":
            self.attend = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def biased(self, score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """A score with the relative position bias; where the mask is False, any other."""
        assert self.module.rpb is not None
        width = self.problem.spatial[1]
        index = []
        for a, b, d, size in zip(
            (q // width, q % width),
            (k // width, k % width),
            self.problem.dilation,
            self.problem.kernel_size,
            strict=True,
        ):
            index.append(torch.clamp(b // d - a // d + (size - 1), 0, 2 * size - 2))
        return score + self.module.rpb[head, index[0], index[1]]

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, H, W, embed_dim]`` to the same shape; H and W are the problem's."""
        query, key, value = (t.flatten(1, 2).transpose(1, 2) for t in self.module._project(x))
        bias = None if self.module.rpb is None else self.biased
        out = self.attend(query, key, value, score_mod=bias, block_mask=self.mask, scale=self.module.scale)
        projected: Tensor = self.module.proj(out.transpose(1, 2).reshape(x.shape))
        return projected


def candidates_of(name: str, input_size: int, compiled: bool) -> dict[str, nn.Module]:
    """The model in float16 on the GPU, with each attention; also through ``torch.compile`` if wanted."""
    torch.manual_seed(0)
    ours = create_model(name, backend=Backend.COMPILED).eval().half().to("cuda")
    with torch.inference_mode():
        x = torch.randn(1, 3, input_size, input_size, dtype=torch.half, device="cuda")
        flex = replaced(ours, x, lambda module, problem: FlexAttention(module, problem, "cuda"))
    found: dict[str, Any] = {OURS: ours, FLEX: flex}
    if compiled:
        found |= {f"{key}, torch.compile": torch.compile(copy.deepcopy(model)) for key, model in found.items()}
    return found


def expected_logits(name: str, x: Tensor) -> Tensor:
    """The logits of the same model in float64, by the reference backend on the CPU."""
    torch.manual_seed(0)
    model = create_model(name, backend=Backend.REFERENCE).eval().half().double()
    with torch.inference_mode():
        logits: Tensor = model(x.cpu().double())
    return logits


def measure(models: dict[str, nn.Module], sets: list[Tensor], rounds: int) -> dict[str, list[float]]:
    """Seconds per call of every round, in turns."""
    watch = CudaClock()
    calls: dict[str, Callable[[], object]] = {
        key: rotating(model, [(x,) for x in sets]) for key, model in models.items()
    }
    for call in calls.values():
        watch.seconds(call, 3)
    seconds: dict[str, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            seconds[key].append(watch.seconds(call, 1))
    return seconds


def table_of(result: dict[str, Any]) -> Table:
    """Images per second of each candidate, and how many times those of flex."""
    table = Table(title=f"{result['model']}, batch {result['batch']}, float16", box=SIMPLE_HEAD)
    for column in ("attention", "images/s", "over flex", "error of the logits"):
        table.add_column(column, justify="left" if column == "attention" else "right")
    for key, rate in result["images_per_second"].items():
        base = result["images_per_second"].get(key.replace(OURS, FLEX))
        ratio = "" if base is None or key.startswith(FLEX) else f"{rate / base:.2f}x"
        table.add_row(key, f"{rate:.0f}", ratio, f"{result['errors'][key]:.1e}")
    for key in result["wrong"]:
        table.add_row(key, "-", "", f"{result['errors'][key]:.1e}")
    return table


def main(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")] = "nat_tiny",
    input_size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 224,
    batch: Annotated[int, typer.Option(min=2, help="Images at once.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of every candidate.")] = 11,
    compiled: Annotated[bool, typer.Option(help="Also through torch.compile, which takes minutes.")] = True,
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "cuda_model.json",
) -> None:
    """Compare a model's images per second on this machine's GPU (random weights, fixed seed)."""
    console = Console()
    if not torch.cuda.is_available():
        console.print("required an NVIDIA GPU that PyTorch sees, got none", style="red", markup=False)
        raise typer.Exit(2)
    models = candidates_of(name, input_size, compiled)
    sets = [torch.randn(batch, 3, input_size, input_size, device="cuda").half() for _ in range(2)]
    expected = expected_logits(name, sets[0][:_CHECKED])
    with torch.inference_mode():
        errors = {key: relative_error(model(sets[0])[:_CHECKED].cpu(), expected) for key, model in models.items()}
        right = {key: model for key, model in models.items() if errors[key] <= _BUDGET}
        seconds = measure(right, sets, rounds)
    result = {
        "benchmark": "cuda_model",
        "model": name,
        "batch": batch,
        "input_size": input_size,
        "images_per_second": {key: batch / statistics.median(found) for key, found in seconds.items()},
        "seconds": seconds,
        "errors": errors,
        "wrong": sorted(models.keys() - right.keys()),
        "machine": gpu_machine(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console.print(table_of(result))


if __name__ == "__main__":
    typer.run(main)
