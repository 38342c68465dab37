"""Threads: how many, on whose pool, after fork, from several Python threads at once."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.helpers import run_python
from tvm_na import na2d, settings
from tvm_na.jit import openmp, runtime


def attention(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 28, 28, 4, 32, generator=generator)
    return na2d(query, query.flip(1), query.flip(2), 7, backend="compiled")


class Attentions(Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return attention(index)[0]


def test_forked_workers_compute_the_same() -> None:
    expected = [attention(i)[0] for i in range(6)]  # the parent's threads exist before the fork
    loader = DataLoader(Attentions(), batch_size=1, num_workers=2, multiprocessing_context="fork", timeout=60)
    for wanted, got in zip(expected, loader, strict=True):
        torch.testing.assert_close(got[0], wanted)
    torch.testing.assert_close(attention(0)[0], expected[0])  # and the parent goes on


def test_workers_forked_before_the_first_call() -> None:
    code = """
        import torch
        from torch.utils.data import DataLoader
        torch.set_num_threads(2)
        torch.nn.functional.gelu(torch.rand(1 << 20))  # PyTorch's threads exist, tvm_na is not imported
        class Attentions(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, index):
                from tests.jit.test_runtime import attention
                return attention(index)[0]
        loader = DataLoader(Attentions(), num_workers=2, multiprocessing_context="fork", timeout=60)
        got = [out[0] for out in loader]
        from tests.jit.test_runtime import attention
        assert all(torch.allclose(got[i], attention(i)[0], atol=1e-6) for i in range(4))
    """
    run_python(code)


def test_eight_threads_at_once() -> None:
    expected = [attention(i) for i in range(8)]

    def is_right(i: int) -> bool:
        return all(torch.allclose(attention(i), expected[i], atol=1e-6) for _ in range(10))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_right, range(8)))


def test_threads_that_compile_import_tvm_once(tmp_path: Path) -> None:
    code = """
        from concurrent.futures import ThreadPoolExecutor
        from tvm_na.jit import build
        from tvm_na.problems.backward import BackwardProblem
        from tvm_na.problems.attention import NAProblem
        forward = NAProblem.make((6, 7), 3, 2, 8)
        problems = [forward, BackwardProblem(forward)]
        with ThreadPoolExecutor(2) as pool:
            files = list(pool.map(lambda p: build.compile_for(p, build.target_for("cpu")), problems))
        assert all(file.is_file() for file in files)
    """
    run_python(code, env={**os.environ, "TVM_NA_CACHE_DIR": str(tmp_path)})


def test_the_number_of_threads_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    attention(0)
    told: list[int] = []
    monkeypatch.setattr(runtime, "_load_runtime", lambda: told.append)
    monkeypatch.setattr(runtime, "_pools", threading.local())
    for text, flops, threads in (
        ("5", 10**9, 5),
        ("3", 10**9, 3),
        ("3", 4_000_000, 2),
        ("3", 0, 1),
        ("1", 10**9, 1),
    ):
        monkeypatch.setenv("TVM_NA_NUM_THREADS", text)
        runtime.use_threads(flops)
        assert told[-1] == threads
    monkeypatch.delenv("TVM_NA_NUM_THREADS")
    runtime.use_threads(10**12)
    assert told[-1] == torch.get_num_threads() == settings.num_threads()


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_a_wrong_number_of_threads_is_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TVM_NA_NUM_THREADS", text)
    with pytest.raises(ValueError, match="TVM_NA_NUM_THREADS: required a positive integer"):
        attention(0)


@pytest.mark.parametrize("threads", ["1", "2", "7"])
def test_any_number_of_threads_gives_the_same(monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    expected = attention(3)
    monkeypatch.setenv("TVM_NA_NUM_THREADS", threads)
    assert torch.equal(attention(3), expected)


def test_kernels_run_on_the_openmp_that_pytorch_brought() -> None:
    assert openmp.pytorch_openmp() is not None
    # No thread comes up for kernels beside PyTorch's, even where another package brought OpenMP first.
    code = """
        import os
        import sklearn.metrics
        import torch
        from tvm_na import na2d
        torch.set_num_threads(2)
        x = torch.rand(512, 512)
        (x @ x).sum()
        torch.nn.functional.gelu(torch.rand(1 << 20))
        before = len(os.listdir("/proc/self/task"))
        q = torch.rand(1, 56, 56, 2, 32)
        na2d(q, q, q, 7, backend="compiled")
        print(before, len(os.listdir("/proc/self/task")))
    """
    before, after = run_python(code, env={**os.environ, "TVM_NA_NUM_THREADS": "2"}).split()
    assert after == before


def test_without_openmp_tvms_pool_computes_the_same(tmp_path: Path) -> None:
    code = """
        import os, sys, threading, torch
        from tvm_na.jit import openmp
        openmp.pytorch_openmp = lambda: None
        from tests.jit.test_runtime import attention
        expected = torch.load(sys.argv[1])
        assert torch.equal(attention(3), expected)
        thread = threading.Thread(target=attention, args=(3,))
        thread.start()
        thread.join()
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)  # as DataLoader's workers do: PyTorch's own threads are gone as well
            os._exit(0 if torch.equal(attention(3), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    torch.save(attention(3), tmp_path / "expected.pt")
    run_python(code, str(tmp_path / "expected.pt"), env={**os.environ, "TVM_NA_NUM_THREADS": "2"})
