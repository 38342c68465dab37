"""A model as an exported program whose attention is called by the number of its kernel."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from tvm_na.functional import Backend
from tvm_na.ops import table as ops
from tvm_na.problems.attention import NAProblem, problem_of

#: The operators of attention, and whether each gives the log-sum-exp.
ATTENTION = {ops.na_forward: False, ops.na_forward_lse: True}


def with_backend(model: nn.Module, backend: Backend) -> nn.Module:
    """A copy of ``model`` in evaluation mode that shares its parameters and attends with ``backend``."""
    shared: dict[int, Any] = {id(t): t for t in itertools.chain(model.parameters(), model.buffers())}
    twin = copy.deepcopy(model, shared).eval()
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
    images = images_like(example, batch)
    dynamic = None if batch else ({0: Dim("batch", min=1)},)
    with torch.no_grad():
        return export(with_backend(model, Backend.COMPILED), (images,), dynamic_shapes=dynamic, strict=False)


def images_like(example: Tensor, batch: int | None) -> Tensor:
    """What a program for a batch of ``batch``, or for any (None), is traced with."""
    # An example of 1 would be taken for a batch that is always 1.
    return example[:1].expand(batch or 2, *example.shape[1:]).contiguous()


@dataclass(frozen=True)
class Attention:
    """A call of attention in a program.

    Attributes:
        node: Of the program's graph.
        problem: What it poses.
    """

    node: torch.fx.Node
    problem: NAProblem


def attention_of(node: Any) -> Attention:
    """What a call of one of the operators of attention poses."""
    query, key, value = (a.meta["val"] for a in node.args[:3])
    rpb = None if node.args[3] is None else node.args[3].meta["val"]
    kernel_size, stride, dilation, is_causal = (tuple(axis) for axis in node.args[4:8])
    lse, rank = ATTENTION[node.target], query.ndim - 3
    return Attention(node, problem_of(query, key, value, kernel_size, stride, dilation, is_causal, rpb, lse, rank))


def attentions_of(program: ExportedProgram) -> list[Attention]:
    """The calls of attention in a program, in their order.

    Raises:
        NotImplementedError: there are none.
    """
    found = [attention_of(node) for node in program.graph.nodes if node.target in ATTENTION]
    if not found:
        raise NotImplementedError(
            "model: required one that attends with tvm_na, got one without neighborhood attention"
        )
    return found


def call_kernels(program: ExportedProgram, attentions: list[Attention], namespace: str) -> dict[NAProblem, int]:
    """Let a program call the kernels of an artifact: kernel i computes the i-th distinct problem.

    Its operators are looked up in PyTorch's ``namespace``, where :class:`Operators` must have put them.

    Returns:
        How many calls each problem has, the problems in the order of their kernels.
    """
    calls: dict[NAProblem, int] = {}
    for attention in attentions:
        calls[attention.problem] = calls.get(attention.problem, 0) + 1
    numbers = {problem: number for number, problem in enumerate(calls)}
    space = getattr(torch.ops, namespace)
    for attention in attentions:
        node, lse = attention.node, attention.problem.return_lse
        node.target = (space.attend_lse if lse else space.attend).default
        node.args = (*node.args[:4], node.args[8], numbers[attention.problem])
    program.graph_module.recompile()
    return calls


class Operators:
    """Shapes of an artifact's operators for PyTorch's compiler, while it is used as a context.

    Their implementation is registered by the artifact's library.
    """

    def __init__(self, namespace: str, problems: list[NAProblem]) -> None:
        self._library = torch.library.Library(namespace, "FRAGMENT")
        self._problems = problems
        for name, fake in (("attend", self._attend), ("attend_lse", self._attend_lse)):
            torch.library.register_fake(f"{namespace}::{name}", fake, lib=self._library)

    def __enter__(self) -> Operators:
        return self

    def __exit__(self, *_: object) -> None:
        self._library._destroy()

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, scale: float, kernel: int
    ) -> Tensor:
        return query.new_empty((*query.shape[:-1], self._problems[kernel].head_dim_v))

    def _attend_lse(
        self, query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, scale: float, kernel: int
    ) -> tuple[Tensor, Tensor]:
        return self._attend(query, key, value, rpb, scale, kernel), query.new_empty(query.shape[:-1])
