"""The examples as modules, and their command lines."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[2] / "examples"


def imported(names: Sequence[str]) -> SimpleNamespace:
    """Modules of the examples, which import each other by their bare names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def run(module: Any, *options: object, code: int = 0) -> str:
    """What an example says, which must end with ``code``."""
    app = Typer()
    app.command()(module.main)
    result = CliRunner().invoke(app, [str(option) for option in options])
    assert result.exit_code == code, result.output
    return result.output
