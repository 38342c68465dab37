"""``tvm-na serve``: what it refuses before it listens. tests/serve/test_process.py runs it."""

from __future__ import annotations

import builtins
import sys

import pytest
import torch

from tests.cli.invoking import TINY, error_of, invoke
from tvm_na.models import create_model
from tvm_na.serve import app as served_app

SMALL = ("serve", TINY.name, "--backend", "reference", "--input-size", 32)


@pytest.fixture
def served(monkeypatch):
    """What would have been served, and where."""
    calls = []

    def run_server(service, host, port, names):
        calls.append((service, host, port, names))
        assert service.close(10)
        return 0

    monkeypatch.setattr(served_app, "run_server", run_server)
    return calls


def test_options_arrive(served, tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\nc\n", encoding="utf-8")
    torch.save(create_model(TINY.name, num_classes=3).state_dict(), tmp_path / "w.pth")
    limits = ("--max-batch", 3, "--max-delay-ms", 0, "--max-queue", 9, "--max-request-mb", 0.5, "--max-pixels", 99)
    files = ("--labels", tmp_path / "labels.txt", "--weights", tmp_path / "w.pth")
    where = ("--host", "0.0.0.0", "--port", 1234, "--server-name", "a.example")
    result = invoke(*SMALL, *files, *limits, *where, "--timeout", 2.5, "--decode-timeout", 0.5)
    ((service, host, port, names),) = served
    assert (host, port, names) == ("0.0.0.0", 1234, ["a.example"])
    got = service.limits
    assert (got.max_batch, got.max_delay_ms, got.max_queue, got.max_pixels, got.timeout) == (3, 0, 9, 99, 2.5)
    assert (got.max_bytes, got.decode_timeout) == (500_000, 0.5)
    assert (service.classifier.labels, service.classifier.random_weights) == (("a", "b", "c"), False)
    assert service.classifier.preprocessing.input_size == 32
    assert result.stderr == ""


def test_defaults(served):
    result = invoke(*SMALL)
    ((service, host, port, names),) = served
    assert (host, port, names, service.classifier.classes) == ("127.0.0.1", 8000, (), 1000)
    assert (service.limits.max_bytes, service.limits.max_pixels) == (20_000_000, 50_000_000)
    assert "the weights are RANDOM" in result.stderr


def test_errors(served, tmp_path):
    (tmp_path / "two.txt").write_text("a\nb\n")
    cases = [
        (("serve", "nat_min"), "did you mean 'nat_mini'"),
        (("serve", tmp_path / "none.artifact"), "artifact: required an existing folder"),
        (("serve", tmp_path / "none.artifact", "--backend", "auto"), "backend: required a model's name with it"),
        (("serve", tmp_path / "none.artifact", "--model", "nat_mini"), "weights: required those of the artifact"),
        ((*SMALL, "--model", "nat_mini"), "model: required an artifact with it"),
        ((*SMALL, "--labels", tmp_path / "two.txt", "--num-classes", 3), "labels: required 3 labels"),
        ((*SMALL, "--weights", tmp_path / "none.pth"), "path: required an existing file"),
        ((*SMALL, "--max-batch", 0), "max_batch: required an integer > 0, got 0"),
        ((*SMALL, "--timeout", "nan"), "timeout: required a number > 0, got nan"),
    ]
    for arguments, message in cases:
        assert message in error_of(*arguments)
    assert served == []


def test_a_model_that_fails_is_not_served(served, monkeypatch):
    monkeypatch.setattr("tvm_na.models.nat.NAT.forward", lambda self, x: torch.full((len(x), 1000), torch.nan))
    assert "required finite logits, got inf or NaN" in error_of(*SMALL)
    monkeypatch.setattr("tvm_na.models.nat.NAT.forward", lambda self, x: torch.zeros(1, 9))
    assert "model: required logits (1, 1000), got (1, 9)" in error_of(*SMALL)
    assert served == []


def test_without_the_extra(monkeypatch):
    real = builtins.__import__

    def without_fastapi(name, *arguments, **options):
        if name.split(".")[0] == "fastapi":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.startswith("tvm_na.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_fastapi)
    assert "serve: required the extra 'serve' (pip install 'tvm_na[serve]')" in error_of("serve", "nat_mini")
