"""Where an artifact is put: at a place where nothing is, or an artifact and nothing else, which it then replaces."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tvm_na.deploy import files
from tvm_na.deploy.manifest import MANIFEST, read_manifest

_AT_CWD, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def checked_output(output: Any, overwrite: bool) -> Path:
    """The folder to make.

    Raises:
        TypeError, ValueError: name what was required and what came.
    """
    if not isinstance(output, (str, os.PathLike)):
        raise TypeError(f"output: required a path, got {type(output).__name__} {output!r}")
    folder = Path(output).absolute()
    if not folder.parent.is_dir():
        raise ValueError(f"output: required a path in an existing folder, got {folder}")
    if os.path.lexists(folder):
        if not overwrite:
            raise ValueError(f"output: required a path where nothing is, or overwrite, got {folder}")
        require_an_artifact_alone(folder)
    return folder


def require_an_artifact_alone(folder: Path) -> None:
    """ValueError unless a folder is an artifact, and holds nothing else: it is going to be removed.

    Files of the artifact may be missing or changed.
    """
    wanted = "output: required a path where nothing or an artifact is, and nothing else"
    if folder.is_symlink():
        raise ValueError(f"{wanted}, got a link, {folder}")
    try:
        foreign = sorted(files.names(folder) - set(read_manifest(folder).files) - {MANIFEST})
    except ValueError as error:
        raise ValueError(f"{wanted}, got {folder}: {error}") from error
    if foreign:
        raise ValueError(f"{wanted}, got also {files.shown(folder / foreign[0])}")


@contextmanager
def in_place(folder: Path, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """A new folder that becomes ``folder`` if all goes well, and one for intermediate files; else neither stays.

    An artifact that is there is replaced at the end, by one step where the file system has it: whenever this is
    interrupted, either of them is there.

    Raises:
        ValueError: what is there by then is not an artifact alone.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        new, scratch = Path(temporary, "new"), Path(temporary, "scratch")
        new.mkdir()
        scratch.mkdir()
        yield new, scratch
        if overwrite and os.path.lexists(folder):
            require_an_artifact_alone(folder)
            _exchange(new, folder)
        else:
            new.rename(folder)


def _exchange(new: Path, old: Path) -> None:
    """Have two folders change places, in one step where the file system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is not None and rename(_AT_CWD, os.fsencode(new), _AT_CWD, os.fsencode(old), _EXCHANGE) == 0:
        return
    aside = new.with_name("old")
    try:
        old.rename(aside)
        new.rename(old)
    except BaseException:  # an interrupt too: what is aside is removed with the temporary folder
        if aside.exists() and not old.exists():
            aside.rename(old)
        raise
