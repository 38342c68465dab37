"""Using an artifact of the format ``tvm``: needs NumPy and TVM's runtime of 4 MB, not PyTorch or the rest of TVM."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_na.deploy import weights
from tvm_na.deploy.manifest import LIBRARY, RUNTIME, WEIGHTS, Manifest
from tvm_na.jit import runtime

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# Of Relax's virtual machine: the device's kind and number, and an allocator that keeps memory for the next call.
_CPU, _POOLED = (1, 0), 2


class VMArtifact:
    """A compiled model of the format ``tvm``: ``artifact(images)`` gives what the model gives.

    It computes on TVM_NA_NUM_THREADS threads, or as many as the process has cores. Calls from several threads wait for
    each other.

    Attributes:
        path: Its folder.
        manifest: What is known of it.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        runtime.load_for_artifact(path / RUNTIME)
        import tvm_ffi

        self.path, self.manifest = path, manifest
        mapped = weights.map_weights(path / WEIGHTS)
        self._weights = [tvm_ffi.from_dlpack(mapped[name]) for name in manifest.code["weights"]]
        machine = tvm_ffi.load_module(str(path / LIBRARY))["vm_load_executable"]()
        machine["vm_initialization"](*_CPU, _POOLED)
        self._main, self._machine = machine["main"], machine
        self._one_at_a_time = threading.Lock()

    def __call__(self, images: Any) -> Any:
        """The model's output, one array or a list of them, for a batch of inputs.

        Args:
            images: A NumPy array, or a PyTorch tensor on the CPU, of the shape and dtype of ``manifest.input``.

        Returns:
            Arrays, or tensors where one came.

        Raises:
            TypeError, ValueError: ``images`` is not of that kind; names what was required and what came.
        """
        import numpy as np

        torch = sys.modules.get("torch")
        is_tensor = torch is not None and isinstance(images, torch.Tensor)
        array = self._checked(_as_array(images) if is_tensor else images)
        outputs = self._in_parts(array)
        if is_tensor:
            assert torch is not None
            outputs = [torch.from_numpy(np.ascontiguousarray(out)) for out in outputs]
        return outputs if self.manifest.returns_list else outputs[0]

    def _checked(self, images: Any) -> Array:
        import numpy as np

        if not isinstance(images, np.ndarray):
            raise TypeError(f"images: required a NumPy array or a PyTorch tensor, got {type(images).__name__}")
        self.manifest.check_input(images.shape, str(images.dtype))
        return images

    def _in_parts(self, images: Array) -> list[Array]:
        """Outputs for a batch of any size, of which kernels can count the elements of so many samples."""
        import numpy as np

        most = self.manifest.code["largest_batch"]
        if len(images) <= most:
            return self._run(images)
        parts = [self._run(images[first : first + most]) for first in range(0, len(images), most)]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _run(self, images: Array) -> list[Array]:
        import numpy as np
        import tvm_ffi

        with self._one_at_a_time:
            runtime.use_all_threads()
            found = self._main(tvm_ffi.from_dlpack(weights.aligned(images)), *self._weights)
            outputs = [found] if isinstance(found, tvm_ffi.Tensor) else list(found)
            return [np.from_dlpack(out) for out in outputs]

    def __repr__(self) -> str:
        return f"<artifact {self.path.name}: {self.manifest.model['name']}, {self.manifest.input}>"


def _as_array(images: Any) -> Any:
    """The memory of a PyTorch tensor as an array."""
    if images.device.type != "cpu" or str(images.layout) != "torch.strided":
        got = f"one on {images.device} with layout {images.layout}"
        raise ValueError(f"images: required a dense tensor on the CPU, got {got}")
    if images.dtype.is_floating_point and images.itemsize == 2:  # NumPy has no bfloat16
        raise TypeError(f"images: required float32 or float64, got {images.dtype}")
    return images.detach().resolve_neg().numpy()
