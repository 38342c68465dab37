"""Calls of na1d, na2d, na3d and of the modules, as every release of NATTEN took them; what is ignored is said once."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import TOLERANCE
from tests.helpers import relative_error
from tvm_na import functional
from tvm_na import nn as ours
from tvm_na.compat import natten
from tvm_na.compat.natten import context, fused, ignored, release
from tvm_na.compat.natten.types import KernelSchedule

T = torch.randn(1, 9, 9, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
RPB = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
EXTRA = torch.randn(1, 3, 2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _as_new(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is assumed or said yet, no switch is set, and the reference computes, which needs no compiler."""

    def by_reference(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **named: function(*args, **{**named, "backend": "reference"})

    monkeypatch.setattr(fused, "_FUNCTIONS", {rank: by_reference(f) for rank, f in fused._FUNCTIONS.items()})
    ignored._said.clear()
    yield
    release.assume_release(None)
    context.NattenContext.reset()


def right(**options: Any) -> Tensor:
    return functional.na2d(T, T, T, 3, **options, backend="reference")


def assert_is(found: Tensor, **options: Any) -> None:
    assert relative_error(found, right(**options)) <= TOLERANCE["float64"]


@pytest.mark.parametrize(
    ("args", "named", "means"),
    [
        ((), {}, {}),
        ((1,), {}, {}),
        (((1, 1),), {}, {}),
        ((None,), {}, {}),
        ((), {"stride": 2}, {"stride": 2}),
        ((), {"dilation": 2}, {"dilation": 2}),
        ((2, 3), {}, {"stride": 2, "dilation": 3}),
        ((2,), {"dilation": 3}, {"stride": 2, "dilation": 3}),
        ((2,), {"return_lse": False}, {"stride": 2}),
        ((1, 1, True), {}, {"is_causal": True}),
        ((1, 1, (True, False), 0.3), {}, {"is_causal": (True, False), "scale": 0.3}),
        ((2, True), {}, {"dilation": 2, "is_causal": True}),
        ((2, False, None, 0.3), {}, {"dilation": 2, "scale": 0.3}),
        ((2, False, RPB), {}, {"dilation": 2, "rpb": RPB}),
        ((2,), {"rpb": RPB}, {"dilation": 2, "rpb": RPB}),
        ((2, False, RPB, 0.3, EXTRA, EXTRA), {}, {"dilation": 2, "rpb": RPB, "scale": 0.3, "extra": EXTRA}),
        ((1, 2, False, 0.3, EXTRA, EXTRA), {}, {"dilation": 2, "scale": 0.3, "extra": EXTRA}),
        ((), {"rpb": RPB, "stride": 2}, {"rpb": RPB, "stride": 2}),
        ((2, 3), {"rpb": RPB}, {"rpb": RPB, "stride": 2, "dilation": 3}),
        ((), {"rpb": RPB.float()}, {"rpb": RPB.float().double()}),
        ((), {"is_causal": None, "dilation": None}, {}),
    ],
)
def test_what_the_arguments_of_na2d_mean(args: Any, named: dict[str, Any], means: dict[str, Any]) -> None:
    extra = means.pop("extra", None)
    if extra is not None:
        means |= {"additional_keys": extra, "additional_values": extra}
    assert_is(natten.na2d(T, T, T, 3, *args, **named), **means)


def test_positional_calls_that_releases_read_differently_need_a_release() -> None:
    for args, named in (((2,), {}), ((2,), {"is_causal": True}), ((2,), {"scale": 0.3}), ((2, None, None, 0.3), {})):
        with pytest.raises(ValueError, match=r"^stride: .*0.20 as stride=\(2, 2\).*0.17 as .*dilation=\(2, 2\)"):
            natten.na2d(T, T, T, 3, *args, **named)
    for version, means in (("0.17.5", {"dilation": 2}), ("0.21.1", {"stride": 2}), ("0.20.0", {"stride": 2})):
        natten.assume_release(version)
        assert natten.__version__ == version
        assert_is(natten.na2d(T, T, T, 3, 2), **means)
    natten.assume_release("0.17.5")  # says how to read what is ambiguous, not what may be called
    assert_is(natten.na2d(T, T, T, 3, 2, 3), stride=2, dilation=3)
    with pytest.raises(ValueError, match="release: required a release of NATTEN, 0.14 or later, got '0.12'"):
        natten.assume_release("0.12")


def test_every_rank_and_the_generic_function_take_the_same_arguments() -> None:
    for rank, axes in ((1, (9,)), (2, (5, 6)), (3, (3, 4, 5))):
        t = torch.randn(1, *axes, 2, 4, dtype=torch.float64)
        theirs, mine = getattr(natten, f"na{rank}d"), getattr(functional, f"na{rank}d")
        wanted, lse = mine(t, t, t, 3, 1, 1, True, 0.3, return_lse=True, backend="reference")
        for function in (theirs, natten.functional.neighborhood_attention_generic):
            out, found = function(query=t, key=t, value=t, kernel_size=3, is_causal=True, scale=0.3, return_lse=True)
            assert relative_error(out, wanted) <= 1e-13 and relative_error(found, lse) <= 1e-13
        assert {"stride", "rpb", "return_lse", "q_tile_shape"} <= set(inspect.signature(theirs).parameters)
    with pytest.raises(ValueError, match="query: required .* 1 to 3 spatial axes, got"):
        natten.functional.neighborhood_attention_generic(torch.zeros(2, 2, 2), T, T, 3)


HINTS = {
    "q_tile_shape": (8, 8),
    "kv_tile_shape": (8, 8),
    "backward_q_tile_shape": (8, 8),
    "backward_kv_tile_shape": (8, 8),
    "backward_kv_splits": (1, 2),
    "backward_use_pt_reduction": True,
    "run_persistent_kernel": False,
    "kernel_schedule": KernelSchedule.WarpSpecializedPingpong,
    "torch_compile": True,
    "attention_kwargs": {"backend": "cutlass-fmha"},
    "try_fuse_additional_kv": True,
    "xformers_kwargs": {},
    "backend": "cutlass-fna",
}


#: Another value than the default, for each.
DENSE_HINTS = {name: not value if isinstance(value, bool) else 64 for name, value in ignored.DENSE_HINTS.items()}


@pytest.mark.parametrize(
    ("function", "keyword", "value"),
    [*((natten.na2d, *hint) for hint in HINTS.items()), *((natten.attention, *hint) for hint in DENSE_HINTS.items())],
)
def test_a_hint_is_ignored_with_one_line_in_the_log(
    function: Any, keyword: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="tvm_na.compat.natten"):
        for _ in range(2):
            if function is natten.na2d:
                assert_is(natten.na2d(T, T, T, 3, **{keyword: value}))
            else:
                natten.attention(EXTRA, EXTRA, EXTRA, **{keyword: value})
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{keyword}={value!r} ") and record.levelno == logging.DEBUG


def test_defaults_of_hints_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="tvm_na.compat.natten"):
        natten.na2d(T, T, T, 3, backend=None, **ignored.NA_HINTS)
    assert not caplog.records


