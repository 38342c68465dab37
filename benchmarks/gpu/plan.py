"""The problems of the run, and what is done with each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import PEERS
from benchmarks.problems import stages_of
from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.registry import Problem
from tvm_na.problems.unfused import KINDS, UnfusedProblem

_HALVES = ("float16", "bfloat16")
_DTYPES = (*_HALVES, TF32, "float32", "float64")
#: Small maps with every option of the operator.
OPTIONS = {
    "nat": NAProblem.make((14, 14), 7, 2, 32, bias=True, return_lse=True),
    "dilated": NAProblem.make((13, 18), (3, 5), 2, 16, dilation=(2, 3), bias=True),
    "causal": NAProblem.make((15, 14), (7, 6), 2, 64, is_causal=(True, False), return_lse=True),
    "shared keys": NAProblem.make((9, 8), 3, 4, 32, heads_kv=2, head_dim_v=16, bias=True),
    "two passes": NAProblem.make((26, 25), 25, 1, 16, return_lse=True),
    "strided": NAProblem.make((12, 13), (5, 4), 2, 32, stride=(2, 1)),
    "1D": NAProblem.make((150,), 31, 2, 32, return_lse=True),
    "3D": NAProblem.make((6, 7, 10), (3, 5, 3), 2, 32, bias=True),
}
_TWO_PASSES = OPTIONS["two passes"].kernel_size
#: Attention of FLUX at 4096x4096 pixels and of Hunyuan Video, as NATTEN's documentation has them, and of a line.
_LARGE = (
    NAProblem.make((256, 256), 80, 24, 128, dtype="float16"),
    NAProblem.make((30, 48, 80), (18, 24, 24), 24, 128, dtype="float16"),
    NAProblem.make((8192,), 1024, 16, 128, dtype="float16"),
)


@dataclass(frozen=True)
class Plan:
    """What is in the folder, and what is done with it.

    Attributes:
        searched: Problems with all legal points, each to be measured.
        checked: Problems with the default points alone, whose numbers are compared.
        timed: Those whose defaults are timed.
        compared: Those that are compared with peers.
        peers: The peers' names.
        tiny: What the sanitizer sees, by what a kernel of it has.
        launched: What is called on streams, in graphs and on views; float16, 2D.
        model: Name, input size and batch.
    """

    searched: tuple[NAProblem, ...]
    checked: tuple[Problem, ...]
    timed: tuple[Problem, ...]
    compared: tuple[NAProblem, ...]
    peers: tuple[str, ...]
    tiny: Mapping[str, Problem]
    launched: NAProblem
    model: tuple[str, int, int]

    def defaults(self) -> tuple[Problem, ...]:
        """All problems whose default points are needed, without those that are searched."""
        wanted = dict.fromkeys((*self.checked, *self.timed, *self.compared, *self.tiny.values(), self.launched))
        return tuple(problem for problem in wanted if problem not in self.searched)


def full_plan() -> Plan:
    """NAT-Tiny at 224x224 in float16, and some of everything else."""
    biased, plain = stages_of("float16", bias=True), stages_of("float16")
    gradients = [BackwardProblem(p) for p in biased]
    with_lse = [dataclasses.replace(p, return_lse=True) for p in biased]
    small = [p.with_dtype(d) for p, d in itertools.product(OPTIONS.values(), _DTYPES) if d != TF32 or _has_tf32(p)]
    differentiated = [
        BackwardProblem(p)
        for p in small
        if p.dtype in (_HALVES if p.rank != 2 else _DTYPES) and p.dtype != TF32 and p.kernel_size != _TWO_PASSES
    ]
    return Plan(
        searched=tuple(biased),
        checked=(*small, *differentiated, *_unfused(("float16", "float32")), *with_lse),
        timed=(*biased, *plain, *with_lse, *gradients, *stages_of("float32", bias=True), *_LARGE),
        compared=(*biased, *plain),
        peers=tuple(peer.name for peer in PEERS["cuda"]),
        tiny=tiny(),
        launched=launched(),
        model=("nat_tiny", 224, 128),
    )


def small_plan(peers: tuple[str, ...] = ("SDPA",), model: str = "nat_mini") -> Plan:
    """A few small problems, for tests."""
    nat = NAProblem.make((8, 8), 3, 1, 16, dtype="float16", bias=True)
    few = {name: problem for name, problem in tiny().items() if name in ("gather", "gradients")}
    return Plan(
        searched=(nat,),
        checked=(dataclasses.replace(nat, dtype="float32"),),
        timed=(nat, NAProblem.make((12, 12), 9, 2, 16, dtype="float16")),
        compared=(nat,),
        peers=peers,
        tiny=few,
        launched=launched(),
        model=(model, 32, 2),
    )


def _has_tf32(problem: NAProblem) -> bool:
    """Whether tensor cores serve it in TF32; without them there is no such kernel."""
    return problem.rank == 2 and set(problem.stride) == {1}


def launched() -> NAProblem:
    """What is called as users call it."""
    return NAProblem.make((9, 11), 3, 2, 16, dtype="float16", bias=True)


def tiny() -> dict[str, Problem]:
    """Eight problems on small maps, by what a kernel of each has."""
    nat = NAProblem.make((8, 9), 5, 1, 16, dtype="float16", bias=True)
    return {
        "strips": nat,
        "strips of groups": NAProblem.make((7, 19), 3, 1, 32, dilation=(2, 1), dtype="bfloat16", return_lse=True),
        "one pass": NAProblem.make((3, 6, 7), 3, 1, 16, dtype="float16", return_lse=True),
        "TF32": dataclasses.replace(nat, dtype=TF32),
        "gather": NAProblem.make((5, 6, 4), 3, 1, 8, dtype="float32"),
        "gradients": BackwardProblem(NAProblem.make((7, 8), 3, 2, 16, bias=True)),
        "gradients on tensor cores": BackwardProblem(NAProblem.make((7, 8), 3, 2, 16, dtype="float16", bias=True)),
        "unfused": UnfusedProblem.make("qk", (7, 6), 3, 2, 8, dtype="float16", bias=True),
    }


def _unfused(dtypes: tuple[str, ...]) -> list[Problem]:
    options: dict[str, Any] = {"stride": (1, 2), "dilation": (2, 1), "is_causal": (False, True)}
    kinds = [kind for kind in KINDS if kind != "bias_sums"]  # of which GPUs compute the parts
    return [
        UnfusedProblem.make(k, (7, 6), (3, 2), 4, 1 if k == "bias_parts" else 8, dtype=d, bias=k == "qk", **options)
        for k, d in itertools.product(kinds, dtypes)
    ]


#: By the name that a folder says.
PLANS: dict[str, Callable[[], Plan]] = {"full": full_plan, "small": small_plan}
