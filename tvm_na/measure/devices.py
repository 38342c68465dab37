"""Where kernels are measured: on this machine's CPU, on a GPU of it, or behind RPC (``rpc_devices.py``)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tvm_na import settings
from tvm_na.measure.idle import why_busy
from tvm_na.measure.local import WASM, Conditions, LocalMeasurer, Measurer
from tvm_na.targets import cuda_arch as arch
from tvm_na.targets.target import NATarget, check_runs_here
from tvm_na.wasm import machine


class Device(Protocol):
    """Devices that kernels are measured on."""

    def check(self, target: NATarget) -> None:
        """ValueError or RuntimeError if kernels for ``target`` cannot be measured, which says what is required."""

    def threads(self, wanted: int) -> int:
        """Threads of a kernel on a CPU: ``wanted``, or for 0 what there are."""

    def free_bytes(self, target: NATarget) -> int | None:
        """Bytes of a GPU's memory that nobody uses; None where that is not known, or the target no GPU."""

    def about(self, target: NATarget) -> dict[str, str]:
        """What is to be remembered of the devices, by name: the GPU's model."""

    def busy(self) -> str | None:
        """Who else uses the GPU, in words; None if nobody does, or where that is not known."""

    def measurer(self, conditions: Conditions, target: NATarget, log: Path) -> Measurer:
        """What measures there; ``log`` is the file for what its processes print."""


@dataclass(frozen=True)
class LocalDevice:
    """This machine; ``device`` is PyTorch's name of the device: ``cpu``, ``cuda:0``, or ``wasm`` for wasmtime."""

    device: str

    @classmethod
    def of(cls, target: NATarget) -> LocalDevice:
        """The device of this machine that kernels for ``target`` run on; ValueError if there is none.

        RuntimeError for WebAssembly where there is no wasmtime.
        """
        if target.is_wasm:
            machine.require()
            return cls(WASM)
        if target.kind != "cuda":
            check_runs_here(target)
            return cls("cpu")
        found = arch.devices()
        usable = [
            index
            for index, seen in enumerate(found)
            if any(a.name == target.arch and arch.runs_on(a, seen) for a in arch.ARCHS)
        ]
        if not usable:
            got = ", ".join(".".join(map(str, seen)) for seen in found)
            got = f"GPUs of compute capability {got}" if found else "no GPU that PyTorch sees"
            raise ValueError(
                f"target: required a GPU of this machine that runs kernels for {target.name}, or RPC devices that "
                f"do (--rpc HOST:PORT --rpc-key KEY), got {got}"
            )
        import torch

        current = torch.cuda.current_device()
        return cls(f"cuda:{current if current in usable else usable[0]}")

    def check(self, target: NATarget) -> None:
        LocalDevice.of(target)

    def threads(self, wanted: int) -> int:
        return 1 if self.device == WASM else wanted or settings.num_threads()

    def free_bytes(self, target: NATarget) -> int | None:
        if self.device in ("cpu", WASM):
            return None
        import torch

        return int(torch.cuda.mem_get_info(self.device)[0])

    def about(self, target: NATarget) -> dict[str, str]:
        if self.device in ("cpu", WASM):
            return {}
        import torch

        return {"gpu": torch.cuda.get_device_name(self.device)}

    def busy(self) -> str | None:
        if self.device in ("cpu", WASM):
            return None
        import torch

        return why_busy(f"GPU-{torch.cuda.get_device_properties(self.device).uuid}")

    def conditions(self, conditions: Conditions) -> Conditions:
        """``conditions`` for this device."""
        if self.device == WASM:
            return dataclasses.replace(conditions, threads=1, device=WASM)
        return conditions if self.device == "cpu" else conditions.on(self.device)

    def measurer(self, conditions: Conditions, target: NATarget, log: Path) -> LocalMeasurer:
        return LocalMeasurer(self.conditions(conditions), log)
