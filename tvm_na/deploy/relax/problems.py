"""The problems of a whole model, as artifacts of the format ``tvm`` pose them."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn

from tvm_na.deploy.export import ATTENTION, attention_of, export_model
from tvm_na.deploy.products import dense_problem
from tvm_na.deploy.rewrite import dense, layered
from tvm_na.problems.registry import Problem


def problems_of_whole(model: nn.Module, example: Tensor) -> dict[Problem, int]:
    """The distinct problems of a model in order of first use, and how many layers pose each.

    The values and the batch of ``example``, an input ``[batch, ...]``, play no role.

    Raises:
        NotImplementedError: it attends in a way for which there is no compiled kernel.
        Others: PyTorch's, for a model that cannot be exported.
    """
    module = layered(export_model(model, example, None).run_decompositions({}))
    found: Counter[Problem] = Counter()
    for node in module.graph.nodes:
        if node.target is dense:
            found[dense_problem(module, node)] += 1
        elif node.target in ATTENTION:
            found[attention_of(node)] += 1
    return found
