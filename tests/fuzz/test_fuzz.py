"""The fuzzer itself: a short run of each subject, and that it sees errors, crashes and processes that hang."""

from __future__ import annotations

import json
import os
import random
import time
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest

from tests.fuzz.damage import damage_folder, damaged_bytes, damaged_json
from tests.fuzz.subject import Subject
from tests.fuzz.worker import Worker, subjects

ROUNDS = {"numbers": 2, "cache": 1, "records": 1, "artifacts": 2, "checkpoints": 10, "uploads": 1, "kills": 1}


def test_every_subject_is_run() -> None:
    assert list(ROUNDS) == list(subjects())


@pytest.mark.parametrize("name", ROUNDS)
def test_rounds_find_nothing(name: str) -> None:
    with closing(Worker(subjects()[name])) as worker:
        assert worker.broken is None, worker.broken
        for seed in range(ROUNDS[name]):
            found = worker.round(seed)
            assert found is None, f"python -m tests.fuzz --subject {name} --seed {seed} --rounds 1\n{found}"


class Vulnerable(Subject):
    """Fails in every way."""

    name = "vulnerable"
    seconds: ClassVar[float] = 1.0

    def round(self, rng: random.Random) -> None:
        kind = rng.randrange(4)
        if kind == 0:
            raise KeyError("a wrong error")
        if kind == 1:
            os.abort()
        if kind == 2:
            time.sleep(60)


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
