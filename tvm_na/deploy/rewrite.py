"""A program in terms of the layers that we have kernels for: products with their epilogues, and norms.

The graph of :func:`layered` calls :func:`dense` and :func:`norm` where the model had linear layers, convolutions,
activations, residual sums and layer norms. It can be run as it is, which says whether the rewriting is right.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (defines the operators quantized_decomposed)
from torch.export import ExportedProgram
from torch.nn import functional as F

#: A node of a graph. The type that torch.fx has says of its arguments that they may be anything.
Node = Any

_aten = torch.ops.aten
# In a functional graph these are their first argument.
_IDENTITIES = {_aten.clone.default, _aten.contiguous.default, _aten.detach.default, _aten.alias.default}
_CHANNELS_LAST, _CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    weight_scale: Tensor | None = None,
) -> Tensor:
    """A linear layer or a convolution over channels-last maps, an activation, and a residual sum.

    Args:
        x: ``[batch, *spatial, in]``.
        weight: ``[out, in, *kernel]``; without kernel axes a linear layer's. May be float16 where ``x`` is float32.
        bias: ``[out]``.
        residual: ``[batch, *out_spatial, out]``, added last.
        activation: ``none`` or ``gelu``.
        stride, padding: Per kernel axis.
        weight_scale: ``[out]``, what int8 weights are to be multiplied by.
    """
    if weight_scale is not None:
        weight = dequantized(weight, weight_scale)
    elif weight.dtype != x.dtype:
        weight = widened(weight, x.dtype)
    if weight.ndim == 2:
        out = F.linear(x, weight, bias)
    else:
        out = F.conv2d(x.permute(_CHANNELS_FIRST), weight, bias, stride, padding).permute(_CHANNELS_LAST)
    if activation == "gelu":
        out = F.gelu(out)
    return out if residual is None else out + residual


def dequantized(weight: Tensor, scale: Tensor) -> Tensor:
    """int8 ``weight [out, ...]`` times ``scale [out]`` in float32, by the operator that Inductor does not fold."""
    operator = torch.ops.quantized_decomposed.dequantize_per_channel.default
    zeros = torch.zeros_like(scale, dtype=torch.int64)  # Inductor's lowering wants some
    found: Tensor = operator(weight, scale, zeros, 0, -127, 127, torch.int8)
    return found


def widened(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``weight`` in another dtype, by the operator that Inductor does not fold."""
    found: Tensor = torch.ops.quantized_decomposed.convert_element_type.no_fuse(weight, dtype)
    return found


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last axis: ``[..., channels]``."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def layered(program: ExportedProgram) -> fx.GraphModule:
    """The graph of a functional program with :func:`dense` and :func:`norm` in it; constants are its attributes."""
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    _drop_identities(module)
    _fold_constants(module)
    for node in _calls(module, _aten.conv2d.default):
        _lower_conv(module, node)
    for node in _calls(module, _aten.gelu.default):
        _swap_with_permute(module, node)
    _cancel_permutes(module)
    for node in _calls(module, _aten.linear.default):
        _lower_linear(module, node)
    for node in _calls(module, _aten.layer_norm.default):
        _lower_norm(module, node)
    for node in _calls(module, dense):
        _absorb(module, node)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def constant_of(module: fx.GraphModule, node: Node) -> Tensor:
    """The value of a ``get_attr`` node."""
    value = operator.attrgetter(str(node.target))(module)
    assert isinstance(value, Tensor)
    return value.detach()


def _calls(module: fx.GraphModule, target: Any) -> Iterator[Node]:
    yield from [n for n in module.graph.nodes if n.op == "call_function" and n.target is target]


def _value(node: Any) -> Tensor:
    found: Tensor = node.meta["val"]
    return found


def _replace(module: fx.GraphModule, node: Node, target: Callable[..., Any], args: tuple[Any, ...]) -> Node:
    """A call in place of a node, with the same value."""
    with module.graph.inserting_before(node):
        new = module.graph.call_function(target, args)
    new.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)
    return new


