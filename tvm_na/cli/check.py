"""``tvm-na check``: whether an artifact is whole, runs here, and computes what it must."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvm_na.cli.common import console, fail, needs_text, precision_text, rounding_rows, rows_of, size_of

if TYPE_CHECKING:
    import numpy as np

    from tvm_na.deploy.called import Artifact
    from tvm_na.deploy.manifest import Manifest

    Array = np.ndarray[Any, Any]

# Of random input, where any batch is taken.
_BATCH = 2


@dataclass(frozen=True)
class _Case:
    """Images that an artifact is run on, where they come from, and the right outputs (None where nobody knows them)."""

    words: str
    images: Array
    right: list[Array] | None


def check(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact of tvm-na compile, a folder.")],
) -> None:
    """Verify an artifact, run it once, and compare with the right outputs if it has them.

    One that was compiled where it could not run has an input and the right outputs for it; others were compared then,
    and run on random numbers here. Ends with code 1 if anything is wrong.
    """
    try:
        out = console()
        with out.status(f"checking {artifact}"):
            rows = _checked(artifact.absolute())
        out.print(rows_of(rows), soft_wrap=True)
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        raise fail(str(error), code=1) from error


def _checked(folder: Path) -> list[tuple[str, object]]:
    """What is known of an artifact after it ran, in rows; RuntimeError if its outputs are not what they must be."""
    from tvm_na.deploy.artifact import load

    start = time.perf_counter()
    loaded = load(folder)
    manifest, seconds = loaded.manifest, time.perf_counter() - start
    case = _case(folder, manifest)
    outputs = _run(loaded, case.images)
    result = _compared(outputs, case, manifest)
    start = time.perf_counter()
    _run(loaded, case.images)
    size = size_of(sum(file["bytes"] for file in manifest.files.values()))
    return [
        ("model", manifest.model["name"]),
        ("weights", manifest.model.get("weights") or "RANDOM"),
        ("precision", precision_text(manifest)),
        ("target", f"{manifest.target['name']}: this machine runs it"),
        ("needs", f"{needs_text(manifest)}: here"),
        ("files", f"{len(manifest.files)}, {size}: as the manifest says"),
        ("load", f"{seconds:.2f} s"),
        ("input", f"{case.words}, {manifest.input.dtype} {list(case.images.shape)}"),
        ("outputs", result),
        *rounding_rows(manifest),
        ("second run", f"{1e3 * (time.perf_counter() - start):.1f} ms"),
    ]


def _case(folder: Path, manifest: Manifest) -> _Case:
    """The input that came with an artifact, and its right outputs; or a random input."""
    import numpy as np

    from tvm_na.deploy.manifest import EXPECTED
    from tvm_na.deploy.weights import map_weights

    if EXPECTED not in manifest.files:
        shape = tuple(_BATCH if n is None else n for n in manifest.input.shape)
        images = np.random.default_rng(0).standard_normal(shape).astype(manifest.input.dtype)
        return _Case("random numbers (the right outputs were checked when it was made)", images, None)
    tensors = map_weights(folder / EXPECTED)
    names = ["input", *(f"output_{i}" for i in range(len(manifest.outputs)))]
    if sorted(tensors) != sorted(names):
        raise ValueError(f"{folder / EXPECTED}: required the tensors {', '.join(names)}, got {', '.join(tensors)}")
    return _Case(EXPECTED, tensors["input"], [tensors[name] for name in names[1:]])


def _run(artifact: Artifact, images: Array) -> list[Array]:
    """The artifact's outputs, of whichever format it is."""
    import numpy as np

    given: Any = images
    if artifact.manifest.kind == "aoti":
        import torch

        given = torch.from_numpy(images)
    outputs = artifact(given)
    return [np.asarray(out) for out in (outputs if artifact.manifest.returns_list else [outputs])]


def _compared(outputs: list[Array], case: _Case, manifest: Manifest) -> str:
    """What is to be said of outputs; RuntimeError if they are not what they must be."""
    import numpy as np

    batch = len(case.images)
    shapes = [tuple(batch if n is None else n for n in spec.shape) for spec in manifest.outputs]
    got = [out.shape for out in outputs]
    if got != shapes:
        raise RuntimeError(f"outputs: required the shapes {shapes}, got {got}")
    if not all(np.isfinite(out).all() for out in outputs):
        raise RuntimeError(f"outputs: required finite numbers for {case.words}, got others")
    if case.right is None:
        return f"finite, {' and '.join(map(str, got))}"
    error, budget = max(map(_relative_error, outputs, case.right)), manifest.check["budget"]
    if not error <= budget:
        wanted = f"those of {case.words} within {budget:.0e} of the largest"
        raise RuntimeError(f"outputs: required {wanted}, got {error:.1e}")
    return f"right: relative error {error:.1e}, budget {budget:.0e}"


def _relative_error(out: Array, right: Array) -> float:
    """``max |out - right| / max |right|``, in float64; infinite for another shape or numbers that are not finite."""
    import numpy as np

    if out.shape != right.shape:
        return np.inf
    error = float(np.abs(out.astype(np.float64) - right).max(initial=0))
    if not np.isfinite(error):  # max() would skip a NaN
        return np.inf
    return error / float(np.abs(right).max()) if error else 0.0
