"""Using an artifact: verified, loaded, called. Imports neither TVM nor Inductor, and PyTorch only if it needs that."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_na.deploy import weights
from tvm_na.deploy.called import ArrayArtifact
from tvm_na.deploy.called import Artifact as Artifact
from tvm_na.deploy.manifest import LIBRARY, MODEL, OPERATORS, RUNTIME, WEIGHTS, Manifest, read_manifest, verify
from tvm_na.deploy.wasm.artifact import WasmArtifact
from tvm_na.process import forking

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# Namespaces of operators that this process has, by the library that it keeps. Equal namespaces are equal code.
_loaded: dict[str, ctypes.CDLL] = {}
# Of Relax's virtual machine: the device's kind and number, and an allocator that keeps memory for the next call.
_CPU, _POOLED = (1, 0), 2


class TorchArtifact(Artifact):
    """An artifact of the format ``aoti``, which takes and gives tensors.

    It needs PyTorch, has no gradients, and computes on the threads that ``torch.set_num_threads`` allows.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        import torch

        super().__init__(path, manifest)
        forking.computed()
        load_operators(path / OPERATORS, manifest.code["namespace"])
        # What torch._inductor.aoti_load_package makes after seconds of imports; C++ has it under this name.
        self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path / MODEL), "model", False, 1, -1)

    def __call__(self, images: Any) -> Any:
        import torch

        if not isinstance(images, torch.Tensor):
            raise TypeError(f"images: required a torch.Tensor, got {type(images).__name__}")
        self._check(images)
        # The compiled code reads memory in the order of the example's, whatever the strides say.
        plain = images.detach().resolve_neg().contiguous()
        with self._one_at_a_time, torch.no_grad():
            return self._returned(list(self._loader.boxed_run([plain])))


class VMArtifact(ArrayArtifact):
    """An artifact of the format ``tvm``, which takes NumPy arrays and gives them, or tensors where one came.

    It needs NumPy and TVM's runtime of 4 MB, not PyTorch or the rest of TVM. It computes on TVM_NA_NUM_THREADS threads,
    or as many as the process has cores. Calls from several threads wait for each other.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        from tvm_na.jit import runtime

        runtime.load_for_artifact(path / RUNTIME)
        import tvm_ffi

        super().__init__(path, manifest)
        mapped = weights.map_weights(path / WEIGHTS)
        if missing := [name for name in manifest.code["weights"] if name not in mapped]:
            raise ValueError(f"{path / WEIGHTS}: required the weights that the manifest names, got no {missing[0]}")
        self._weights = [_tensor(mapped[name]) for name in manifest.code["weights"]]
        machine = tvm_ffi.load_module(str(path / LIBRARY))["vm_load_executable"]()
        machine["vm_initialization"](*_CPU, _POOLED)
        self._main, self._machine = machine["main"], machine

    def _run(self, images: Array) -> list[Array]:
        import numpy as np
        import tvm_ffi

        from tvm_na.jit import runtime

        with self._one_at_a_time:
            runtime.use_all_threads()
            found = self._main(tvm_ffi.from_dlpack(weights.aligned(images)), *self._weights)
            outputs = [found] if isinstance(found, tvm_ffi.Tensor) else list(found)
            return [np.from_dlpack(out) for out in outputs]


def _tensor(array: Array) -> Any:
    """An array of :func:`.weights.map_weights` as TVM's, which knows bfloat16."""
    import tvm_ffi

    tensor = tvm_ffi.from_dlpack(array)
    if array.dtype != "uint16":
        return tensor
    view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    return view(tensor, tvm_ffi.Shape(array.shape), tvm_ffi.dtype("bfloat16"), 0)


def load_operators(library: Path, namespace: str) -> None:
    """Register the operators of an artifact, once in a process."""
    # Another copy of a loaded library would register its operators a second time, which PyTorch refuses.
    if namespace not in _loaded:
        _loaded[namespace] = ctypes.CDLL(str(library))


def load(path: str | os.PathLike[str]) -> Artifact:
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


def made_of(folder: Path, manifest: Manifest) -> Artifact:
    """The artifact in a folder, of whichever format, which nobody has verified."""
    kind = {"aoti": TorchArtifact, "tvm": VMArtifact, "wasm": WasmArtifact}[manifest.kind]
    return kind(folder, manifest)
