"""A segmenter on NAT: UperNet of Hugging Face transformers, trained on pictures of shapes, then run on one.

``python examples/segment.py --size 256x320 --steps 20``. Without ``--weights`` NAT's weights are random; the
segmenter's always are.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from hf_backbone import NatConfig
from PIL import Image
from rich.table import Table
from shapes import CLASSES, COLORS, Scene, draw_scenes, parse_size, peak_memory, pixels_of, prepare, train
from torch import Tensor
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from tvm_na.cli.common import console, reports_errors

NAMES = ("background", *CLASSES)


@dataclass(frozen=True)
class Overlap:
    """How a class was found: pixels that are of it, pixels that were taken for it, and the share of both in either.

    ``iou`` is None for a class that is neither there nor found.
    """

    name: str
    true: int
    found: int
    iou: float | None


def build_segmenter(config: NatConfig) -> UperNetForSemanticSegmentation:
    """UperNet with a small head (64 channels) on all four stages of NAT, and a smaller one on the third to learn by."""
    return UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=config, hidden_size=64, auxiliary_channels=32, num_labels=len(NAMES))
    )


def loss_of(model: UperNetForSemanticSegmentation, scenes: list[Scene]) -> Tensor:
    """UperNet's own loss: the cross entropy of every pixel, of both heads."""
    return model(pixel_values=pixels_of(scenes), labels=torch.stack([scene.mask for scene in scenes])).loss


@torch.no_grad()
def segment(model: UperNetForSemanticSegmentation, scene: Scene) -> Tensor:
    """The class of each pixel, int64 ``[height, width]``: 0 for background, then rectangle and ellipse."""
    return model(pixel_values=pixels_of([scene])).logits[0].argmax(0)


def overlaps_of(found: Tensor, mask: Tensor) -> list[Overlap]:
    """One per class, of two masks ``[height, width]``."""
    overlaps = []
    for index, name in enumerate(NAMES):
        ours, theirs = found == index, mask == index
        either = int((ours | theirs).sum())
        iou = int((ours & theirs).sum()) / either if either else None
        overlaps.append(Overlap(name, int(theirs.sum()), int(ours.sum()), iou))
    return overlaps


def table_of(overlaps: list[Overlap]) -> Table:
    """One row per class."""
    table = Table(title="masks")
    for column in ("class", "pixels", "found", "overlap (IoU)"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for overlap in overlaps:
        iou = "-" if overlap.iou is None else f"{overlap.iou:.3f}"
        table.add_row(overlap.name, str(overlap.true), str(overlap.found), iou)
    return table


def draw_mask(image: Image.Image, found: Tensor) -> Image.Image:
    """The picture with a color over what was found, the background as it was."""
    colors = torch.tensor([(0, 0, 0), *COLORS], dtype=torch.uint8)[found]
    overlay = Image.frombytes("RGB", image.size, bytes(colors.flatten().tolist()))
    shown = Image.frombytes("L", image.size, bytes(((found > 0) * 150).flatten().tolist()))
    return Image.composite(overlay, image, shown)


@reports_errors
def main(
    model: Annotated[str, typer.Option(help="NAT that the segmenter looks through.")] = "nat_mini",
    weights: Annotated[Path | None, typer.Option(help="Checkpoint of that NAT; random weights if none.")] = None,
    size: Annotated[str, typer.Option(help="Height and width of the pictures in pixels.")] = "256x320",
    steps: Annotated[int, typer.Option(min=0, help="Steps of training.")] = 1,
    # UperNet pools a map to one number per channel, of which its batch normalisation needs two in training.
    batch: Annotated[int, typer.Option(min=2, help="Pictures in a step.")] = 2,
    seed: Annotated[int, typer.Option(help="Of weights and pictures.")] = 0,
    freeze_backbone: Annotated[bool, typer.Option("--freeze-backbone", help="Train the segmenter alone.")] = False,
    output: Annotated[Path, typer.Option(help="The picture.")] = Path("demo/masks.png"),
) -> None:
    """Train UperNet on NAT for some steps on pictures of shapes, then tell the shapes of another from its ground."""
    pixels, rng, out = parse_size(size), random.Random(seed), console()
    torch.manual_seed(seed)
    segmenter = build_segmenter(NatConfig.of(model))
    prepare(segmenter.backbone, weights, pixels, freeze_backbone, out)
    scenes = partial(draw_scenes, pixels, batch, rng)
    out.print(str(train(segmenter, partial(loss_of, segmenter), scenes, steps, rate=5e-4)))
    segmenter.backbone.nat.set_backend("compiled")
    (scene,) = draw_scenes(pixels, 1, rng)
    start = time.perf_counter()
    found = segment(segmenter, scene)
    out.print(f"inference at {size}: {time.perf_counter() - start:.2f} s; peak memory so far {peak_memory():.1f} GB")
    out.print(table_of(overlaps_of(found, scene.mask)))
    output.parent.mkdir(parents=True, exist_ok=True)
    draw_mask(scene.image, found).save(output)
    out.print(f"{output} has the picture", style="bold", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
