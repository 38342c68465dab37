"""What was found, as JSON: a file for each step, all of them in one archive that is renewed as they come."""

from __future__ import annotations

import datetime
import json
import os
import tarfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ARCHIVE, SUMMARY = "results.tar.gz", "summary.json"
#: What is said of a step that could not begin, or whose processes do not start, starts with this.
FAILED = "failed"


class Results:
    """The results of steps, item by item.

    An item's result is what its function gave, under "value"; or what was "wrong" with its numbers; or its "failure"
    (``crash``, ``timeout`` or ``error``) with a "message".

    Attributes:
        folder: What goes into the archive: ``<step>.json``, and whatever else steps write there.
        about: The machine, in every file.
    """

    def __init__(self, output: Path, folder: Path) -> None:
        """Go on with the archive in ``output``, where there is one; ``folder`` is anywhere else."""
        output.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._output, self.folder, self.about = output, folder, dict[str, Any]()
        self._lock, self._archived = threading.RLock(), time.monotonic()
        if (output / ARCHIVE).is_file():
            with tarfile.open(output / ARCHIVE) as archive:
                archive.extractall(folder, filter="data")
        self._steps: dict[str, dict[str, Any]] = {}
        for file in sorted(folder.glob("*.json")):
            content = json.loads(file.read_text(encoding="utf-8"))
            self._steps[content["step"]] = content

    def items(self, step: str) -> dict[str, dict[str, Any]]:
        """The results of a step so far, by item."""
        return dict(self._steps.get(step, {}).get("items", {}))

    def values(self, step: str) -> dict[str, Any]:
        """What the items of a step gave, of those that gave something."""
        return {name: found["value"] for name, found in self.items(step).items() if "value" in found}

    def is_bad(self, step: str, item: str) -> bool:
        """Whether an item was wrong or failed."""
        return "value" not in self.items(step).get(item, {"value": None})

    def add(self, step: str, item: str, found: Mapping[str, Any]) -> None:
        """Keep the result of an item; the archive is renewed if it is older than some seconds."""
        with self._lock:
            self._steps.setdefault(step, {"step": step, "seconds": 0.0, "items": {}})["items"][item] = dict(found)
            if time.monotonic() - self._archived > 20:
                self.save(step)

    def end(self, step: str, how: str, seconds: float) -> None:
        """Note how a step ended (``done``, ``cut: ...``, ``failed: ...``) and its seconds, and renew the archive."""
        with self._lock:
            content = self._steps.setdefault(step, {"step": step, "seconds": 0.0, "items": {}})
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            content.update(ended=how, seconds=content["seconds"] + seconds, date=now)
            self.save(step)

    def save(self, step: str) -> None:
        """Write a step's file, the archive and the summary."""
        with self._lock:
            content = {**self._steps[step], "about": self.about}
            _replace(self.folder / f"{step}.json", json.dumps(content, indent=1) + "\n")
            part = self._output / f"{ARCHIVE}.part"
            with tarfile.open(part, "w:gz", compresslevel=6) as archive:
                for file in sorted(self.folder.iterdir()):
                    archive.add(file, file.name)
            os.replace(part, self._output / ARCHIVE)
            _replace(self._output / SUMMARY, json.dumps(self.summary(), indent=1) + "\n")
            self._archived = time.monotonic()

    def summary(self) -> dict[str, Any]:
        """How every step ended, and by name what was wrong or failed."""
        steps = {}
        for name, content in self._steps.items():
            bad = {item: _why(found) for item, found in content["items"].items() if self.is_bad(name, item)}
            told = {"ended": content.get("ended", "under way"), "seconds": round(content["seconds"], 1)}
            steps[name] = {**told, "items": len(content["items"]), "bad": bad}
        return {"about": self.about, "steps": steps}

    @property
    def bad(self) -> list[str]:
        """Every item that was wrong or failed, and every step that could not begin, with the reason."""
        found = []
        for step, told in self.summary()["steps"].items():
            found += [f"{step}: {told['ended']}"] * told["ended"].startswith(FAILED)
            found += [f"{step}: {item}: {why}" for item, why in told["bad"].items()]
        return found


def _why(found: Mapping[str, Any]) -> str:
    if "wrong" in found:
        return f"wrong numbers: {found['wrong']}"
    return f"{found['failure']}: {str(found['message']).strip().rpartition(chr(10))[2]}"


def _replace(file: Path, text: str) -> None:
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
