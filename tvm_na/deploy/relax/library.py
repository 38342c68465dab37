"""A graph of kernel calls as a Relax module, and that as one library that needs TVM's runtime alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from tvm_na.deploy.export import exported
from tvm_na.deploy.relax.kernels import Kernel
from tvm_na.deploy.rewrite import Node
from tvm_na.deploy.weights import ALIGNMENT
from tvm_na.jit.library import Link, write_library
from tvm_na.schedules.cpu import elementwise as generic
from tvm_na.targets.target import NATarget
from tvm_na.tune import metaschedule

#: The function of the library that computes the model: ``main(input, weights...) -> output or tuple of outputs``.
MAIN = "main"
_OPAQUE = 8  # of TVM's patterns of operators: fused with nothing
# What TVM calls functions that would be worth a search space.
_PRODUCTS = ("matmul", "conv")


@dataclass(frozen=True)
class Library:
    """A compiled model, still without a file.

    Attributes:
        weights: What ``main`` takes after the input, in this order, by name.
        untuned: Functions with much work for which there is no search space.
    """

    weights: dict[str, np.ndarray[Any, Any]]
    untuned: list[str]
    executable: Any

    def write(self, file: Path, link: Link | None = None) -> None:
        """Write the shared library, linked by ``link``, or by the C++ compiler."""
        write_library(self.executable.mod, file, link)


@dataclass(frozen=True)
class Lowered:
    """A graph of kernel calls as a Relax module whose every function is scheduled, still without code.

    Attributes:
        module: Its ``main`` calls its PrimFuncs.
        weights, untuned: As of :class:`Library`.
    """

    module: Any
    weights: dict[str, np.ndarray[Any, Any]]
    untuned: list[str]


def compile_graph(
    module: fx.GraphModule, kernels: list[Kernel], example: Tensor, batch: int | None, target: NATarget
) -> Library:
    """Compile a graph of kernel calls (:meth:`tvm_na.deploy.relax.kernels.Kernels.call_in`).

    ``batch`` is the only one that it is to take, of inputs like ``example``; None for any.

    Raises:
        NotImplementedError: it has something left that Relax does not compile.
    """
    lowered = lower_graph(module, kernels, example, batch, target)
    import tvm

    tvm_target = target.tvm_target()
    with tvm_target:
        executable = tvm.compile(lowered.module, target=tvm_target)
    return Library(lowered.weights, lowered.untuned, executable)


def lower_graph(
    module: fx.GraphModule, kernels: list[Kernel], example: Tensor, batch: int | None, target: NATarget
) -> Lowered:
    """Fuse and schedule a graph of kernel calls; arguments and errors as of :func:`compile_graph`."""
    _require_importable(module)
    metaschedule.skip_tensor_intrinsics()  # Relax imports MetaSchedule, which imports them
    relaxed, weights = _import(module, kernels, example, batch)
    with target.tvm_target():
        relaxed = _fused(relaxed)
        untuned = [name for name, _ in generic.unscheduled(relaxed) if any(word in name for word in _PRODUCTS)]
        return Lowered(generic.scheduled(relaxed), weights, untuned)


def _require_importable(module: fx.GraphModule) -> None:
    """NotImplementedError for convolutions in float64, which TVM's importer gives a float32 output."""
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.conv2d.default and node.meta["val"].dtype == torch.float64:
            raise NotImplementedError(f"no kernel for a float64 convolution with groups or dilation, got {node.name}")


def _import(
    module: fx.GraphModule, kernels: list[Kernel], example: Tensor, batch: int | None
) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    from tvm.relax.frontend import detach_params
    from tvm.relax.frontend.torch import from_exported_program

    for parameter in module.parameters():
        if parameter.data_ptr() % ALIGNMENT:  # the importer would take it through NumPy, which has no bfloat16
            parameter.data = parameter.data.clone()
    program = exported(module, example, batch)
    names = [program.graph_signature.inputs_to_parameters[str(name)] for name in _weight_inputs(program)]
    converters = {"call.default": lambda node, importer: _convert(node, importer, kernels)}
    relaxed = from_exported_program(
        program, keep_params_as_input=True, unwrap_unit_return_tuple=True, custom_convert_map=converters
    )
    relaxed, _ = detach_params(relaxed)
    tensors = dict(program.named_parameters())
    return relaxed, {name: _bits(tensors[name].detach()).numpy() for name in names}


def _bits(tensor: Tensor) -> Tensor:
    """The tensor, or of bfloat16, which NumPy lacks, its bits."""
    return tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor


def _weight_inputs(program: Any) -> list[str]:
    kind = torch.export.graph_signature.InputKind
    specs = program.graph_signature.input_specs
    other = [spec.target for spec in specs if spec.kind not in (kind.USER_INPUT, kind.PARAMETER)]
    if other:
        raise AssertionError(f"a graph of kernel calls has parameters alone, got also {', '.join(map(str, other))}")
    return [spec.arg.name for spec in specs if spec.kind is kind.PARAMETER]


def _convert(node: Node, importer: Any, kernels: list[Kernel]) -> Any:
    """A call of a kernel in Relax: inputs reshaped to what it takes, outputs to what the graph has."""
    from tvm import relax

    inputs, number = node.args
    kernel, builder = kernels[number], importer.block_builder
    func = kernel.func.with_attr("global_symbol", kernel.name).with_attr("op_pattern", _OPAQUE)
    func = func.with_attr("tirx.is_scheduled", True)
    known = {var.name_hint: var for var in builder.get().get_global_vars()}
    variable = known.get(kernel.name) or builder.add_func(func, kernel.name)
    given = [importer.env[value] for value in inputs]
    batch = given[0].ty.shape[0]
    wanted = [_shape(kernel, i, batch) for i in range(len(kernel.func.params))]
    taken = [builder.emit(relax.op.reshape(x, shape)) for x, shape in zip(given, wanted, strict=False)]
    dtypes = [str(buffer.dtype) for buffer in kernel.func.params]
    types = [relax.TensorType(s, d) for s, d in zip(wanted[len(given) :], dtypes[len(given) :], strict=True)]
    out = builder.emit(relax.call_tir(variable, taken, types if len(types) > 1 else types[0]))
    outs = [out] if len(types) == 1 else [builder.emit(relax.TupleGetItem(out, i)) for i in range(len(types))]
    shapes = [(batch, *map(int, value.shape[1:])) for value in node.meta["val"]]
    return [builder.emit(relax.op.reshape(out, shape)) for out, shape in zip(outs, shapes, strict=True)]


def _shape(kernel: Kernel, parameter: int, batch: Any) -> list[Any]:
    """The shape that a kernel's parameter has for a batch."""
    return [int(n) if hasattr(n, "value") else batch for n in kernel.func.params[parameter].shape]


def _fused(module: Any) -> Any:
    import tvm
    from tvm.relax import transform

    passes = [
        transform.LegalizeOps(),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
    ]
    return tvm.transform.Sequential(passes)(module)