@pytest.mark.parametrize("name", [*ignored.NA_BACKENDS, "auto", "compiled", "reference"])
def test_names_of_backends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setitem(fused._FUNCTIONS, 2, lambda *_, backend, **__: seen.append(backend))
    natten.na2d(T, T, T, 3, backend=name)
    assert seen == ["auto" if "-" in name else name]


@pytest.mark.parametrize(("name", "error"), [("cutlass", ValueError), ("flex-fmha", ValueError), (3, TypeError)])
def test_other_names_of_backends_are_refused(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="^backend: required .*") as caught:
        natten.na2d(T, T, T, 3, backend=name)
    if error is ValueError:
        assert all(known in str(caught.value) for known in ("auto, compiled, reference", "hopper-fna", repr(name)))


def test_arguments_of_no_release_are_refused() -> None:
    for args, named in (((), {"dilate": 2}), ((1, 1, False, None) * 6, {}), ((1,), {"stride": 2})):
        with pytest.raises(TypeError, match="na2d: required the arguments of a release of NATTEN"):
            natten.na2d(T, T, T, 3, *args, **named)
    with pytest.raises(TypeError, match="stride: required an integer"):
        natten.na2d(T, T, T, 3, "1")


MEANS = {
    "stride": (1, 1),
    "dilation": (1, 1),
    "is_causal": (False, False),
    "bias": False,
    "qkv_bias": True,
    "drop": 0.0,
}


def meaning(module: Any) -> dict[str, Any]:
    return {
        "stride": module.stride,
        "dilation": module.dilation,
        "is_causal": module.is_causal,
        "bias": module.rpb is not None,
        "qkv_bias": module.qkv.bias is not None,
        "drop": module.attn_drop.p,
    }


