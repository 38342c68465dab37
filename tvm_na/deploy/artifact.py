"""Using an artifact: verified, loaded, called. Imports neither TVM nor Inductor."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_na.deploy.manifest import MODEL, OPERATORS, Manifest, read_manifest, verify

if TYPE_CHECKING:
    from torch import Tensor

    from tvm_na.deploy.artifact_tvm import VMArtifact

# Namespaces of operators that this process has, by the library that it keeps. Equal namespaces are equal code.
_loaded: dict[str, ctypes.CDLL] = {}


class Artifact:
    """A compiled model of the format ``aoti``: ``artifact(images)`` gives what the model gives.

    It needs PyTorch, has no gradients, and computes on the threads that ``torch.set_num_threads`` allows.

    Attributes:
        path: Its folder.
        manifest: What is known of it.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        import torch

        self.path, self.manifest = path, manifest
        load_operators(path / OPERATORS, manifest.code["namespace"])
        # What torch._inductor.aoti_load_package makes after seconds of imports; C++ has it under this name.
        self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path / MODEL), "model", False, 1, -1)

    def __call__(self, images: Tensor) -> Any:
        """The model's output, one tensor or a list of them, for a batch of inputs.

        Args:
            images: On the CPU, of the shape and dtype of ``manifest.input``.

        Raises:
            TypeError, ValueError: ``images`` is not of that kind; names what was required and what came.
        """
        import torch

        self._check(images)
        # The compiled code reads memory in the order of the example's, whatever the strides say.
        plain = images.detach().resolve_neg().contiguous()
        with torch.no_grad():
            outputs = self._loader.boxed_run([plain])
        return list(outputs) if self.manifest.returns_list else outputs[0]

    def _check(self, images: Tensor) -> None:
        import torch

        if not isinstance(images, torch.Tensor):
            raise TypeError(f"images: required a torch.Tensor, got {type(images).__name__}")
        if images.device.type != "cpu" or images.layout != torch.strided:
            got = f"one on {images.device} with layout {images.layout}"
            raise ValueError(f"images: required a dense tensor on the CPU, got {got}")
        self.manifest.check_input(tuple(images.shape), str(images.dtype).removeprefix("torch."))

    def __repr__(self) -> str:
        return f"<artifact {self.path.name}: {self.manifest.model['name']}, {self.manifest.input}>"


def load_operators(library: Path, namespace: str) -> None:
    """Register the operators of an artifact, once in a process."""
    # Another copy of a loaded library would register its operators a second time, which PyTorch refuses.
    if namespace not in _loaded:
        _loaded[namespace] = ctypes.CDLL(str(library))


def load(path: str | os.PathLike[str]) -> Artifact | VMArtifact:
    """The artifact in the folder ``path``, after its manifest and every file were verified.

    An artifact is code, which runs with the rights of this process. The verification finds accidents (a damaged copy,
    another CPU), not attacks: load only what you trust.

    Raises:
        TypeError: ``path`` is no path.
        FileNotFoundError: there is no such folder.
        ValueError: a file is missing or changed, or this machine or its packages cannot run it; nothing of it has run.
        RuntimeError, OSError: PyTorch, TVM's runtime or the dynamic linker cannot load it, say for an older C library.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: required the path of an artifact, got {type(path).__name__} {path!r}")
    folder = Path(path).absolute()
    manifest = read_manifest(folder)
    verify(folder, manifest)
    return made_of(folder, manifest)


def made_of(folder: Path, manifest: Manifest) -> Artifact | VMArtifact:
    """The artifact in a folder, of whichever format, which nobody has verified."""
    if manifest.kind == "aoti":
        return Artifact(folder, manifest)
    from tvm_na.deploy.artifact_tvm import VMArtifact

    return VMArtifact(folder, manifest)
