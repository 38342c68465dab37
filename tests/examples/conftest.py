"""What the tests of all examples start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tvm_na.models import registry


@pytest.fixture(autouse=True)
def _tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file's ``TINY`` by name, and one thread: on busy cores two wait for each other much longer than they work."""
    monkeypatch.setitem(registry.SPECS, request.module.TINY.name, request.module.TINY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
