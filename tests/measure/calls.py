"""What the workers of tests are asked to do; importing it takes no time, which would count as the first call's."""

from __future__ import annotations

import os
import time
from typing import Any


def work(what: str) -> Any:
    """What the workers of these tests are asked to do."""
    if what == "abort":
        print("about to abort", flush=True)
        os.abort()
    if what == "hang":
        time.sleep(600)
    if what == "exit":
        os._exit(3)
    if what == "raise":
        raise ValueError("raised")
    if what == "threads":
        import torch

        from tvm_na import settings

        return settings.num_threads(), torch.get_num_threads()
    return what, os.getpid()
