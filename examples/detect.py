"""A detector on NAT: RT-DETR of Hugging Face transformers, trained on pictures of shapes, then run on one.

``python examples/detect.py --size 256x320 --steps 20``. Without ``--weights`` NAT's weights are random; the
detector's always are: boxes mean something after some hundred steps.
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
from hf_backbone import NatBackbone, NatConfig
from PIL import Image, ImageDraw
from rich.table import Table
from shapes import CLASSES, COLORS, Scene, draw_scenes, parse_size, peak_memory, pixels_of, prepare, train
from torch import Tensor
from torch.nn import functional as F
from transformers import RTDetrConfig, RTDetrForObjectDetection
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from tvm_na.cli.common import console, reports_errors

#: RT-DETR adds a map of one stage to the next one's doubled in size: sizes are multiples of the coarsest stride.
MULTIPLE = 32


@dataclass(frozen=True)
class Detection:
    """What was found: a score of 0 to 1, a class, and left, top, right and bottom in pixels."""

    score: float
    label: str
    box: tuple[float, float, float, float]


def build_detector(config: NatConfig) -> RTDetrForObjectDetection:
    """RT-DETR with a small encoder and decoder (64 channels, two layers) on three stages of NAT."""
    channels = [config.embed_dim << stage for stage in config.out_indices]
    small = {"d_model": 64, "encoder_hidden_dim": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
    return RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=config,
            encoder_in_channels=channels,
            feat_strides=[4 << stage for stage in config.out_indices],
            decoder_in_channels=[64] * len(channels),
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            decoder_layers=2,
            num_queries=50,
            num_denoising=20,
            num_labels=len(CLASSES),
            **small,
        )
    )


def backbone_of(model: RTDetrForObjectDetection) -> NatBackbone:
    """The detector's NAT."""
    return model.model.backbone.model


def padded(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width that the detector sees: the next multiples of 32."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in size)
    return height, width


def inputs_of(scenes: list[Scene]) -> Tensor:
    """Scenes as the detector's input ``[B, 3, H, W]``, zeros right and bottom up to multiples of 32."""
    pixels = pixels_of(scenes)
    height, width = padded((pixels.shape[2], pixels.shape[3]))
    return F.pad(pixels, (0, width - pixels.shape[3], 0, height - pixels.shape[2]))


def targets_of(scene: Scene) -> dict[str, Tensor]:
    """``class_labels`` ``[n]`` and ``boxes`` ``[n, 4]``: center, width and height over the padded picture's."""
    height, width = padded((scene.image.height, scene.image.width))
    left, top, right, bottom = torch.tensor(scene.boxes, dtype=torch.float32).unbind(1)
    right, bottom = right + 1, bottom + 1  # a shape ends where its last pixel does
    boxes = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], dim=1)
    return {"class_labels": torch.tensor(scene.labels), "boxes": boxes / torch.tensor([width, height, width, height])}


def loss_of(model: RTDetrForObjectDetection, scenes: list[Scene]) -> Tensor:
    """RT-DETR's own loss: boxes matched to shapes, all layers of the decoder, denoising."""
    return model(pixel_values=inputs_of(scenes), labels=[targets_of(scene) for scene in scenes]).loss


@torch.no_grad()
def detect(model: RTDetrForObjectDetection, scene: Scene) -> list[Detection]:
    """One detection per query of the decoder, the best first, cropped to the picture."""
    image = scene.image
    outputs = model(pixel_values=inputs_of([scene]))
    processor = RTDetrImageProcessorPil()
    size = torch.tensor([padded((image.height, image.width))])
    found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=size)[0]
    limit = torch.tensor([image.width, image.height] * 2)
    boxes = found["boxes"].clamp(min=torch.zeros(4), max=limit).tolist()
    rows = zip(found["scores"].tolist(), found["labels"].tolist(), boxes, strict=True)
    return [Detection(score, CLASSES[label], tuple(box)) for score, label, box in rows]


def table_of(detections: list[Detection]) -> Table:
    """One row per detection."""
    table = Table(title="best detections")
    for column in ("class", "score", "left", "top", "right", "bottom"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for detection in detections:
        table.add_row(detection.label, f"{detection.score:.3f}", *(f"{side:.0f}" for side in detection.box))
    return table


def draw_detections(image: Image.Image, detections: list[Detection]) -> Image.Image:
    """The picture with a box, a class and a score for each detection."""
    picture = image.copy()
    pen = ImageDraw.Draw(picture)
    for detection in reversed(detections):  # the best on top
        color = COLORS[CLASSES.index(detection.label)]
        pen.rectangle(detection.box, outline=color, width=3)
        says = f"{detection.label} {detection.score:.2f}"
        pen.text(detection.box[:2], says, fill="white", stroke_width=1, stroke_fill=color)
    return picture


@reports_errors
def main(
    model: Annotated[str, typer.Option(help="NAT that the detector looks through.")] = "nat_mini",
    weights: Annotated[Path | None, typer.Option(help="Checkpoint of that NAT; random weights if none.")] = None,
    size: Annotated[str, typer.Option(help="Height and width of the pictures in pixels.")] = "256x320",
    steps: Annotated[int, typer.Option(min=0, help="Steps of training.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Pictures in a step.")] = 2,
    seed: Annotated[int, typer.Option(help="Of weights and pictures.")] = 0,
    freeze_backbone: Annotated[bool, typer.Option("--freeze-backbone", help="Train the detector alone.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Detections to show.")] = 5,
    output: Annotated[Path, typer.Option(help="The picture.")] = Path("demo/detections.png"),
) -> None:
    """Train RT-DETR on NAT for some steps on pictures of shapes, then find the shapes of another picture."""
    pixels, rng, out = parse_size(size), random.Random(seed), console()
    torch.manual_seed(seed)
    detector = build_detector(NatConfig.of(model, out_indices=(1, 2, 3)))
    backbone = backbone_of(detector)
    prepare(backbone, weights, padded(pixels), freeze_backbone, out)
    scenes = partial(draw_scenes, pixels, batch, rng)
    out.print(str(train(detector, partial(loss_of, detector), scenes, steps, rate=5e-4)))
    backbone.nat.set_backend("compiled")
    (scene,) = draw_scenes(pixels, 1, rng)
    start = time.perf_counter()
    detections = detect(detector, scene)[:top]
    out.print(f"inference at {size}: {time.perf_counter() - start:.2f} s; peak memory so far {peak_memory():.1f} GB")
    out.print(table_of(detections))
    output.parent.mkdir(parents=True, exist_ok=True)
    draw_detections(scene.image, detections).save(output)
    out.print(f"{output} has the picture", style="bold", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