@pytest.mark.parametrize(
    ("args", "named", "means"),
    [
        ((), {"embed_dim": 8, "num_heads": 2, "kernel_size": 3}, {}),
        ((8, 2, 3), {"stride": 2}, {"stride": (2, 2)}),
        ((8, 2, 3, 2, 3), {}, {"stride": (2, 2), "dilation": (3, 3)}),
        ((8, 2, 3, 1, 2, (True, False), False), {},
         {"dilation": (2, 2), "is_causal": (True, False), "qkv_bias": False}),
        ((8, 2, 3), {"is_causal": True, "qk_scale": 0.3, "proj_drop": 0.1}, {"is_causal": (True, True)}),
        ((), {"dim": 8, "num_heads": 2, "kernel_size": 3, "stride": 2}, {"stride": (2, 2)}),  # 0.20
        ((8, 2, 3, 2), {"rel_pos_bias": True}, {"dilation": (2, 2), "bias": True}),  # 0.17
        ((8, 2, 3, 2, False, True, False), {"attn_drop": 0.1, "use_experimental_ops": False},
         {"dilation": (2, 2), "bias": True, "qkv_bias": False, "drop": 0.1}),
        ((8, 2, 3, 2, False, True, True, 0.3, 0.1, 0.2, True), {}, {"dilation": (2, 2), "bias": True, "drop": 0.1}),
        ((), {"dim": 8, "num_heads": 2, "kernel_size": 3, "dilation": None, "bias": True}, {"bias": True}),  # 0.15
        ((8, 2, 3, 2), {"bias": False, "attn_drop": 0.1}, {"dilation": (2, 2), "drop": 0.1}),
        ((8, 2, 3, 2, True, False, 0.3), {}, {"dilation": (2, 2), "bias": True, "qkv_bias": False}),
    ],
)  # fmt: skip
def test_what_the_arguments_of_a_module_mean(args: Any, named: dict[str, Any], means: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = natten.NeighborhoodAttention2D(*args, **named)
    assert meaning(module) == {**MEANS, **means}
    assert isinstance(module, ours.NeighborhoodAttention2D) and (module.num_heads, module.kernel_size) == (2, (3, 3))
    assert module.scale == (0.3 if 0.3 in (*args, named.get("qk_scale")) else 0.5)


@pytest.mark.parametrize(
    ("args", "named", "differs"),
    [
        ((8, 2, 3, 2), {}, "stride"),
        ((8, 2, 3, 2), {"is_causal": True}, "stride"),
        ((8, 2, 3, 1, True), {}, "is_causal"),
        ((8,), {"num_heads": 2, "kernel_size": 3, "attn_drop": 0.1}, "rel_pos_bias"),
        ((), {"dim": 8, "num_heads": 2, "kernel_size": 3}, "rel_pos_bias"),
    ],
)
def test_modules_that_releases_read_differently_need_a_release(args: Any, named: Any, differs: str) -> None:
    with pytest.raises(ValueError, match=f"^{differs}: required NeighborhoodAttention2D with arguments by name, or"):
        natten.NeighborhoodAttention2D(*args, **named)
    natten.assume_release("0.17.0")
    if "is_causal" not in named:
        assert natten.NeighborhoodAttention2D(*args, **named).rpb is None
    natten.assume_release("0.15.1")
    if "is_causal" not in named:
        assert natten.NeighborhoodAttention2D(*args, **named).rpb is not None


def test_the_plainest_call_is_read_as_the_newest_release_does_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="0.14.5 as rel_pos_bias=True") as caught:
        assert natten.NeighborhoodAttention2D(8, 2, 3).rpb is None
    assert caught[0].filename == __file__
    natten.assume_release("0.14.6")
    assert natten.NeighborhoodAttention2D(8, 2, 3).rpb is not None


def test_the_first_releases_gave_the_kernel_size_before_the_heads() -> None:
    natten.assume_release("0.14.4")
    module = natten.NeighborhoodAttention2D(8, 3, 2, dilation=2)
    assert (module.kernel_size, module.num_heads) == ((3, 3), 2)
    assert meaning(module) == {**MEANS, "bias": True, "dilation": (2, 2)}
    natten.assume_release(None)
    module = natten.NeighborhoodAttention(8, 3, 2, True, None, 0.1)  # a name of these releases alone
    assert (module.kernel_size, module.num_heads, module.attn_drop.p) == ((3, 3), 2, 0.1)


