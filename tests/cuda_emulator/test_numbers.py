"""The emulator's numbers: conversions, arithmetic of 16 bits, functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.cuda_emulator.checks import launch

DTYPES = {"float16": (torch.float16, "numbers"), "bfloat16": (torch.bfloat16, "numbers in bfloat16")}


def floats() -> np.ndarray:
    """Bit patterns of every kind: all exponents, halfway cases of both formats, infinities, NaN."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 40000, dtype=np.uint32)
    halfway = [(bits[:20000] & ~np.uint32(2**shift - 1)) | np.uint32(2 ** (shift - 1)) for shift in (13, 16)]
    small = rng.uniform(-1, 1, 20000) * 2.0 ** rng.integers(-30, -10, 20000)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.996, 65520, 65536, 2**-24, 2**-25, 3 * 2**-26])
    with np.errstate(invalid="ignore"):
        return np.concatenate([np.concatenate([bits, *halfway]).view(np.float32), small, special]).astype(np.float32)


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal bits, but that every NaN is as good as another."""
    assert torch.equal(found.isnan(), wanted.isnan())
    number = ~wanted.isnan()
    assert torch.equal(found.view(torch.int16)[number], wanted.view(torch.int16)[number])


@pytest.mark.parametrize("dtype", DTYPES)
def test_conversions_round_to_nearest_even(dtype: str) -> None:
    kind, name = DTYPES[dtype]
    x = torch.from_numpy(floats())
    nearest, truncated = torch.empty(len(x), dtype=kind), torch.empty(len(x), dtype=kind)
    launch(name, "narrow_kernel", -(-len(x) // 256), 256, x, nearest, truncated, len(x))
    same(nearest, x.to(kind))
    # Towards zero: not larger than x, but the next number of the format is.
    finite = x.isfinite() & truncated.isfinite()
    assert finite.sum() > 20000 and (truncated.float().abs() <= x.abs())[finite].all()
    following = (truncated.view(torch.int16) + 1).view(kind).float().abs()
    assert (following > x.abs())[finite & (x.abs() <= torch.finfo(kind).max)].all()


def test_doubles_round_once() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([floats().astype(np.float64), 1 + 2**-11 + rng.uniform(-1, 1, 1000) * 2**-40])
    nearest = np.empty(len(x), np.float16)
    launch("numbers", "narrow_double_kernel", -(-len(x) // 256), 256, x, nearest, len(x))
    with np.errstate(over="ignore", invalid="ignore"):
        same(torch.from_numpy(nearest), torch.from_numpy(x.astype(np.float16)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_numbers_of_16_bits_widen_exactly(dtype: str) -> None:
    kind, name = DTYPES[dtype]
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(kind)
    y = torch.empty(2**16)
    launch(name, "widen_kernel", 256, 256, x, y, len(x))
    torch.testing.assert_close(y, x.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arithmetic_of_16_bits(dtype: str) -> None:
    kind, name = DTYPES[dtype]
    a, b = (torch.randn(5000) * 2.0 ** torch.randint(-12, 8, (5000,)) for _ in range(2))
    a, b = torch.cat([a, torch.tensor([0.0, -1.0, torch.inf])]).to(kind), torch.cat([b, torch.zeros(3)]).to(kind)
    found = torch.full((9, len(a)), torch.nan, dtype=kind)
    launch(name, "arithmetic_kernel", -(-len(a) // 256), 256, a, b, found, len(a))
    x, y = a.float(), b.float()
    wanted = [
        x + y,
        x - y,
        x * y,
        x / y,
        torch.maximum(x, y),
        x.exp(),
        (x < y).float(),
        (a.double() * b.double() + a.double()),
    ]
    for row, number in zip(found[:5], wanted[:5], strict=True):
        same(row, number.to(kind))
    last_place = 2.0 ** (-10 if kind == torch.float16 else -7)
    torch.testing.assert_close(found[5].float(), wanted[5].to(kind).float(), rtol=last_place, atol=1e-7)
    same(found[6], wanted[6].to(kind))
    torch.testing.assert_close(found[7].double(), wanted[7].to(kind).double(), rtol=0, atol=0, equal_nan=True)
    same(found[8], (((a + 1).to(kind) * (b + 1).to(kind)).to(kind)))


def test_functions_of_floats() -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.uniform(low, 4, 64).astype(np.float32) for low in (-4, 0.1))
    out = np.full((15, 64), np.nan, np.float32)
    launch("functions", "floats_kernel", 1, 64, x, y, out)
    a, b = x.astype(np.float64), y.astype(np.float64)
    erf = torch.from_numpy(a).erf().numpy()
    wanted = [np.exp(a), np.exp2(a), np.log(b), np.log2(b), a / b, b**-0.5, a * b + a, np.maximum(a, b)]
    wanted += [np.minimum(a, 0.5), a, a, -a, b**1.5, erf + np.tanh(b), np.clip(a, 0, 1)]
    np.testing.assert_allclose(out, wanted, rtol=1e-6, atol=1e-6)


def test_functions_of_integers() -> None:
    x = np.random.default_rng(0).integers(-(2**31), 2**31, 64).astype(np.int32)
    x[:5] = 0, 1, -1, 3, 12
    out = np.zeros((7, 64), np.int32)
    launch("functions", "integers_kernel", 1, 64, x, out)
    bits = [int(n) & 0xFFFFFFFF for n in x]
    lanes = np.arange(64)
    wanted = [
        [32 - n.bit_length() for n in bits],
        [n.bit_count() for n in bits],
        [(n & -n).bit_length() for n in bits],
        np.array([n * 3000000000 >> 32 for n in bits], np.uint32).view(np.int32),
        np.maximum(x, lanes - 32),
        np.minimum(x, 7),
        np.rint(x.astype(np.float32) * np.float32(0.5)),
    ]
    np.testing.assert_array_equal(out, wanted)
