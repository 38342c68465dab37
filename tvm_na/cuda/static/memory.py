"""What the addresses of a warp cost: cycles of shared memory, sectors of the second cache."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_WARP, _BANKS, _WORD = 32, 32, 4
#: Bytes of what the second cache gives at once.
SECTOR = 32
_NOBODY = -1


def wavefronts(addresses: Array, width: int, active: Array) -> Array:
    """Cycles of shared memory for one access of each warp.

    So many lanes as read 128 bytes are served together: all 32 of 4 bytes, 8 of 16. Of these, words of the same bank
    come one after the other, each of them once.

    Args:
        addresses: In bytes, [warps, 32].
        width: Bytes of a lane.
        active: Which lanes take part, [warps, 32].

    Returns:
        [warps], 0 where no lane takes part.
    """
    words_of_lane = max(1, width // _WORD)
    lanes = min(_WARP, _BANKS // words_of_lane)
    words = (addresses // _WORD)[:, :, None] + np.arange(words_of_lane)
    words = np.where(active[:, :, None], words, _NOBODY).reshape(-1, lanes * words_of_lane)
    words = np.sort(words, axis=1)
    first = np.ones(words.shape, bool)
    first[:, 1:] = words[:, 1:] != words[:, :-1]
    first &= words != _NOBODY
    counts = np.zeros((len(words), _BANKS), np.int64)
    rows = np.broadcast_to(np.arange(len(words))[:, None], words.shape)
    np.add.at(counts, (rows[first], words[first] % _BANKS), 1)
    return counts.max(axis=1).reshape(len(addresses), -1).sum(axis=1)


def sectors(addresses: Array, width: int, active: Array) -> Array:
    """The sectors that lanes touch, as pairs of warp and sector, each once, [pairs, 2].

    Args:
        addresses: In bytes, [warps, 32].
        width: Bytes of a lane.
        active: Which lanes take part, [warps, 32].
    """
    ends = np.stack([addresses // SECTOR, (addresses + width - 1) // SECTOR], axis=-1)
    warps = np.broadcast_to(np.arange(len(addresses))[:, None, None], ends.shape)
    pairs = np.stack([warps, ends], axis=-1)[active]
    return np.unique(pairs.reshape(-1, 2), axis=0)
