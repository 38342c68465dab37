"""After fork: a child computes the same on one thread, or raises at once, wherever the parent's threads were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading

import pytest

from tests.helpers import ROOT, run_forked
from tvm_na.process import forking

# Kernels, and PyTorch's own loops, on two threads that a child does not have. Each way of `ways` ends, or says why not.
PROCESS = """
    import json, multiprocessing, os, signal, sys, threading, time, traceback
    from concurrent.futures import ProcessPoolExecutor
    import torch
    torch.set_num_threads(2)
    from tests.jit.test_runtime import attention
    from tvm_na import na2d
    from tvm_na.jit import build, runtime

    many = torch.rand(1 << 20)
    expected, total = attention(0), many.add(1)
    halves = torch.rand(2, 28, 28, 4, 32, dtype=torch.bfloat16)
    half = na2d(halves, halves, halves, 7)

    def check():
        signal.alarm(30)  # a child that hangs ends itself
        assert torch.equal(attention(0), expected)
        assert torch.equal(na2d(halves, halves, halves, 7), half)
        assert torch.equal(many.add(1), total)
        assert torch.get_num_threads() == 1 and runtime._pools.threads == 1
        tensors = [t.requires_grad_() for t in torch.rand(3, 2, 28, 28, 4, 32)]
        na2d(*tensors, 7).square().mean().backward()

    def fork(run=check):
        child = os.fork()
        if child == 0:
            try:
                run()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        return child

    def ends_well(child):
        assert os.waitpid(child, 0)[1] == 0

    def in_a_thread(run):
        thread = threading.Thread(target=run)
        thread.start()
        return thread

    multiprocessing.set_start_method("fork")
    for name, code in json.loads(sys.argv[1]).items():
        try:
            exec(code)
            assert torch.get_num_threads() == 2 and torch.equal(attention(0), expected)  # the parent goes on
            print(name)
        except Exception:
            traceback.print_exc()
"""

WAYS = {
    "os.fork": "ends_well(fork())",
    "three at once": "[ends_well(child) for child in [fork() for _ in range(3)]]",
    "a call in a thread of the child": "ends_well(fork(lambda: in_a_thread(check).join()))",
    "a child of a child": "ends_well(fork(lambda: ends_well(fork()) or check()))",
    "a process of multiprocessing": """
        child = multiprocessing.Process(target=check)
        child.start()
        child.join()
        assert child.exitcode == 0
    """,
    "a pool": """
        with multiprocessing.Pool(2) as pool:
            assert torch.equal(pool.map_async(attention, [1, 0, 2]).get(30)[1], expected)
    """,
    "a pool of futures": """
        with ProcessPoolExecutor(2) as pool:
            pool.submit(check).result()
    """,
    "from a thread that is not the first": """
        found = []
        in_a_thread(lambda: found.append(ends_well(fork()))).join()
        assert found
    """,
    "beside threads that compute": """
        stop = []
        def compute():
            while not stop:
                attention(0)
        threads = [in_a_thread(compute) for _ in range(2)]
        for _ in range(5):
            ends_well(fork())
        stop.append(1)
        [thread.join() for thread in threads]
    """,
    "beside a thread that builds a kernel": """
        building, load = threading.Event(), build.runtime.load
        def slowly(*arguments):
            building.set()
            time.sleep(0.5)
            return load(*arguments)
        build.runtime.load = slowly
        other = torch.rand(1, 9, 9, 1, 8)
        thread = in_a_thread(lambda: na2d(other, other, other, 3))
        building.wait()
        def build_another():
            signal.alarm(30)
            right = na2d(other, other, other, 5, backend="reference")
            assert torch.allclose(na2d(other, other, other, 5), right, atol=1e-5)
        ends_well(fork(build_another))
        thread.join()
        build.runtime.load = load
    """,
}


@pytest.fixture(scope="module")
def survived() -> tuple[list[str], str]:
    """The ways in which a child was made that did what it must, and what was said of the others."""
    ways = json.dumps({name: textwrap.dedent(code) for name, code in WAYS.items()})
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), ways]
    environment = {**os.environ, "TVM_NA_NUM_THREADS": "2"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400)
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_children_of_a_process_that_computed(survived: tuple[list[str], str], way: str) -> None:
    assert way in survived[0], survived[1]


def test_a_child_before_the_first_call_keeps_pytorchs_threads() -> None:
    before = "import torch, tvm_na.functional\ntorch.set_num_threads(2)"
    assert run_forked(before, "print(torch.get_num_threads())", 1, True) == ["2"]


def test_a_lock_that_never_comes_is_an_error_in_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "PATIENCE", 0.05)
    lock, held, over = forking.Lock("building"), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        try:
            with lock:
                os._exit(1)
        except RuntimeError as error:
            os._exit(0 if "building: required a process" in str(error) else 2)
    over.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    with lock, lock:  # the parent's is as it was
        pass


def test_a_lock_that_the_forking_thread_has_stays_its_own() -> None:
    lock = forking.Lock("building")
    with lock:
        child = os.fork()
        if child == 0:
            with lock:
                os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
