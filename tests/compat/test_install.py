"""``import natten`` after install(): modules, specs and metadata; a real natten; what uninstall() leaves."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers import relative_error, run_python
from tvm_na.compat import natten

installation = importlib.import_module("tvm_na.compat.natten.install")  # as an attribute it is the function


@pytest.fixture(autouse=True)
def _uninstalled() -> Iterator[None]:
    yield
    natten.uninstall()


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package natten on the path, which stands for NATTEN itself."""
    package = tmp_path / "natten"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0.17.1'\n", encoding="utf-8")
    (package / "functional.py").write_text("natten2dav = 'theirs'\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package / "__init__.py"
    natten.uninstall()
    for name in [name for name in sys.modules if name.split(".")[0] == "natten"]:
        del sys.modules[name]


def test_modules_are_those_of_the_package() -> None:
    assert importlib.util.find_spec("natten") is None
    natten.install()
    assert importlib.import_module("natten") is natten
    for name in ("functional", "context", "types", "utils", "utils.checks", "utils.varlen", "modules", "backends"):
        assert importlib.import_module(f"natten.{name}") is importlib.import_module(f"tvm_na.compat.natten.{name}")
    for name in ("na2d", "natten2d", "modules"):
        module = importlib.import_module(f"natten.{name}")
        assert module.NeighborhoodAttention2D is natten.NeighborhoodAttention2D
    assert importlib.import_module("natten.natten3d").NeighborhoodAttention3D is natten.NeighborhoodAttention3D
    assert importlib.import_module("natten.experimental").na2d is natten.na2d is natten.functional.na2d
    assert callable(natten.na2d)  # the function, though there is a module of this name
    assert natten.natten2d is importlib.import_module("natten.natten2d") and natten.experimental is natten.functional
    for name in natten.__all__:
        assert hasattr(natten, name), name


def test_code_that_asks_whether_there_is_a_natten_hears_yes_and_whose_it_is() -> None:
    natten.install()
    spec = importlib.util.find_spec("natten")
    assert spec is not None and spec.name == "tvm_na.compat.natten" and importlib.util.find_spec("natten.utils")
    assert importlib.metadata.version("natten") == natten.__version__ == natten.version.__version__ == "0.21.6"
    metadata = importlib.metadata.metadata("natten")
    assert metadata["Name"] == "natten" and "tvm_na" in metadata["Summary"]
    assert "natten" in importlib.metadata.packages_distributions()
    assert [d.version for d in importlib.metadata.distributions(name="Natten")] == ["0.21.6"]
    assert importlib.metadata.version("pytest") == pytest.__version__


def test_the_version_is_that_of_the_release_that_was_asked_for() -> None:
    natten.install("0.17.5")
    assert importlib.metadata.version("natten") == natten.__version__ == "0.17.5"
    assert natten.NeighborhoodAttention2D(8, 2, 3, 2).dilation == (2, 2)
    natten.install()  # a second time only changes the release
    assert natten.__version__ == "0.21.6"
    with pytest.raises(ValueError, match="release: required a release of NATTEN, 0.14 or later, got 'latest'"):
        natten.install("latest")


@pytest.mark.parametrize(
    ("name", "says"), [("profiler", "tvm-na bench"), ("flops", "useful_flops"), ("spam", "no such part")]
)
def test_modules_that_are_not_served_say_why(name: str, says: str) -> None:
    natten.install()
    with pytest.raises(ModuleNotFoundError, match=says) as caught:
        importlib.import_module(f"natten.{name}")
    assert caught.value.name == f"natten.{name}"


def test_uninstall_leaves_no_natten() -> None:
    path = list(sys.meta_path)
    natten.uninstall()  # nothing to undo
    natten.install("0.14.6")
    natten.uninstall()
    assert sys.meta_path == path and not natten.is_installed()
    assert not [name for name in sys.modules if name.split(".")[0] == "natten"]
    assert importlib.util.find_spec("natten") is None and natten.__version__ == "0.21.6"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("natten")


@pytest.mark.parametrize("imported", [False, True])
def test_a_real_natten_is_not_hidden_unless_forced(real: Path, imported: bool) -> None:
    theirs = importlib.import_module("natten.functional") if imported else None
    with pytest.raises(
        RuntimeError, match="natten: required not to be installed, or install.force=True., got"
    ) as caught:
        natten.install()
    assert str(real) in str(caught.value) and not natten.is_installed()
    natten.install(force=True)
    assert importlib.import_module("natten") is natten
    assert importlib.import_module("natten.functional").natten2dav is natten.functional.natten2dav
    natten.uninstall()
    assert importlib.import_module("natten").__version__ == "0.17.1"
    found = importlib.import_module("natten.functional")
    assert found.natten2dav == "theirs" and (theirs is None or found is theirs)


def test_a_folder_of_that_name_is_no_natten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "natten" / "csrc").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    natten.install()
    assert importlib.import_module("natten") is natten


def test_importing_it_imports_no_compiler() -> None:
    run_python("""
        import sys, tvm_na; assert "tvm_na.compat" not in sys.modules
        from tvm_na.compat import natten; natten.install(); import natten
        assert not [name for name in sys.modules if name.split(".")[0] in ("tvm", "tvm_ffi")]
    """)


def test_calls_are_traced_without_a_break() -> None:
    natten.install()
    t = torch.randn(1, 2, 7, 7, 4, dtype=torch.float64)

    def client(x: torch.Tensor) -> torch.Tensor:
        weights = natten.functional.natten2dqkrpb(x, x, None, 3, 2).softmax(-1)
        out = natten.functional.natten2dav(weights, x, 3, 2)
        last = x.movedim(1, -2)
        return out.movedim(1, -2) + natten.na2d(last, last, last, 3, 1, 2, q_tile_shape=(8, 8))

    compiled = torch.compile(client, backend="eager", fullgraph=True)
    assert relative_error(compiled(t), client(t)) <= 1e-13


def test_every_part_that_is_not_served_has_a_reason() -> None:
    served = {name.split(".")[0] for name in installation._SUBMODULES} | set(installation._CLASSES)
    assert not served & set(installation._MISSING) and all(installation._MISSING.values())
