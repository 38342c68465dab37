"""Inputs of kernels and what is right of them, also where a window is too large to be gathered for every query."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.worker import here
from tvm_na.measure.cuda import Sets, copies_for, rotating
from tvm_na.measure.timing import Timing, measure
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.registry import Problem
from tvm_na.reference.accuracy import relative_error
from tvm_na.reference.attention import axis_neighbors, softmax_and_lse
from tvm_na.reference.case import Case, WrongNumbers
from tvm_na.reference.cases import budget_of, make_case

_QUERIES = 8


def is_large(problem: Problem) -> bool:
    """Whether what is right is computed of some queries alone."""
    return problem.reference_elements(1) > here().device.gathered


@dataclass(frozen=True)
class SampledCase(Case):
    """A case of which some queries of the last sample are compared; ``expected`` is ``[queries, heads, head_dim_v]``.

    Attributes:
        queries: Their positions in the flat map, the first and the last among them.
    """

    queries: Tensor

    def check(self, outputs: Sequence[Tensor], budget: float) -> None:
        """See :meth:`Case.check`; NaN anywhere in an output is wrong, too."""
        found = outputs[0].flatten(1, -3)
        error = relative_error(found[-1, self.queries], self.expected[0])
        if not error <= budget or found.isnan().any():
            raise WrongNumbers(f"out, {len(self.queries)} queries: required an error <= {budget:.0e}, got {error:.1e}")


def sampled_case(problem: NAProblem, batch: int, device: str) -> SampledCase:
    """A case of a problem without a bias, of any window; drawn on the device, as there is much to be drawn."""
    generator = torch.Generator(device).manual_seed(0)
    *tensors, scale = problem.inputs()
    inputs = [
        torch.randn(a.shape_for(batch), generator=generator, dtype=getattr(torch, a.dtype), device=device)
        for a in tensors
    ]
    inputs.append(torch.tensor([problem.head_dim**-0.5], dtype=getattr(torch, scale.dtype), device=device))
    tokens = math.prod(problem.spatial)
    some = torch.randint(tokens, (_QUERIES,), generator=generator, device=device)
    some[0], some[-1] = 0, tokens - 1
    return SampledCase(problem, tuple(inputs), (attention_of(problem, inputs, some),), some)


def attention_of(problem: NAProblem, inputs: Sequence[Tensor], queries: Tensor) -> Tensor:
    """The output of some queries of the last sample in float64, ``[queries, heads, head_dim_v]``."""
    query, key, value = (t[-1].flatten(0, -3) for t in inputs[:3])
    group, found = problem.heads // problem.heads_kv, []
    axes = [axis_neighbors(*axis) for axis in problem.axes]
    for at in queries.tolist():
        where, exists = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool)
        for n, index, (positions, _, there) in zip(problem.spatial, _index(at, problem.spatial), axes, strict=True):
            where = (where[:, None] * n + positions[index]).flatten()
            exists = (exists[:, None] & there[index]).flatten()
        where = where[exists].to(query.device)
        keys, values = (t[where].double().repeat_interleave(group, dim=1) for t in (key, value))
        scores = torch.einsum("hd,khd->hk", query[at].double(), keys) * float(inputs[3])
        found.append(torch.einsum("hk,khd->hd", softmax_and_lse(scores)[0], values))
    return torch.stack(found)


def _index(at: int, sizes: Sequence[int]) -> list[int]:
    found = []
    for size in reversed(sizes):
        at, rest = divmod(at, size)
        found.append(rest)
    return found[::-1]


@functools.lru_cache(maxsize=1)
def case_of(problem: Problem, batch: int) -> Case:
    """The case of a problem on this device, of one sample where it is large."""
    if is_large(problem):
        assert isinstance(problem, NAProblem)
        return sampled_case(problem, 1, here().device.name)
    return make_case(problem, batch, here().device.name)


@functools.lru_cache(maxsize=1)
def _sets(problem: Problem, batch: int) -> Sets:
    return Sets.of(problem, case_of(problem, batch))


@functools.cache  # as long as they stay loaded
def kernel_of(number: int) -> Callable[..., None]:
    """A kernel of the package, loaded."""
    place = here()
    kernel = place.folder.kernel(number)
    libraries = place.results.parent / "libraries"
    libraries.mkdir(exist_ok=True)
    return place.device.kernel(place.folder.package.library(kernel, libraries), kernel.problem)


def checked_sets(number: int, batch: int) -> tuple[Sets, Callable[[], object]]:
    """The sets of arguments of a kernel's problem, and a rotating call of the kernel, whose numbers are right.

    Raises:
        WrongNumbers: they are not.
    """
    problem = here().folder.kernel(number).problem
    try:
        sets = _sets(problem, batch)
        return sets, sets.checked(kernel_of(number), budget_of(problem))
    except Exception:
        forget()
        raise


def forget() -> None:
    """Draw inputs anew: a kernel that went wrong may have written anywhere."""
    case_of.cache_clear()
    _sets.cache_clear()


def check(number: int, batch: int) -> None:
    """Run a kernel once; WrongNumbers if its numbers are not right. Outputs are NaN before."""
    problem = here().folder.kernel(number).problem
    try:
        case = case_of(problem, batch)
        outputs = case.outputs()
        kernel_of(number)(*case.inputs, *outputs)
        case.check(outputs, budget_of(problem))
    except Exception:
        forget()
        raise


def time_of(
    calls: Mapping[str, Callable[[], object]], rounds: int = 9, sample: float = 2e-3, replayed: int = 0
) -> dict[str, Timing]:
    """Time calls in turns by the device's clock; by replays of CUDA graphs of so many calls where ``replayed``."""
    clock = here().device.clock(replayed)
    return measure(calls, rounds=rounds, sample_time=sample, warmup_time=2 * sample, clock=clock)


def copy_like(problem: Problem, batch: int) -> Callable[[], object]:
    """A copy that moves as many bytes as a call must."""
    half = max(1, problem.bytes * batch // 2)
    sets = [
        torch.zeros(2, half, dtype=torch.uint8, device=here().device.name).unbind() for _ in range(copies_for(2 * half))
    ]
    return rotating(lambda to, source: to.copy_(source), sets)
