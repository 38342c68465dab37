"""What ``torch.vmap`` does with the operators: the new axis joins the batch where samples share what has no batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_RPB = 3  # where the bias is among the arguments of every operator


def rule(operator: Any, tensors: int, sums_over_batch: bool) -> Callable[..., tuple[Any, Any]]:
    """The rule of an operator, as ``torch.library.register_vmap`` wants it.

    Args:
        operator: It takes query, key, value, rpb and others with a batch, then numbers.
        tensors: How many arguments are tensors or None.
        sums_over_batch: Whether there is a result without a batch, the last, where there is a bias.
    """

    def mapped(info: Any, dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        values, numbers = arguments[:tensors], arguments[tensors:]
        rpb = values[_RPB]
        if dims[_RPB] is not None or (sums_over_batch and rpb is not None):
            return _one_by_one(operator, info.batch_size, dims, values, numbers)

        def joined(value: Tensor | None, dim: int | None) -> Tensor | None:
            if value is None:
                return None
            whole = value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            return whole.flatten(0, 1)

        one = [rpb if i == _RPB else joined(value, dims[i]) for i, value in enumerate(values)]
        query, found = one[0], operator(*one, *numbers)
        assert query is not None
        sizes = (info.batch_size, query.shape[0] // info.batch_size)
        if isinstance(found, Tensor):
            return found.unflatten(0, sizes), 0
        apart = [t.unflatten(0, sizes) for t in found[: len(found) - sums_over_batch]]
        shared = found[len(apart) :]
        return (*apart, *shared), (*[0] * len(apart), *[None] * len(shared))

    return mapped


def _one_by_one(
    operator: Any, count: int, dims: tuple[int | None, ...], values: tuple[Any, ...], numbers: tuple[Any, ...]
) -> tuple[Any, Any]:
    found = []
    for i in range(count):
        sample = [v if dim is None else v.select(dim, i) for v, dim in zip(values, dims, strict=False)]
        found.append(operator(*sample, *numbers))
    if isinstance(found[0], Tensor):
        return torch.stack(found), 0
    results = tuple(torch.stack(of_samples) for of_samples in zip(*found, strict=True))
    return results, (0,) * len(results)
