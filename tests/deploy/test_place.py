"""Where an artifact is put: nothing but an artifact is ever replaced, and an interrupt loses neither of two."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.deploy.made_up import made_up
from tests.helpers import run_python
from tvm_na.deploy import place
from tvm_na.deploy.manifest import read_manifest

NOT_ALONE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a web app": (lambda f: (f / "manifest.json").write_text('{"name": "app", "icons": []}'), "required the format"),
    "a folder without a manifest": (lambda f: (f / "manifest.json").unlink(), "without one"),
    "a file beside": (lambda f: (f / "thesis.tex").write_text("x"), "got also {folder}/thesis.tex"),
    "a file further down": (lambda f: (f / "model" / "data" / "x").write_text("x"), "got also {folder}/model/data/x"),
    "a hidden folder": (lambda f: shutil.copytree(f / "model", f / ".git"), "got also {folder}/.git/"),
    "a link in it": (lambda f: (f / "home").symlink_to("/"), "{folder}/home: required a regular file or a folder"),
    "a pipe in it": (lambda f: os.mkfifo(f / "pipe"), "{folder}/pipe: required a regular file or a folder"),
    "a link to it": (lambda f: f.symlink_to(f.rename(f.with_name("real"))), "got a link, {folder}"),
    "a link to nothing": (lambda f: shutil.rmtree(f) or f.symlink_to("nothing"), "got a link, {folder}"),
    "a file": (lambda f: shutil.rmtree(f) or f.write_text("x"), "{folder}: required a folder that can be read"),
}


def everything(folder: Path) -> dict[str, bytes | None]:
    walk = [Path(at, name) for at, folders, files in os.walk(folder) for name in (*folders, *files)]
    return {str(f): f.read_bytes() if f.is_file() and not f.is_symlink() else None for f in walk}


@pytest.mark.parametrize("name", NOT_ALONE)
def test_nothing_but_an_artifact_is_replaced(tmp_path: Path, name: str) -> None:
    folder = made_up(tmp_path / "x.artifact")
    change, says = NOT_ALONE[name]
    assert place.checked_output(folder, True) == folder
    entered = place.in_place(folder, True)
    made_up(entered.__enter__()[0])
    change(folder)
    before = everything(tmp_path)
    with pytest.raises(ValueError, match="^output: required .* and nothing else, got"):  # it was changed meanwhile
        entered.__exit__(None, None, None)
    left = everything(tmp_path)
    assert left == {path: content for path, content in before.items() if "/.x.artifact-" not in path}
    with pytest.raises(ValueError, match=f"^output: .*{re.escape(says.format(folder=folder))}"):
        place.checked_output(folder, True)
    with pytest.raises(ValueError, match="^output: required a path where nothing is, or overwrite"):
        place.checked_output(folder, False)


@pytest.fixture(params=["in one step", "in two steps"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How folders change places: by the file system, or by two renames where that cannot."""
    if request.param == "in two steps":
        monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    return str(request.param)


@pytest.mark.parametrize("damage", [lambda f: None, lambda f: (f / "operators.so").unlink()], ids=["whole", "damaged"])
def test_an_artifact_is_replaced(tmp_path: Path, steps: str, damage: Callable[[Path], object]) -> None:
    folder = made_up(tmp_path / "x.artifact", "old")
    damage(folder)
    with place.in_place(place.checked_output(folder, True), True) as (new, scratch):
        made_up(new, "new")
        (scratch / "x").write_text("x")
        assert read_manifest(folder).model["name"] == "old"
    assert read_manifest(folder).model["name"] == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_an_interrupt_between_two_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    folder, rename = made_up(tmp_path / "x.artifact", "old"), Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), place.in_place(folder, True) as (new, _):
        made_up(new, "new")
    assert read_manifest(folder).model["name"] == "old" and list(tmp_path.iterdir()) == [folder]


def test_a_kill_at_the_exchange_leaves_an_artifact(tmp_path: Path) -> None:
    """Before and after the step there is one at the place, whichever."""
    made_up(tmp_path / "x.artifact", "old")
    code = """
        import os, sys
        from pathlib import Path
        from tests.deploy.made_up import made_up
        from tvm_na.deploy import place
        exchange = place._exchange
        def killed(new, old):
            if sys.argv[2] == "after":
                exchange(new, old)
            os._exit(0)
        place._exchange = killed
        with place.in_place(Path(sys.argv[1]), True) as (new, scratch):
            made_up(new, "new")
    """
    for when, name in (("before", "old"), ("after", "new")):
        run_python(code, str(tmp_path / "x.artifact"), when)
        assert read_manifest(tmp_path / "x.artifact").model["name"] == name
