"""Read checkpoints of the NAT family, whoever wrote them, into our models.

Official files, Hugging Face's and those of training scripts differ in wrappers, prefixes and names; a model may
differ from its checkpoint in classes, window and outputs. What is bridged is reported, the rest is an error.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_na.models import checkpoint_file
from tvm_na.models.checkpoint_hf import from_hf
from tvm_na.models.isotropic import relative_position_index
from tvm_na.models.layers import init_weights

#: Keys under which training scripts keep the weights; of several, the first is taken (averaged weights before raw).
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
#: How keys of stages begin: those of NAT and DiNAT, and those of DiNAT_s and isotropic models.
_STAGES = ("levels.", "layers.")
_POSITION_INDEX = ".relative_position_index"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)*(backbone\.)?(?:module\.|_orig_mod\.)*")

State = dict[str, Tensor]


@dataclass
class _Notes:
    """What was adapted so far, and which keys of the model need no value from the checkpoint."""

    adapted: list[tuple[str, str]] = field(default_factory=list)
    excused: set[str] = field(default_factory=set)

    def add(self, key: str, action: str) -> None:
        self.adapted.append((key, action))

    def excuse(self, key: str, action: str) -> None:
        self.add(key, action)
        self.excused.add(key)


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_checkpoint` found.

    Attributes:
        missing: Keys of the model that the checkpoint lacks.
        unexpected: Keys of the checkpoint that the model lacks.
        misshapen: Key, shape that the model wants, shape that came.
        adapted: Key and what was done about it: resized, dropped or left at its initialisation.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    adapted: tuple[tuple[str, str], ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every parameter of the model has its value and nothing but adapted keys is left over."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        lines = [f"{kind}: {', '.join(keys)}" for kind in ("missing", "unexpected") if (keys := getattr(self, kind))]
        lines += [f"misshapen: {key}: required {wanted}, got {came}" for key, wanted, came in self.misshapen]
        by_action: dict[str, list[str]] = {}
        for key, action in self.adapted:
            by_action.setdefault(action, []).append(key)
        for action, keys in by_action.items():
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            lines.append(f"adapted: {', '.join(keys[:3])}{more}: {action}")
        return "\n".join(lines) or "every key matches"


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str], *, strict: bool = True) -> LoadReport:
    """Load a checkpoint into ``model``, which stays on its device and in its dtype.

    Reads ``.pth``, ``.pt`` and ``.bin`` (with ``torch.load(weights_only=True)``: no code in the file runs; what is
    compressed is refused) and ``.safetensors``. Takes the weights out of ``model``, ``state_dict`` and
    ``state_dict_ema``, strips ``module.``, ``_orig_mod.`` and ``backbone.``, and renames Hugging Face's keys. These
    differences are adapted and reported:

    - another number of classes: the checkpoint's head is dropped, the model's is initialised again;
    - another kernel size, or for ViT-rpb another image size: every ``rpb`` is resized by bicubic interpolation;
    - a ``features_only`` model: norm, head and stages that it lacks are dropped, and its ``norm{i}`` left as
      they are if a classification checkpoint came.

    Args:
        model: A model of this package, with storage (not on the meta device).
        path: The file.
        strict: Raise if the report has missing, unexpected or misshapen keys; otherwise load what fits.

    Raises:
        FileNotFoundError: ``path`` is no file.
        TypeError: ``model`` is no module or ``path`` no path.
        ValueError: The file is not a checkpoint that can be read safely; a weight is sparse, without numbers, of
            integers, NaN or infinite (in the model's dtype); or with ``strict`` its keys or shapes are not the model's.
            The model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: required a torch.nn.Module, got {type(model).__name__}")
    wanted: State = model.state_dict()
    for key, tensor in wanted.items():
        if tensor.is_meta:
            got = "the meta device; call model.to_empty(device=...)"
            raise ValueError(f"model: required tensors with storage, got {got}")
        if (why := checkpoint_file.why_not_dense(tensor)) is not None:
            raise ValueError(f"model: required dense tensors, got {why} at {key}")
    state, notes = _unwrap(*checkpoint_file.read(path))
    state = from_hf(_strip_prefixes(state, notes))
    reset_head = _adapt_head(wanted, state, notes)
    if getattr(model, "features_only", False):
        _adapt_backbone(wanted, state, notes)
    _adapt_rpb(wanted, state, notes)
    _adapt_position_index(wanted, state, notes)
    report = _compare(wanted, state, notes)
    if strict and not report.complete:
        raise ValueError(f"path: required the keys and shapes of the model, got {os.fspath(path)} with\n{report}")
    misshapen = {key for key, _, _ in report.misshapen}
    fitting = {k: v for k, v in state.items() if k in wanted and k not in misshapen}
    _require_numbers(wanted, fitting)
    model.load_state_dict(fitting, strict=False)
    if reset_head:
        model.get_submodule("head").apply(init_weights)
    return report


def _unwrap(content: Any, size: int) -> tuple[State, _Notes]:
    """The dictionary of tensors in what a file of ``size`` bytes held, and a note where there was a choice."""
    notes, seen = _Notes(), set[int]()
    while isinstance(content, Mapping):
        wrappers = [name for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if not wrappers:
            break
        for other in wrappers[1:]:
            notes.add(other, f"not read: weights were taken from {wrappers[0]}")
        if id(content) in seen:
            raise ValueError("path: required a file with a dictionary of tensors, got one that contains itself")
        seen.add(id(content))
        content = content[wrappers[0]]
    if not isinstance(content, Mapping) or not content:
        came = "an empty dictionary" if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"path: required a file with a dictionary of tensors, got {came}")
    return checkpoint_file.require_tensors(content, size), notes


def _strip_prefixes(state: State, notes: _Notes) -> State:
    """Keys without the prefixes of wrappers; where there is a ``backbone.``, only what is in it."""
    in_backbone = any(match[1] for key in state if (match := _PREFIX.match(key)))
    stripped: State = {}
    for key, value in state.items():
        match = _PREFIX.match(key)
        bare = key[match.end() :] if match else key
        if in_backbone and not (match and match[1]):
            notes.add(key, "outside of the checkpoint's backbone: dropped")
        elif bare in stripped:
            raise ValueError(f"path: required a file with the weights of one model, got {bare} under two prefixes")
        else:
            stripped[bare] = value
    return stripped


def _drop(state: State, keys: Iterable[str], why: str, notes: _Notes) -> None:
    for key in list(keys):
        del state[key]
        notes.add(key, f"{why}: dropped")


def _adapt_head(wanted: State, state: State, notes: _Notes) -> bool:
    """Drop a head that the model has not, or has with other classes. True if the model's is to be initialised again."""
    head = [key for key in state if key.startswith("head.")]
    if "head.weight" not in wanted:
        _drop(state, head, "the model has no head", notes)
        return False
    came = state.get("head.weight")
    if came is None or came.ndim != 2 or came.shape[0] == wanted["head.weight"].shape[0]:
        return False
    why = f"{came.shape[0]} classes came, the model has {wanted['head.weight'].shape[0]}"
    for key in head:
        del state[key]
    for key in ("head.weight", "head.bias"):
        notes.excuse(key, f"{why}: dropped and initialised again")
    return True


def _adapt_backbone(wanted: State, state: State, notes: _Notes) -> None:
    """Drop what a model without norm, head and perhaps late stages lacks; excuse its ``norm{i}`` if none came."""
    stages = {key.split(".")[1] for key in wanted if key.startswith(_STAGES)}
    is_classifier = "norm.weight" in state and not any(re.match(r"norm\d+\.", key) for key in state)
    for key in [key for key in state if key not in wanted]:
        top, _, rest = key.partition(".")
        if top == "norm" or re.fullmatch(r"norm\d+", top):
            _drop(state, [key], "the model has no such output", notes)
        elif f"{top}." in _STAGES:
            stage, _, rest = rest.partition(".")
            if stage not in stages or (rest.startswith("downsample.") and f"{int(stage) + 1}" not in stages):
                _drop(state, [key], "after the model's last output", notes)
    for key in wanted:
        if is_classifier and re.match(r"norm\d+\.", key):
            notes.excuse(key, "not in a classification checkpoint: left as it was")


def _adapt_rpb(wanted: State, state: State, notes: _Notes) -> None:
    """Resize relative position biases ``[heads, 2k-1, 2k-1]`` of another window."""
    for key, target in wanted.items():
        came = state.get(key)
        if came is None or not key.endswith("rpb") or came.shape == target.shape or not came.is_floating_point():
            continue
        if came.ndim != 3 or target.ndim != 3 or came.shape[0] != target.shape[0] or 0 in came.shape:
            continue
        # The zero offset is the center of both tables, and half-pixel centers keep it there.
        # What comes out stays as exact as that: it is rounded once, to the model's dtype, when it is loaded.
        exact = came[None].to(torch.promote_types(came.dtype, torch.float32))
        state[key] = F.interpolate(exact, size=target.shape[1:], mode="bicubic", align_corners=False)[0]
        notes.add(key, f"resized from window {_window(came)} to {_window(target)} by bicubic interpolation")


def _adapt_position_index(wanted: State, state: State, notes: _Notes) -> None:
    """Drop the index into ``rpb`` of a map of another size, and do without one: the model has its own.

    Raises:
        ValueError: it is in another order, which would give every ``rpb`` another meaning.
    """
    for key in [key for key in state if key.endswith(_POSITION_INDEX)]:
        came = state[key]
        side = math.isqrt(came.shape[0]) if came.ndim == 2 else 0
        square = came.shape == (side * side, side * side)
        if not (square and torch.equal(came.long(), relative_position_index(side))):
            required = f"{key} to hold the offset of each key from each query"
            raise ValueError(f"path: required {required}, got others in shape {tuple(came.shape)}")
        if key in wanted and came.shape != wanted[key].shape:
            del state[key]
            notes.excuse(key, f"of a map of {side}x{side}: the model's own")
    for key in wanted:
        if key.endswith(_POSITION_INDEX) and key not in state and key not in notes.excused:
            notes.excuse(key, "not in the checkpoint: the model's own")


def _window(rpb: Tensor) -> str:
    return "x".join(str((size + 1) // 2) for size in rpb.shape[1:])


def _compare(wanted: State, state: State, notes: _Notes) -> LoadReport:
    return LoadReport(
        missing=tuple(key for key in wanted if key not in state and key not in notes.excused),
        unexpected=tuple(key for key in state if key not in wanted),
        misshapen=tuple(
            (key, tuple(tensor.shape), tuple(state[key].shape))
            for key, tensor in wanted.items()
            if key in state and state[key].shape != tensor.shape
        ),
        adapted=tuple(notes.adapted),
    )


def _require_numbers(wanted: State, state: State) -> None:
    """ValueError, naming the key, for a value that is no number of what the model wants: before any is copied."""
    for key, came in state.items():
        target = wanted[key]
        kinds, words = (_FLOATS, "floating-point numbers") if target.is_floating_point() else (_INTEGERS, "integers")
        if came.dtype not in kinds:
            raise ValueError(f"path: required {words} at {key}, got {came.dtype}")
        if not _is_finite(came.to(target.dtype)):
            raise ValueError(f"path: required finite numbers in {target.dtype} at {key}, got NaN or infinite ones")


def _is_finite(values: Tensor) -> bool:
    # Both ends are NaN where one value is. It takes a fifth of the time of isfinite() of all.
    return values.numel() == 0 or bool(torch.stack(values.aminmax()).isfinite().all())
