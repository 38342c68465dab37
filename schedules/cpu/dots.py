"""The schedule of products of pairs of bfloat16 on a CPU: that of the lanes formulation, with half the steps."""

from __future__ import annotations

from tvm_na.schedules.cpu.lanes import LanesSchedule
from tvm_na.schedules.cpu.vectors import channel_vector


class DotsSchedule(LanesSchedule):
    """Schedules one PrimFunc; see the module."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.packs_values = True

    def build(self) -> None:
        from tvm_na.te.common.dots import definitions

        super().build()
        lanes = {self.tile.vector, channel_vector(self.problem.head_dim_v, self.tile.vector)}
        self.sch.annotate(self.loops("out")[0], "pragma_import_llvm", definitions(lanes, self.target.dot))
