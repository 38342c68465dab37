"""A model as an exported program whose attention is called by the number of its kernel."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from tvm_na.functional import Backend
from tvm_na.ops import table as ops
from tvm_na.problems.attention import NAProblem, problem_of

#: The operators of attention, and whether each gives the log-sum-exp.
ATTENTION = {ops.na_forward: False, ops.na_forward_lse: True}


def sharing_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that shares its parameters and buffers."""
    shared: dict[int, Any] = {id(t): t for t in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def with_backend(model: nn.Module, backend: Backend) -> nn.Module:
    """A copy of ``model`` in evaluation mode that shares its parameters and attends with ``backend``."""
    twin = sharing_copy(model).eval()
    for module in twin.modules():
        if isinstance(getattr(module, "backend", None), Backend):
            vars(module)["backend"] = backend
    return twin


def export_model(model: nn.Module, example: Tensor, batch: int | None) -> ExportedProgram:
    """The program of ``model`` for a batch of ``batch``, or for any batch (None), of inputs like ``example``.

    Raises:
        NotImplementedError: it attends in a way for which there is no compiled kernel.
        Others: PyTorch's, for a model that cannot be exported, or not for any batch.
    """
    return exported(with_backend(model, Backend.COMPILED), example, batch)


def exported(module: nn.Module, example: Tensor, batch: int | None) -> ExportedProgram:
    """The program of a module as it is, for a batch of ``batch``, or for any (None), of inputs like ``example``."""
    dynamic = None if batch else ({0: Dim("batch", min=1)},)
    with torch.no_grad():
        return export(module, (images_like(example, batch),), dynamic_shapes=dynamic, strict=False)


def images_like(example: Tensor, batch: int | None) -> Tensor:
    """What a program for a batch of ``batch``, or for any (None), is traced with."""
    # An example of 1 would be taken for a batch that is always 1.
    return example[:1].expand(batch or 2, *example.shape[1:]).contiguous()


def attention_of(node: Any) -> NAProblem:
    """The problem that a call of one of the operators of attention poses."""
    query, key, value = (a.meta["val"] for a in node.args[:3])
    rpb = None if node.args[3] is None else node.args[3].meta["val"]
    kernel_size, stride, dilation, is_causal = (tuple(axis) for axis in node.args[4:8])
    lse, rank = ATTENTION[node.target], query.ndim - 3
    return problem_of(query, key, value, kernel_size, stride, dilation, is_causal, rpb, lse, rank)


def require_attention(program: ExportedProgram) -> None:
    """NotImplementedError for a program without a call of attention."""
    if not any(node.target in ATTENTION for node in program.graph.nodes):
        raise NotImplementedError(
            "model: required one that attends with tvm_na, got one without neighborhood attention"
        )


@contextmanager
def known_operators(
    namespace: str, fakes: dict[str, Callable[..., Any]], schemas: Sequence[str] = ()
) -> Iterator[None]:
    """Operators of ``torch.ops.<namespace>`` that PyTorch's compilers know meanwhile.

    ``fakes`` make their outputs for inputs without content, by name; ``schemas`` are of those that no library defines.
    """
    library = torch.library.Library(namespace, "FRAGMENT")
    for schema in schemas:
        library.define(schema)
    for name, fake in fakes.items():
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
    try:
        yield
    finally:
        library._destroy()
