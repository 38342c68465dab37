"""The schedule of products of pairs of bfloat16 on a CPU: that of the lanes formulation, with half the steps."""

from __future__ import annotations

from tvm_na.schedules.cpu.lanes import LanesSchedule
from tvm_na.schedules.cpu.vectors import channel_vector

# Columns of a window.
_MOST_UNROLLED = 15


class DotsSchedule(LanesSchedule):
    """Schedules one PrimFunc; see the module."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.packs_values = True
        # Of an odd window's last pair half is left out: unrolled, that costs the other pairs nothing.
        columns = self.problem.kernel_size[-1]
        self.unrolls_keys = self.tile.exact_values and columns % 2 == 1 and columns <= _MOST_UNROLLED

    def build(self) -> None:
        from tvm_na.te.common.dots import definitions

        super().build()
        lanes = {self.tile.vector, channel_vector(self.problem.head_dim_v, self.tile.vector)}
        self.sch.annotate(self.loops("out")[0], "pragma_import_llvm", definitions(lanes, self.target.dot))
