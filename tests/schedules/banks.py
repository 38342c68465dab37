"""How the threads of a warp meet in the banks of shared memory, by what the generated code says."""

from __future__ import annotations

import re

from tests.schedules.cuda_kernels import CudaKernel

_BANKS = _WARP = 32  # of four bytes each


def indices(source: str) -> list[str]:
    """What stands between the brackets of each access to shared memory."""
    found = []
    for match in re.finditer(r"\w+_shared_ptr\[", source):
        end, open_brackets = match.end(), 1
        while open_brackets:
            open_brackets += {"[": 1, "]": -1}.get(source[end], 0)
            end += 1
        found.append(source[match.end() : end - 1])
    return [index for index in found if "threadIdx" in index]  # but for declarations


def places_in_a_bank(kernel: CudaKernel) -> int:
    """Of all accesses to arrays of float32, in the first turn of each loop, the most places of a warp in one bank."""
    width, most = kernel.launches[0].block[0], 0
    for index in indices(kernel.source):
        text = index.replace("(int)threadIdx.x", "lane").replace("(int)threadIdx.y", "group").replace("/", "//")
        code = re.sub(r"\b(?!lane\b|group\b)[a-z_]\w*", "0", text)
        banks: dict[int, set[int]] = {}
        for thread in range(_WARP):
            place = eval(code, {"lane": thread % width, "group": thread // width})
            banks.setdefault(place % _BANKS, set()).add(place)
        most = max(most, *map(len, banks.values()))
    return most
