"""The problems that benchmarks of the operator share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm_na.problems.attention import NAProblem

_STAGES = ((56, 2), (28, 4), (14, 8), (7, 16))


def stages_of(dtype: str = "float32", bias: bool = False) -> list[NAProblem]:
    """NAT-Tiny's four stages at 224x224, with the bias that its layers have, or without."""
    return [NAProblem.make((n, n), 7, heads, 32, dtype=dtype, bias=bias) for n, heads in _STAGES]


@dataclass(frozen=True)
class Workload:
    """A problem that people have.

    Attributes:
        name: What it is called in tables.
        note: What must be known of it.
        large: Whether one sample fills a GPU.
    """

    name: str
    problem: NAProblem
    note: str = ""
    large: bool = False

    def of_dtype(self, dtype: str) -> Workload:
        """The same in another dtype."""
        return replace(self, problem=NAProblem(**{**vars(self.problem), "dtype": dtype}))


def workloads() -> list[Workload]:
    """Those of the benchmark suite, in float32."""
    nat = [Workload(f"NAT-Tiny {p.spatial[0]}²", p) for p in stages_of(bias=True)]
    dilations = {56: 8, 28: 4, 14: 2}
    dinat = [
        Workload(f"DiNAT-Tiny {n}²", NAProblem.make((n, n), 7, heads, 32, dilation=dilations[n], bias=True))
        for n, heads in _STAGES[:3]
    ]
    halves = "half of its heads have this dilation; measured with all of them"
    film = "30x48x80, window 18x24x24, 24 heads, every axis, window and the number of heads by four smaller"
    return [
        *nat,
        *dinat,
        Workload("StyleNAT 256²", NAProblem.make((256, 256), 7, 4, 32, bias=True), halves, True),
        Workload("StyleNAT 256², dilated", NAProblem.make((256, 256), 7, 4, 32, dilation=32, bias=True), halves, True),
        Workload("HDiT 64²", NAProblem.make((64, 64), 7, 2, 64)),
        Workload("1D 32768", NAProblem.make((32768,), 2048, 1, 128), large=True),
        Workload("3D video, scaled down", NAProblem.make((8, 12, 20), (4, 6, 6), 6, 128), film, True),
    ]


def growing(sizes: tuple[int, ...]) -> list[Workload]:
    """NAT-Tiny's first stage on square maps of other sizes, without a bias, so that all peers take the same."""
    return [Workload(f"{n}²", NAProblem.make((n, n), 7, 2, 32)) for n in sizes]