def test_a_3d_module_of_0_15_has_a_kernel_size_for_the_depth() -> None:
    named = {"dim": 8, "num_heads": 2, "kernel_size": 3, "kernel_size_d": 2, "dilation": 2, "bias": True}
    module = natten.NeighborhoodAttention3D(**named)
    assert (module.kernel_size, module.dilation) == ((2, 3, 3), (2, 2, 2)) and module.rpb.shape == (2, 3, 5, 5)
    assert natten.NeighborhoodAttention3D(**named, dilation_d=1).dilation == (1, 2, 2)
    assert natten.NeighborhoodAttention1D(8, 2, 3, bias=True).rpb.shape == (2, 5)


def test_wrong_arguments_of_modules_name_the_argument() -> None:
    for args, named, error, says in (
        ((8, 3, 3), {}, ValueError, "embed_dim: required a multiple of num_heads=3, got 8"),
        ((8, 2, 3, 2), {"qkv_bias": 1}, TypeError, "qkv_bias: required bool, got int 1"),
        ((8, 2, 3), {"proj_drop": True}, TypeError, "proj_drop: required a number, got bool True"),
        ((8, 2, "3"), {}, TypeError, "kernel_size: required an integer, got str '3'"),
        ((), {"embed_dim": 8, "num_heads": 2, "kernel_size": 3, "stride": 4}, ValueError, "stride: required"),
        ((8, 2), {}, TypeError, "NeighborhoodAttention2D: required the arguments of a release of NATTEN"),
        ((8, 2, 3), {"stride": 1, "bias": True}, TypeError, "NeighborhoodAttention2D: required the arguments"),
    ):
        with pytest.raises(error, match=says):
            natten.NeighborhoodAttention2D(*args, **named)


def test_switches_keep_what_is_set() -> None:
    for use, is_set in (
        (natten.use_fused_na, natten.is_fused_na_enabled),
        (natten.use_fna, context.is_fna_enabled),
        (natten.use_kv_parallelism_in_fused_na, natten.is_kv_parallelism_in_fused_na_enabled),
        (natten.use_deterministic_algorithms, natten.are_deterministic_algorithms_enabled),
        (natten.use_gemm_na, natten.is_gemm_na_enabled),
        (natten.use_tiled_na, natten.is_tiled_na_enabled),
        (natten.use_tf32_in_gemm_na, natten.is_tf32_in_gemm_na_enabled),
        (natten.allow_flex_compile, natten.is_flex_compile_allowed),
    ):
        use(False)
        assert not is_set()
        use()
        assert is_set(), use
    natten.set_memory_usage_preference("strict")
    assert natten.is_memory_usage_strict() and not natten.is_memory_usage_default()
    context.NattenContext.reset()
    assert natten.is_memory_usage_default() and not natten.are_deterministic_algorithms_enabled()
    with pytest.raises(ValueError, match="pref: required one of default, strict, unrestricted, got 'little'"):
        natten.set_memory_usage_preference("little")
    with pytest.raises(TypeError, match="deterministic: required bool, got int 1"):
        natten.use_deterministic_algorithms(1)


def test_what_is_there_and_what_is_not() -> None:
    assert natten.has_fused_na() and natten.has_half(0) and not natten.has_gemm() and not natten.HAS_LIBNATTEN
    assert natten.has_cuda() is torch.cuda.is_available()
    with pytest.raises(NotImplementedError, match="get_configs_for_cutlass_fna: .* tvm-na tune"):
        natten.get_configs_for_cutlass_fna(T, T, T)
    with pytest.raises(AttributeError, match="no attribute 'na4d'"):
        _ = natten.na4d


def test_check_all_args_of_both_eras() -> None:
    check = natten.utils.check_all_args
    assert check(2, 3, None, (True, False)) == ((3, 3), (1, 1), (True, False))
    assert check(2, kernel_size=3, dilation=2, is_causal=False) == ((3, 3), (2, 2), (False, False))
    assert check(1, [3], 2, 1, None) == ((3,), (2,), (1,), (False,))
    with pytest.raises(ValueError, match="kernel_size: required 2 values"):
        check(2, (3, 3, 3), 1, False)
    with pytest.raises(TypeError, match="check_all_args: required"):
        check(2, 3, 1)
