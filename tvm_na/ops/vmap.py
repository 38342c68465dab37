"""What ``torch.vmap`` does with the operators: the new axis joins the batch where samples share what has no batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rule(operator: Any, tensors: str, sums: int) -> Callable[..., tuple[Any, Any]]:
    """The rule of an operator, as ``torch.library.register_vmap`` wants it.

    Args:
        operator: It takes tensors, all with a batch but a bias ``rpb``, then numbers.
        tensors: Those of its schema.
        sums: How many of its results, the last ones, add up over the batch; of an operator that takes a bias, where it
            has one.
    """
    names = [tensor.rpartition(" ")[2] for tensor in tensors.split(", ")]
    rpb = names.index("rpb") if "rpb" in names else None

    def mapped(info: Any, dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        values, numbers = arguments[: len(names)], arguments[len(names) :]
        has_bias, bias_is_mapped = (False, False) if rpb is None else (values[rpb] is not None, dims[rpb] is not None)
        if bias_is_mapped or (sums and (has_bias or rpb is None)):
            return _one_by_one(operator, info.batch_size, dims, values, numbers)

        def joined(value: Tensor | None, dim: int | None) -> Tensor | None:
            if value is None:
                return None
            whole = value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            return whole.flatten(0, 1)

        one = [value if i == rpb else joined(value, dims[i]) for i, value in enumerate(values)]
        first, found = one[0], operator(*one, *numbers)
        assert first is not None
        sizes = (info.batch_size, first.shape[0] // info.batch_size)
        if isinstance(found, Tensor):
            return found.unflatten(0, sizes), 0
        apart = [t.unflatten(0, sizes) for t in found[: len(found) - sums]]
        shared = found[len(apart) :]
        return (*apart, *shared), (*(0 for _ in apart), *(None for _ in shared))

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
