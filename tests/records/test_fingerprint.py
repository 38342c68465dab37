"""What kernels depend on: a change to any expression or schedule gives them another name."""

from __future__ import annotations

import importlib.util
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tvm_na import fingerprint

ROOT = Path(__file__).parents[2]
FOLDERS = {"tvm_na.te": ROOT / "tvm_na" / "te", "tvm_na.schedules": ROOT / "schedules"}


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of the folders, which the digest is made of instead."""

    def spec_of(package: str) -> ModuleSpec:
        spec = ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path / package)]
        return spec

    for package, folder in FOLDERS.items():
        shutil.copytree(folder, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(importlib.util, "find_spec", spec_of)
    return tmp_path


@pytest.mark.parametrize("package", FOLDERS)
def test_a_change_in_any_folder_changes_the_digest(copies: Path, package: str) -> None:
    digest_now = fingerprint._source_digest.__wrapped__
    before = digest_now()
    files = [file for file in (copies / package).rglob("*.py") if file.parent != copies / package]
    for file in {file.parent: file for file in files}.values():  # one of each subfolder
        whole = file.read_text(encoding="utf-8")
        file.write_text(whole + "# changed\n", encoding="utf-8")
        assert digest_now() != before, file
        file.write_text(whole, encoding="utf-8")
    assert files
    assert digest_now() == before


def test_the_digest_is_the_checkouts(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest_now = fingerprint._source_digest.__wrapped__
    copied = digest_now()
    monkeypatch.undo()
    assert digest_now() == copied
