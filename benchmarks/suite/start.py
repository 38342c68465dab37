"""How long the first call takes, with nothing compiled and with what an earlier process compiled.

``python -m benchmarks.suite.start WHAT DEVICE`` is one such process; it prints seconds as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.suite.cases import Case, Part, Setting
from benchmarks.suite.turns import rounded

OPERATOR, FLEX, NAT = "tvm_na", "flex", "NAT-Tiny"
#: Processes with a filled cache.
WARM = 2


def _cases(setting: Setting) -> list[Case]:
    if not setting.is_main:
        return []
    return [Case(what, {"what": what}, 240.0) for what in ([OPERATOR] if setting.quick else [OPERATOR, FLEX, NAT])]


def run(case: Case, setting: Setting) -> dict[str, Any]:
    """The first process, and others after it, with caches of their own."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TVM_NA_CACHE_DIR": f"{folder}/kernels", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
        first, *warm = [
            _process(case.about["what"], setting.device, caches) for _ in range(1 + (1 if setting.quick else WARM))
        ]
    return {"first": first, "warm": warm}


def _process(what: str, device: str, caches: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.suite.start", what, device]
    done = subprocess.run(command, env={**os.environ, **caches}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _first_call(what: str, device: str) -> dict[str, float]:
    """Seconds of the imports, of making what is called, and of its first two calls."""
    marks = [time.perf_counter()]
    import torch

    torch.set_grad_enabled(False)
    torch.set_num_threads(int(os.environ["TVM_NA_NUM_THREADS"]))
    from benchmarks.problems import stages_of
    from tvm_na import na2d
    from tvm_na.models import create_model

    marks.append(time.perf_counter())
    problem = stages_of()[0]
    tensors = torch.randn(3, 1, *problem.spatial, problem.heads, problem.head_dim).to(device)
    call: Callable[[], Any] = lambda: na2d(*tensors.unbind(), kernel_size=problem.kernel_size)  # noqa: E731
    if what == FLEX:
        from benchmarks.peers import flex, heads_first

        compiled, (query, key, value) = flex(problem, device), [heads_first(t) for t in tensors]
        call = lambda: compiled(query, key, value)  # noqa: E731
    elif what != OPERATOR:
        model = create_model(what.lower().replace("-", "_")).eval().to(device)
        x = torch.randn(1, 3, 224, 224).to(device)
        call = lambda: model(x)  # noqa: E731
    marks.append(time.perf_counter())
    for _ in range(2):
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
    names = ("import", "make", "first call", "second call")
    return {name: rounded(b - a) for name, a, b in zip(names, marks, marks[1:], strict=False)}


START = Part("start", _cases, run)

if __name__ == "__main__":
    print(json.dumps(_first_call(*sys.argv[1:])))
