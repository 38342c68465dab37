"""The process of one case: ``python -m benchmarks.suite.worker CASE ANSWER``, both started and read by the runner."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from benchmarks.suite.cases import Case, Setting
from benchmarks.suite.parts import PARTS

_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def main(told: str, answer: str) -> None:
    """Measure the case that ``told`` describes, and write what was found."""
    import torch

    from tvm_na import settings

    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    content: dict[str, Any] = json.loads(told)
    case, setting = Case(**content["case"]), Setting(**content["setting"])
    torch.set_num_threads(settings.num_threads())
    warnings.simplefilter("ignore")
    found = PARTS[content["part"]].run(case, dataclasses.replace(setting, folder=Path(setting.folder)))
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
