"""Folders of photographs, one folder per class, as batches for examples/finetune_photos.py."""

from __future__ import annotations

import hashlib
import math
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from guards import drawing
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from training import Batch

from tvm_na.cli.common import warn
from tvm_na.images.decode import load_image
from tvm_na.images.preprocessing import Preprocessing
from tvm_na.models.preprocessing import preprocess, to_tensor

#: Share of a photograph that a crop for training has of its area, and its width over its height.
AREA, RATIO = (0.35, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Photo:
    """A file, and the index of its class."""

    path: Path
    label: int


def classes_of(folder: Path) -> list[str]:
    """The classes: names of the folders in a folder, sorted.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: There are less than two classes in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"photos: required an existing folder, got {folder}")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise ValueError(f"photos: required a folder per class, two at least, got {len(classes)} in {folder}")
    return classes


def find_photos(folder: Path, classes: Sequence[str]) -> list[Photo]:
    """The image files below the folders of the classes, by their names; other files do not count.

    Raises:
        FileNotFoundError, ValueError: There is no such folder, none for a class, or one for no class.
    """
    unknown = sorted(set(classes_of(folder)) - set(classes))
    if unknown:
        raise ValueError(
            f"photos: required folders of the classes {', '.join(classes)}, got {unknown[0]!r} in {folder}"
        )
    suffixes, photos = Image.registered_extensions(), []
    for label, name in enumerate(classes):
        files = sorted(file for file in (folder / name).rglob("*") if file.suffix.lower() in suffixes)
        files = [file for file in files if file.is_file() and not file.name.startswith(".")]
        if not files:
            raise ValueError(f"photos: required images of every class, got none in {folder / name}")
        photos += [Photo(file, label) for file in files]
    return photos


def split(photos: Sequence[Photo], share: float, seed: int) -> tuple[list[Photo], list[Photo]]:
    """Photographs for training and for validation: ``share`` of each class for the latter, one at least.

    Raises:
        ValueError: A class has a single photograph, or ``share`` is not between 0 and 1.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"val-share: required a share between 0 and 1, got {share}")
    training, validation = [], []
    for label in sorted({photo.label for photo in photos}):
        ours = [photo for photo in photos if photo.label == label]
        if len(ours) < 2:
            raise ValueError(f"photos: required 2 images of a class at least, or --val, got {ours[0].path} alone")
        drawing(seed, label).shuffle(ours)
        count = min(max(1, round(share * len(ours))), len(ours) - 1)
        validation += ours[:count]
        training += ours[count:]
    return training, validation


def digest_of(photos: Sequence[Photo]) -> str:
    """How many photographs these are, and a digest of their classes and names, wherever their folder is."""
    text = "\n".join(f"{photo.label} {'/'.join(photo.path.parts[-2:])}" for photo in photos)
    return f"{len(photos)} images {hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:12]}"


def random_crop(image: Image.Image, size: int, rng: random.Random) -> Image.Image:
    """A part of an image, of random size, shape and place, as a square; every other one mirrored."""
    width, height = image.size
    area, ratio = rng.uniform(*AREA) * width * height, math.exp(rng.uniform(*map(math.log, RATIO)))
    w, h = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


@dataclass
class _Reader(Dataset):
    """Photographs as tensors, those of an epoch of training randomly cropped; of a broken one, why it is."""

    photos: Sequence[Photo]
    preprocessing: Preprocessing
    place: tuple[int, ...] | None

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int] | str:
        photo = self.photos[index]
        try:
            image = load_image(photo.path)
        except (OSError, ValueError) as error:
            return str(error)
        if self.place is None:
            return preprocess(image, self.preprocessing), photo.label
        crop = random_crop(image, self.preprocessing.input_size, drawing(*self.place, index))
        return to_tensor(crop, self.preprocessing), photo.label


def _ignore_interrupts(_: int) -> None:
    """Ctrl-C goes to all processes; the parent ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(samples: list) -> list:
    return samples


@dataclass
class Batches:
    """Photographs in batches, without those that are broken: each is named once.

    Attributes:
        photos: All of them.
        preprocessing: How they become inputs.
        batch_size: The most in a batch; batches differ by one at most.
        seed: Of order and crops.
        workers: Processes that read; 0 for none but this one.
    """

    photos: Sequence[Photo]
    preprocessing: Preprocessing
    batch_size: int
    seed: int = 0
    workers: int = 0
    broken: set[str] = field(default_factory=set, init=False)

    def __len__(self) -> int:
        return math.ceil(len(self.photos) / self.batch_size)

    def of_epoch(self, epoch: int, skipped: int = 0) -> Iterator[Batch]:
        """In random order and randomly cropped, without the first ``skipped``."""
        order = list(range(len(self.photos)))
        drawing(self.seed, epoch).shuffle(order)
        return self._read(order, (self.seed, epoch), skipped)

    def in_order(self) -> Iterator[Batch]:
        """As they are used: resized, the center cropped."""
        return self._read(list(range(len(self.photos))), None, 0)

    def _read(self, order: list[int], place: tuple[int, ...] | None, skipped: int) -> Iterator[Batch]:
        parts = [part.tolist() for part in torch.tensor(order).tensor_split(len(self))][skipped:]
        loader = DataLoader(
            _Reader(self.photos, self.preprocessing, place),
            batch_sampler=parts,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # of its own: it draws a number for the workers
        )
        for samples in loader:
            self._name_broken([sample for sample in samples if isinstance(sample, str)])
            whole = [sample for sample in samples if not isinstance(sample, str)]
            size = self.preprocessing.input_size
            inputs = torch.stack([x for x, _ in whole]) if whole else torch.empty(0, 3, size, size)
            yield inputs, torch.tensor([label for _, label in whole], dtype=torch.int64)

    def _name_broken(self, messages: list[str]) -> None:
        for message in messages:
            if message not in self.broken:
                self.broken.add(message)
                warn(f"skipped: {message}")
