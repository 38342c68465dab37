"""The library of operators of an artifact: every option of the kernels, called without AOTInductor around them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TOLERANCE
from tests.helpers import random_inputs, reference64, relative_error
from tvm_na.deploy.aoti import operators as kernels
from tvm_na.deploy.artifact import load_operators
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.base import Problem
from tvm_na.problems.dense import DenseProblem
from tvm_na.reference.case import draw
from tvm_na.reference.dense_case import packed, reference
from tvm_na.targets.target import cpu_features, detect_target

PROBLEMS = [
    NAProblem.make((9, 11), (3, 5), 4, 12, stride=(1, 2), dilation=(3, 1), heads_kv=2, bias=True, return_lse=True),
    NAProblem.make((7, 8), 3, 2, 8, is_causal=(True, False), head_dim_v=4, dtype="float64"),
    NAProblem.make((40, 40), 7, 2, 32, bias=True),  # more than one thread
    NAProblem.make(19, 5, 4, 8, heads_kv=2, dilation=3, bias=True, return_lse=True),
    NAProblem.make((4, 5, 6), (3, 2, 3), 2, 8, is_causal=(True, False, False)),
    NAProblem.make((7, 9), 3, 2, 8, bias=True, return_lse=True, dtype="bfloat16"),
]
#: The largest batch of one call in these tests, so that a batch of 5 is split unevenly.
SAMPLES = 2


#: Channels that are no multiple of a vector; a layer of one row; what a product takes along.
PRODUCTS = [
    DenseProblem.make(77, 12, 21, activation="gelu", residual=True),
    DenseProblem.make(1, 31, 7, bias=False),
    DenseProblem.make(30, 8, 16, residual=True, dtype="float64"),
    DenseProblem.make(400, 64, 96, activation="gelu"),  # more than one thread
    DenseProblem.make(77, 12, 21, activation="gelu", residual=True, weight_dtype="int8"),
    DenseProblem.make(30, 7, 16, activation="gelu", residual=True, dtype="bfloat16"),
    DenseProblem.make((6, 5), 8, 16, kernel_size=3, padding=1, stride=2, residual=True, weight_dtype="float16"),
]


@dataclass
class Linked:
    """The namespace of a library with the kernels of PROBLEMS and PRODUCTS, and the kernels of the latter."""

    operators: Any
    products: list[kernels.Kernel]


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Linked:
    folder = tmp_path_factory.mktemp("kernels")
    target = detect_target()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Problem, "largest_batch", lambda problem, kind: SAMPLES)
        compiled = kernels.compile_objects([*PRODUCTS[:2], *PROBLEMS, *PRODUCTS[2:]], target, folder, "off")
        library = folder / "operators.so"
        namespace = kernels.link_operators(compiled, cpu_features(target), folder, library)
    assert [kernel.selection.kind for kernel in compiled] == ["default"] * len(PROBLEMS + PRODUCTS)
    products = [kernel for kernel in compiled if kernel.problem in PRODUCTS]
    assert [kernel.number for kernel in products] == list(range(len(PRODUCTS)))
    load_operators(library, namespace)
    return Linked(getattr(torch.ops, namespace), products)


@pytest.fixture
def operators(linked: Linked) -> Any:
    """The namespace of a library with the kernels of PROBLEMS and PRODUCTS."""
    return linked.operators


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
    dtypes = (problem.dtype, problem.accum_dtype)
    for out, dtype, right in zip(found, dtypes, reference64(problem, inputs, 0.3), strict=False):
        assert str(out.dtype) == f"torch.{dtype}"
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


def layer(kernel: kernels.Kernel, batch: int, *tokens: int) -> tuple[list[Any], torch.Tensor]:
    """Random arguments of a product's operator, with the tokens on these axes, and what is right in float64."""
    problem, generator = kernel.problem, torch.Generator().manual_seed(batch)
    inputs = [a for a in problem.arguments() if a.role == "input"]
    drawn = {a.name: t for a, t in zip(inputs, draw(inputs, batch, "cpu", generator), strict=True)}
    right = reference(problem, **drawn)
    x, weight, residual = drawn["x"], packed(drawn["weight"], problem, kernel.tile), drawn.get("residual")
    if problem.rank == 1:
        x, residual, right = (t if t is None else t.reshape(batch, *tokens, t.shape[-1]) for t in (x, residual, right))
    return [x, weight, drawn.get("weight_scale"), drawn.get("bias"), residual, kernel.number], right


@pytest.mark.parametrize("batch", [0, 1, 3, 5])
@pytest.mark.parametrize(
    ("number", "tokens"),
    [(0, (7, 11)), (0, (77,)), (1, ()), (2, (2, 3, 5)), (3, (20, 20)), (4, (77,)), (5, (5, 6)), (6, ())],
)
def test_products(linked, number: int, tokens: tuple[int, ...], batch: int) -> None:
    """Tokens on any number of axes; batches that are computed in parts."""
    arguments, right = layer(linked.products[number], max(batch, 1), *tokens)
    if batch == 0:
        arguments = [a[:0] if i in (0, 4) and a is not None else a for i, a in enumerate(arguments)]
        right = right[:0]
    out = linked.operators.dense(*arguments)
    assert out.shape == right.shape and out.dtype == arguments[0].dtype
    assert batch == 0 or relative_error(out, right) <= TOLERANCE[PRODUCTS[number].dtype]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, w, s, b, r, k: (x.double(), w, s, b, r, k), "x, weight_scale, bias, residual: required Float"),
        (lambda x, w, s, b, r, k: (x, w, s, b.double(), r, k), "x, weight_scale, bias, residual: required Float"),
        (lambda x, w, s, b, r, k: (x, w.char(), s, b, r, k), "weight: required Float"),
        (
            lambda x, w, s, b, r, k: (x[..., 1:], w, s, b, r, k),
            r"required \[batch, ...\] with 77 tokens of 12 channels",
        ),
        (lambda x, w, s, b, r, k: (x[:, 1:], w, s, b, r, k), r"required \[batch, ...\] with 77 tokens of 12 channels"),
        (lambda x, w, s, b, r, k: (x, w, s, b, r[:1], k), r"residual: required \[2, 77, 21\]"),
        (lambda x, w, s, b, r, k: (x, w[:, :, :-1], s, b, r, k), "failed: "),
        (lambda x, w, s, b, r, k: (x, w, s, None, r, k), "failed: "),
        (lambda x, w, s, b, r, k: (x, w, b, b, r, k), "failed: "),
        (lambda x, w, s, b, r, k: (x, w, s, b, r, 7), "kernel: required 0 to 6, got 7"),
    ],
)
def test_wrong_tensors_of_products_are_errors(linked, change, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        linked.operators.dense(*change(*layer(linked.products[0], 2, 77)[0]))


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
    kernel = kernels.Kernel(PROBLEMS[0], 0, None, None, tmp_path / "kernel.o")
    kernel.file.write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"the C\+\+ compiler failed:\nno such symbol\n"):
        kernels.link_operators([kernel], ("avx2",), tmp_path, tmp_path / "x.so")