def _drop_identities(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    for view in (_aten.view.default, _aten._unsafe_view.default):  # what is viewed may have been a copy
        for node in _calls(module, view):
            node.target = _aten.reshape.default


def _fold_constants(module: fx.GraphModule) -> None:
    """Compute what depends on constants alone."""
    known: dict[Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            known[node] = constant_of(module, node)
        elif node.op == "call_function" and node.all_input_nodes and all(n in known for n in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = value = node.target(*args, **kwargs)
            if isinstance(value, Tensor):
                with module.graph.inserting_before(node):
                    constant = new_constant(module, node.name, value)
                known[constant] = value
                node.replace_all_uses_with(constant)


def new_constant(module: fx.GraphModule, name: str, value: Tensor) -> Node:
    """A new attribute of the module, and the node that gets it, at the graph's insertion point."""
    name = f"constant_{name}"
    module.register_parameter(name, nn.Parameter(value.contiguous(), requires_grad=False))
    node = module.graph.get_attr(name)
    node.meta["val"] = value
    return node


def _is_constant(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _has_fixed_sizes(node: Node) -> bool:
    """Whether a value is ``[batch, ...]`` with sizes that are all known but the batch."""
    shape = _value(node).shape
    return len(shape) >= 2 and all(isinstance(size, int) for size in shape[1:])


def _lower_conv(module: fx.GraphModule, node: Node) -> None:
    """A convolution without dilation and groups as a product over channels-last maps, between permutations."""
    defaults: list[Any] = [None, [1, 1], [0, 0], [1, 1], 1]
    x, weight, bias, stride, padding, dilation, groups = list(node.args) + defaults[len(node.args) - 2 :]
    plain = all(d == 1 for d in dilation) and groups == 1 and _is_constant(weight)
    if not (plain and _has_fixed_sizes(x) and _value(x).ndim == 4):
        return
    if any(p >= k for p, k in zip(_pair(padding), _value(weight).shape[2:], strict=True)):
        return
    with module.graph.inserting_before(node):
        last = _permuted(module, x, _CHANNELS_LAST)
        out = module.graph.call_function(dense, (last, weight, bias, None, "none", _pair(stride), _pair(padding)))
    out.meta["val"] = _value(node).permute(_CHANNELS_LAST)
    _replace(module, node, _aten.permute.default, (out, _CHANNELS_FIRST))


def _pair(values: Any) -> tuple[int, ...]:
    return (values[0], values[-1])


def _permuted(module: fx.GraphModule, x: Node, order: list[int]) -> Node:
    new = module.graph.call_function(_aten.permute.default, (x, order))
    new.meta["val"] = _value(x).permute(order)
    return new


def _swap_with_permute(module: fx.GraphModule, node: Node) -> None:
    """A function of each element before a permutation rather than after it: then its product can absorb it."""
    permute = node.args[0]
    if permute.target is not _aten.permute.default or len(permute.users) != 1:
        return
    x, order = permute.args
    with module.graph.inserting_before(node):
        new = module.graph.call_function(node.target, (x,), node.kwargs)
        new.meta["val"] = _value(x)
        _replace(module, node, _aten.permute.default, (new, order))


def _cancel_permutes(module: fx.GraphModule) -> None:
    """One permutation for two in a row, none if they undo each other."""
    for node in _calls(module, _aten.permute.default):
        inner = node.args[0]
        if inner.op != "call_function" or inner.target is not _aten.permute.default:
            continue
        order = [inner.args[1][axis] for axis in node.args[1]]
        if order == sorted(order):
            node.replace_all_uses_with(inner.args[0])
            module.graph.erase_node(node)
        else:
            node.args = (inner.args[0], order)
    module.graph.eliminate_dead_code()


def _lower_linear(module: fx.GraphModule, node: Node) -> None:
    x, weight, *bias = node.args
    if _is_constant(weight) and _has_fixed_sizes(x):
        _replace(module, node, dense, (x, weight, bias[0] if bias else None, None, "none", (), ()))


def _lower_norm(module: fx.GraphModule, node: Node) -> None:
    defaults: list[Any] = [None, None, 1e-5]
    x, shape, weight, bias, eps = (list(node.args) + defaults[len(node.args) - 2 :])[:5]
    if len(shape) == 1 and _is_constant(weight) and _is_constant(bias) and _has_fixed_sizes(x):
        _replace(module, node, norm, (x, weight, bias, eps))


def _absorb(module: fx.GraphModule, node: Node) -> None:
    """Take the layer scale, activation and residual sum that alone use a product into it."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        absorb = _ABSORBERS.get(user.target) if user.op == "call_function" else None
        node = absorb and absorb(module, node, user)
        if node is None:
            return


def _absorb_gelu(module: fx.GraphModule, node: Node, user: Node) -> Node | None:
    x, weight, bias, residual, activation, *window = node.args
    if residual is not None or activation != "none" or user.kwargs.get("approximate", "none") != "none":
        return None
    return _take_over(module, node, user, (x, weight, bias, None, "gelu", *window))


def _absorb_sum(module: fx.GraphModule, node: Node, user: Node) -> Node | None:
    x, weight, bias, residual, *rest = node.args
    other = next((arg for arg in user.args if arg is not node), None)
    if residual is not None or user.kwargs or not isinstance(other, fx.Node) or _is_constant(other):
        return None
    value = _value(other)
    if value.shape != _value(node).shape or value.dtype != _value(node).dtype:
        return None
    return _take_over(module, node, user, (x, weight, bias, other, *rest))


def _absorb_scale(module: fx.GraphModule, node: Node, user: Node) -> Node | None:
    """A factor for each channel becomes part of the weights."""
    x, weight, bias, residual, activation, *window = node.args
    other = next((arg for arg in user.args if arg is not node), None)
    if residual is not None or activation != "none" or not _is_constant(other):
        return None
    factor, matrix = constant_of(module, other), constant_of(module, weight)
    if tuple(factor.shape) != (matrix.shape[0],):
        return None
    with module.graph.inserting_before(user):
        weight = new_constant(module, f"{user.name}_weight", matrix * factor.view(-1, *(1,) * (matrix.ndim - 1)))
        if bias is not None:
            bias = new_constant(module, f"{user.name}_bias", constant_of(module, bias) * factor)
    return _take_over(module, node, user, (x, weight, bias, None, activation, *window))


def _take_over(module: fx.GraphModule, node: Node, user: Node, args: tuple[Any, ...]) -> Node:
    new = _replace(module, user, dense, args)
    module.graph.erase_node(node)
    return new


_ABSORBERS: dict[Any, Callable[[fx.GraphModule, Node, Node], Node | None]] = {
    _aten.gelu.default: _absorb_gelu,
    _aten.add.Tensor: _absorb_sum,
    _aten.mul.Tensor: _absorb_scale,
}
