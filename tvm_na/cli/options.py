"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

#: The names of :class:`tvm_na.functional.Backend`, which would import PyTorch.
BackendName = Literal["auto", "compiled", "reference"]

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model, such as nat_mini.")]
ModelOrArtifact = Annotated[
    str, typer.Argument(metavar="MODEL|ARTIFACT", help="Name of a model, such as nat_mini, or path of an artifact.")
]
Weights = Annotated[Path | None, typer.Option(help="Checkpoint (.pth, .safetensors); random weights if not given.")]
Labels = Annotated[Path | None, typer.Option(help="Text file with the label of each class, one per line.")]
NumClasses = Annotated[int | None, typer.Option(min=1, help="Number of classes; by default that of --labels, or 1000.")]
Backend = Annotated[BackendName | None, typer.Option(help="Backend of a model's attention; auto if not given.")]
InputSize = Annotated[
    int | None, typer.Option(min=32, help="Height and width of images in pixels; the model's own if not given.")
]
Size = Annotated[tuple[int, int], typer.Option(help="Height and width of the feature map.")]
Heads = Annotated[int, typer.Option(help="Number of attention heads.")]
HeadDim = Annotated[int, typer.Option(help="Channels of each head.")]
KernelSize = Annotated[int, typer.Option(help="Window length along each axis.")]
Dilation = Annotated[int, typer.Option(help="Step between neighboring keys.")]
Stride = Annotated[int, typer.Option(help="Queries that share a window.")]
Causal = Annotated[bool, typer.Option("--causal", help="Causal attention: only keys at or before the query.")]
Bias = Annotated[bool, typer.Option("--rpb", help="Add a relative position bias.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Batch size.")]
Rounds = Annotated[int, typer.Option(min=1, help="Samples of every candidate.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
