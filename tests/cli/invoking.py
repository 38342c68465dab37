"""The command line, called in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from tvm_na.cli import app
from tvm_na.models import registry

#: A model that takes milliseconds; ``tests/cli/conftest.py`` registers it.
TINY = registry.ModelSpec("tiny_for_tests", 8, (1, 1), (1, 2), 2.0, 0.0, parameters=0, kernel_size=3)


def invoke(*arguments: object, code: int = 0, stdin: str | None = None) -> Result:
    """What a command says; it must end with ``code``, and never in a traceback."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, env={"COLUMNS": "300"})
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def error_of(*arguments: object) -> str:
    """The only error that a command ends with, without its mark."""
    (line,) = [x for x in invoke(*arguments, code=2).stderr.splitlines() if x.startswith("error: ")]
    return line.removeprefix("error: ")
