"""What is remembered is bounded, what is wanted stays, and a kernel that is forgotten is unloaded."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from tests.helpers import forget_calls
from tvm_na import na1d
from tvm_na.jit import build
from tvm_na.jit.remembered import Remembered
from tvm_na.ops import calls, launch, register


def test_what_is_wanted_stays_and_the_rest_is_forgotten() -> None:
    remembered: Remembered[int, str] = Remembered(10)
    for number in range(1000):
        remembered[number] = str(number)
        assert remembered.or_make(0, lambda: pytest.fail("forgotten, though it was always wanted")) == "0"
        assert len(remembered) + len(remembered._older) <= 20
    assert [number for number in range(1000) if number in remembered or number in remembered._older][1] >= 980
    assert remembered[999] == "999"
    with pytest.raises(KeyError):
        remembered[1]
    assert remembered.or_make(1, lambda: "anew") == "anew" == remembered.get(1)
    remembered.clear()
    assert not remembered
    assert remembered.or_make(0, lambda: "anew") == "anew"


def test_a_key_that_is_set_again_makes_nobody_older() -> None:
    remembered: Remembered[int, int] = Remembered(2)
    for value in (1, 2, 3):
        remembered[0] = remembered[1] = value
    assert remembered == {0: 3, 1: 3}


def length(size: int, batch: int, needs_grad: bool = False) -> None:
    query = torch.rand(batch, size, 1, 4, requires_grad=needs_grad)
    na1d(query, query, query, 3, backend="compiled")
    torch.ops.tvm_na.na_forward(query.detach(), query.detach(), query.detach(), None, [3], [1], [1], [False], 1.0)


def test_kinds_of_calls_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_calls()
    monkeypatch.setattr(build, "_kernels", Remembered(4))
    bounded = (calls._checked, register._launchers, launch._launchers, build._kernels)
    for remembered in bounded:
        monkeypatch.setattr(remembered, "most", 4)
    for batch in range(1, 12):
        length(7, batch)
        length(7, batch, needs_grad=True)
    for remembered in bounded:
        assert len(remembered) + len(remembered._older) <= 8
    forget_calls()


def test_a_kernel_that_is_forgotten_is_unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_kernels", Remembered(1))
    forget_calls()
    length(21, 1)
    (first,) = build._kernels.values()
    file, function = first.file.name, first.function

    def is_loaded() -> bool:
        return file in Path("/proc/self/maps").read_text(encoding="utf-8")

    del first
    for size in (22, 23):
        length(size, 1)
    forget_calls()
    gc.collect()
    assert is_loaded()  # somebody has it
    del function
    gc.collect()
    assert not is_loaded()
    length(21, 1)
