"""Compilers that do something else."""

from __future__ import annotations

from pathlib import Path


def compiler_that(does: str, folder: Path) -> str:
    """A compiler of that shell code."""
    script = folder / "compiler"
    script.write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
    script.chmod(0o700)
    return str(script)
