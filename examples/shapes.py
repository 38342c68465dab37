"""What examples/detect.py and examples/segment.py share: pictures of shapes, steps of training on them, options.

There are no photographs with boxes here, nor weights that would know them; shapes have exact boxes and masks.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from hf_backbone import NatBackbone
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from tvm_na.cli.common import warn
from tvm_na.jit.progress import build_kernels
from tvm_na.models import problems_of
from tvm_na.models.preprocessing import to_tensor
from tvm_na.models.registry import IMAGENET_224

CLASSES = ("rectangle", "ellipse")
#: The least height and width: a map of the last stage then has 2 by 2 positions.
SMALLEST = 64
COLORS = ((230, 57, 70), (42, 157, 143))

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Attributes:
        image: RGB.
        labels: Index into :data:`CLASSES` of each shape.
        boxes: Left, top, right and bottom pixel of each shape, all inside it.
        mask: int64 ``[height, width]``: 0 for background, the label plus 1 for a shape.
    """

    image: Image.Image
    labels: tuple[int, ...]
    boxes: tuple[Box, ...]
    mask: Tensor


@dataclass(frozen=True)
class Training:
    """The loss before each step, and how many seconds all of them took."""

    losses: tuple[float, ...]
    seconds: float

    def __str__(self) -> str:
        if not self.losses:
            return "no training"
        steps, each = len(self.losses), f"{self.seconds / len(self.losses):.2f} s"
        if steps == 1:
            return f"loss {self.losses[0]:.3f}; 1 step of {each}"
        return f"loss {self.losses[0]:.3f} to {self.losses[-1]:.3f}; {steps} steps of {each}"


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of "256x320"; ValueError for anything else and for less than 64 pixels."""
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) >= SMALLEST for side in sides):
        raise ValueError(f"size: required height and width of at least {SMALLEST} such as 256x320, got {text!r}")
    return int(sides[0]), int(sides[1])


def draw_scene(size: tuple[int, int], rng: random.Random) -> Scene:
    """One to four shapes of any color on noise, none on top of another; ``size`` is height and width in pixels."""
    height, width = size
    ground = tuple(rng.randint(0, 90) for _ in range(3))
    noise = Image.frombytes("RGB", (width, height), rng.randbytes(3 * height * width))
    image = Image.blend(Image.new("RGB", (width, height), ground), noise, 0.15)
    mask = Image.new("L", (width, height))
    labels, boxes = [], []
    for box in _draw_boxes(size, rng):
        label = rng.randrange(len(CLASSES))
        color = tuple(rng.randint(100, 255) for _ in range(3))
        for canvas, fill in ((image, color), (mask, label + 1)):
            pen = ImageDraw.Draw(canvas)
            (pen.rectangle, pen.ellipse)[label](box, fill=fill)
        labels.append(label)
        boxes.append(box)
    classes = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8).view(height, width).long()
    return Scene(image, tuple(labels), tuple(boxes), classes)


def _draw_boxes(size: tuple[int, int], rng: random.Random) -> list[Box]:
    """One to four boxes apart from each other, an eighth to half of the picture in height and width."""
    height, width = size
    boxes: list[Box] = []
    for _ in range(rng.randint(1, 4)):
        h, w = (rng.randint(side // 8, side // 2) for side in size)
        top, left = rng.randrange(height - h), rng.randrange(width - w)
        box = (left, top, left + w, top + h)
        if all(box[0] > b[2] or b[0] > box[2] or box[1] > b[3] or b[1] > box[3] for b in boxes):
            boxes.append(box)
    return boxes


def draw_scenes(size: tuple[int, int], count: int, rng: random.Random) -> list[Scene]:
    """``count`` scenes of one size."""
    return [draw_scene(size, rng) for _ in range(count)]


def pixels_of(scenes: list[Scene]) -> Tensor:
    """Scenes of one size as a model's input: float32 ``[B, 3, height, width]``, normalised as NAT was trained."""
    return torch.stack([to_tensor(scene.image, IMAGENET_224) for scene in scenes])


def prepare(backbone: NatBackbone, weights: Path | None, size: tuple[int, int], freeze: bool, console: Console) -> None:
    """Load weights, build the kernels for images of ``size``, choose who computes attention in training.

    Raises:
        FileNotFoundError, ValueError: ``weights`` is no checkpoint of this NAT.
    """
    if weights is None:
        warn("NAT has random weights")
    elif (report := backbone.load(weights)).adapted:
        warn(f"{weights} does not fit as it is\n{report}")
    built = build_kernels(problems_of(backbone.nat, size), console)
    console.print(f"{built} kernels built" if built else "every kernel was in the cache")
    if freeze:
        backbone.freeze()
    # What is frozen needs no gradient. For the rest "auto" warns if it has to take the reference.
    backbone.nat.set_backend("compiled" if freeze else "auto")


def train(
    model: nn.Module, loss_of: Callable[[list[Scene]], Tensor], draw: Callable[[], list[Scene]], steps: int, rate: float
) -> Training:
    """Steps of AdamW, each on new scenes; the model is in evaluation mode afterwards.

    Args:
        model: What learns.
        loss_of: The loss of scenes.
        draw: New scenes.
        steps: How many; 0 leaves the model as it is.
        rate: The learning rate.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0)
    losses, start = [], time.perf_counter()
    model.train()
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}", markup=False)) as progress:
        task = progress.add_task("", total=steps)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(draw())
            loss.backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            losses.append(loss.item())
            progress.update(task, advance=1, description=f"loss {losses[-1]:.3f}")
    model.eval()
    return Training(tuple(losses), time.perf_counter() - start)


def peak_memory() -> float:
    """The most memory that this process has had so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
