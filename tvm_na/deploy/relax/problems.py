"""The problems of a whole model, as artifacts of the format ``tvm`` pose them."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn

from tvm_na.deploy import int8
from tvm_na.deploy.export import ATTENTION, attention_of, export_model
from tvm_na.deploy.products import dense_problem
from tvm_na.deploy.rewrite import dense, layered
from tvm_na.problems.registry import Problem


def problems_of_whole(model: nn.Module, example: Tensor, weights_dtype: str | None = None) -> dict[Problem, int]:
    """The distinct problems of a model in order of first use, and how many layers pose each.

    The values and the batch of ``example``, an input ``[batch, ...]``, play no role. With ``weights_dtype`` ``int8``
    they are those of an artifact with such weights.

    Raises:
        NotImplementedError: it attends in a way for which there is no compiled kernel.
        Others: PyTorch's, for a model that cannot be exported.
    """
    stored = model if weights_dtype is None else int8.rounded(model)
    module = layered(export_model(stored, example, None).run_decompositions({}))
    if weights_dtype is not None:
        int8.narrow(module)
    found: Counter[Problem] = Counter()
    for node in module.graph.nodes:
        if node.target is dense:
            found[dense_problem(module, node)] += 1
        elif node.target in ATTENTION:
            found[attention_of(node)] += 1
    return found
