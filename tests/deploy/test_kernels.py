"""The library of operators of an artifact: every option of the kernels, called without AOTInductor around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TOLERANCE
from tests.helpers import random_inputs, reference64, relative_error
from tvm_na.deploy.aoti import operators as kernels
from tvm_na.deploy.artifact import load_operators
from tvm_na.problems.attention import NAProblem
from tvm_na.targets.target import cpu_features, detect_target

PROBLEMS = [
    NAProblem.make((9, 11), (3, 5), 4, 12, stride=(1, 2), dilation=(3, 1), heads_kv=2, bias=True, return_lse=True),
    NAProblem.make((7, 8), 3, 2, 8, is_causal=(True, False), head_dim_v=4, dtype="float64"),
    NAProblem.make((40, 40), 7, 2, 32, bias=True),  # more than one thread
    NAProblem.make(19, 5, 4, 8, heads_kv=2, dilation=3, bias=True, return_lse=True),
    NAProblem.make((4, 5, 6), (3, 2, 3), 2, 8, is_causal=(True, False, False)),
]
#: The largest batch of one call in these tests, so that a batch of 5 is split unevenly.
SAMPLES = 2


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The namespace of a library with the kernels of PROBLEMS."""
    folder = tmp_path_factory.mktemp("kernels")
    target = detect_target()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NAProblem, "largest_batch", lambda problem, kind: SAMPLES)
        selections = kernels.compile_objects(PROBLEMS, target, folder)
        library = folder / "operators.so"
        namespace = kernels.link_operators(PROBLEMS, target, cpu_features(target), folder, library)
    assert [c.kind for c in selections] == ["default"] * len(PROBLEMS)
    load_operators(library, namespace)
    return getattr(torch.ops, namespace)


def call(operators: Any, number: int, inputs: Any, scale: float) -> tuple[torch.Tensor, ...]:
    if PROBLEMS[number].return_lse:
        return operators.attend_lse(*inputs, scale, number)
    return (operators.attend(*inputs, scale, number),)


@pytest.mark.parametrize("batch", [0, 1, 2, 5])
@pytest.mark.parametrize("number", range(len(PROBLEMS)))
def test_numbers(operators, number: int, batch: int) -> None:
    problem = PROBLEMS[number]
    inputs = random_inputs(problem, batch, seed=number)
    found = call(operators, number, inputs, 0.3)
    if batch == 0:
        assert found[0].shape == (0, *problem.spatial, problem.heads, problem.head_dim_v)
        return
    for out, right in zip(found, reference64(problem, inputs, 0.3), strict=False):
        assert str(out.dtype) == f"torch.{problem.accum_dtype}"
        assert relative_error(out, right) <= TOLERANCE[problem.dtype]


def test_views(operators) -> None:
    """Transposed, misaligned and lazily negated tensors are read as what they are."""
    query, key, value, _ = random_inputs(PROBLEMS[1], 2, seed=3)
    right = call(operators, 1, (query, key, value, None), 1.0)[0]
    transposed = query.transpose(1, 2).contiguous().transpose(1, 2)
    misaligned = torch.empty(key.numel() + 1, dtype=key.dtype)[1:].view_as(key).copy_(key)
    negated = torch.complex(torch.zeros_like(value), -value).conj().imag
    assert not transposed.is_contiguous() and misaligned.data_ptr() % 64 and negated.is_neg()
    assert torch.equal(call(operators, 1, (transposed, misaligned, negated, None), 1.0)[0], right)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda q, k, v, b: (q.double(), k, v, b), "required Float"),
        (lambda q, k, v, b: (q[0], k, v, b), "required 5 dimensions"),
        (lambda q, k, v, b: (q, k[:, :, :-1], v, b), "failed: "),
        (lambda q, k, v, b: (q, k, v, b[:, :-1]), "failed: "),
        (lambda q, k, v, b: (q, k, v, None), "failed: "),
    ],
)
def test_wrong_tensors_are_errors(operators, change, says: str) -> None:
    """Of the operator or of the kernel, which names the problem."""
    with pytest.raises(RuntimeError, match=says) as caught:
        call(operators, 2, change(*random_inputs(PROBLEMS[2], 1, seed=0)), 1.0)
    assert "40x40" in str(caught.value)


def test_kernels_that_are_not_there(operators) -> None:
    inputs = random_inputs(PROBLEMS[2], 1, seed=0)
    for number in (-1, len(PROBLEMS)):
        with pytest.raises(RuntimeError, match=f"kernel: required 0 to {len(PROBLEMS) - 1}"):
            operators.attend(*inputs, 1.0, number)


def test_too_large_a_sample(tmp_path: Path) -> None:
    problem = NAProblem.make((30000, 30000), 3, 2, 8)
    with pytest.raises(ValueError, match=r"model: required fewer than 2\^31 elements per sample"):
        kernels.compile_objects([problem], detect_target(), tmp_path)


def test_what_the_compiler_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "sh -c 'echo no such symbol; exit 1'")
    (tmp_path / "kernel_0.o").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"the C\+\+ compiler failed:\nno such symbol\n"):
        kernels.link_operators(PROBLEMS[:1], detect_target(), ("avx2",), tmp_path, tmp_path / "x.so")
