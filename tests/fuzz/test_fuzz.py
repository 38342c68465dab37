"""The fuzzer itself: a short run of each subject, and that it sees errors, crashes and processes that hang."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from tests.deploy.artifacts import tvm_artifact
from tests.fuzz.cache import forget_kernels
from tests.fuzz.damage import damage_folder, damaged_bytes, damaged_json
from tests.fuzz.vulnerable import Vulnerable
from tests.fuzz.worker import Worker, subjects

#: Rounds of each subject. The first seed of kills is one that kills builds; tests/cli has a tuner that is killed.
ROUNDS = {"numbers": 2, "cache": 1, "records": 1, "artifacts": 2, "checkpoints": 10, "uploads": 1, "kills": 1}
FIRST = {"kills": 3}


def test_every_subject_is_run() -> None:
    assert list(ROUNDS) == list(subjects())


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What rounds change of the process, which is one of their own outside of this file."""
    for name in ("TVM_NA_CACHE_DIR", "TVM_NA_RECORDS", "TVM_NA_RECORDS_DIR"):
        monkeypatch.setenv(name, os.environ[name])
    log = logging.getLogger("tvm_na")
    level = log.level
    yield
    log.setLevel(level)
    forget_kernels()


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("name", ROUNDS)
def test_rounds_find_nothing(name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = {"whole": tvm_artifact(tmp_path_factory).path} if name == "artifacts" else {}
    with closing(subjects()[name](tmp_path, **made)) as subject:
        for seed in range(FIRST.get(name, 0), FIRST.get(name, 0) + ROUNDS[name]):
            torch.manual_seed(seed)
            subject.round(random.Random(seed))


def test_what_goes_wrong_is_a_finding() -> None:
    said = ("a wrong error", "the process crashed: exit code -6", "it hangs: no answer in 1 s")
    for seed in (1, 2, 5):  # one of each kind of failure
        wanted = said[random.Random(seed).randrange(4)]
        with closing(Worker(Vulnerable)) as worker:
            found = worker.round(seed)
        assert wanted in str(found)


def test_damage_changes_something(tmp_path: Path) -> None:
    data, content, changed = bytes(range(256)) * 20, json.dumps({"a": [1, {"b": None}], "c": "d"}), [0, 0, 0]
    for seed in range(200):
        rng, file = random.Random(seed), tmp_path / f"{seed}" / "a.json"
        changed[0] += damaged_bytes(rng, data) != data
        changed[1] += damaged_json(rng, content) != content
        file.parent.mkdir()
        file.write_text(content, encoding="utf-8")
        damage_folder(rng, file.parent)
        changed[2] += file.is_symlink() or not file.is_file() or file.read_text("utf-8", "replace") != content
    assert min(changed) > 150, changed  # what is drawn may be what was there
