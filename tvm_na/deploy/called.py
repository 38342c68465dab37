"""What every artifact is to its callers, and what those have in common that take arrays."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_na.deploy.manifest import Manifest
from tvm_na.process import forking

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


class Artifact(ABC):
    """A compiled model: ``artifact(images)`` gives what the model gives; ``manifest`` is what is known of it."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._one_at_a_time = forking.Lock("calling an artifact")

    @abstractmethod
    def __call__(self, images: Any) -> Any:
        """The model's output, one tensor or a list of them, for a batch of inputs.

        Args:
            images: On the CPU, of the shape and dtype of ``manifest.input``.

        Raises:
            TypeError, ValueError: ``images`` is not of that kind; names what was required and what came.
        """

    def __repr__(self) -> str:
        return f"<artifact {self.path.name}: {self.manifest.model['name']}, {self.manifest.input}>"

    def _check(self, images: Any) -> None:
        """TypeError or ValueError for a tensor or an array that the model does not take."""
        if is_tensor(images) and (images.device.type != "cpu" or str(images.layout) != "torch.strided"):
            got = f"one on {images.device} with layout {images.layout}"
            raise ValueError(f"images: required a dense tensor on the CPU, got {got}")
        self.manifest.check_input(tuple(images.shape), str(images.dtype).removeprefix("torch."))

    def _returned(self, outputs: list[Any]) -> Any:
        return outputs if self.manifest.returns_list else outputs[0]


class ArrayArtifact(Artifact):
    """An artifact that takes NumPy arrays and gives them, or tensors where one came."""

    def __call__(self, images: Any) -> Any:
        import numpy as np

        of_torch = is_tensor(images)
        if not of_torch and not isinstance(images, np.ndarray):
            raise TypeError(f"images: required a NumPy array or a PyTorch tensor, got {type(images).__name__}")
        self._check(images)
        outputs = self._in_parts(images.detach().resolve_neg().numpy() if of_torch else images)
        if of_torch:
            import torch

            return self._returned([torch.from_numpy(np.ascontiguousarray(out)) for out in outputs])
        return self._returned(outputs)

    def _in_parts(self, images: Array) -> list[Array]:
        """Outputs for a batch of any size, of which kernels can count the elements of so many samples."""
        import numpy as np

        most = self.manifest.code["largest_batch"]
        if len(images) <= most:
            return self._run(images)
        parts = [self._run(images[first : first + most]) for first in range(0, len(images), most)]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    @abstractmethod
    def _run(self, images: Array) -> list[Array]:
        """Outputs for a batch of at most ``manifest.code["largest_batch"]``."""


def is_tensor(images: Any) -> bool:
    """Whether it is PyTorch's, which nobody has if nobody imported that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(images, torch.Tensor)
