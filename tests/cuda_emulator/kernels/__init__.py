"""CUDA sources in the style of TVM's, for tests of the emulator."""

from __future__ import annotations

import re
from pathlib import Path

_IN_BFLOAT16 = (
    (r"cuda_fp16\.h", "cuda_bf16.h"),
    (r"__half2", "__bfloat162"),
    (r"2half", "2bfloat16"),
    (r"\bhalf2\b", "nv_bfloat162"),
    (r"make_half2", "make_bfloat162"),
    (r"\bhalf\b", "nv_bfloat16"),
    (r"\.f16\.f16\.", ".bf16.bf16."),
)


def source(name: str) -> str:
    """The text of a file of this folder."""
    return (Path(__file__).parent / f"{name}.cu").read_text()


def in_bfloat16(text: str) -> str:
    """A source about ``half`` as one about ``nv_bfloat16``."""
    for old, new in _IN_BFLOAT16:
        text = re.sub(old, new, text)
    return text
