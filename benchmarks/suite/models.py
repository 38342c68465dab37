"""Whole models: eager, through ``torch.compile`` with freezing, as packages of AOTInductor, and as our artifacts."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.peer_modules import DenseMaskAttention, FlexAttention, replaced
from benchmarks.suite.cases import Case, Part, Setting
from benchmarks.suite.networks import FLOOR, NAMES, NAT, NAT_IN_FLOAT32, SWIN, attention_taken_out, network
from benchmarks.suite.op import OURS
from benchmarks.suite.packages import ARTIFACTS, PACKAGE, images, loaded, made, placed
from benchmarks.suite.turns import Call, Candidates
from tvm_na.functional import Backend
from tvm_na.models.base import NAModel
from tvm_na.reference.accuracy import LOGITS_BUDGET, relative_error

#: Of logits, relative to the largest; halves throughout some twenty layers.
BUDGET = {"float32": LOGITS_BUDGET, "float16": 2e-2, "bfloat16": 3e-2}
#: The case of NAT-Tiny with attention of others.
OTHERS = "attention of others, eager, batch 1"
EAGER, COMPILED = "eager", "torch.compile"
#: Seconds that one package, and the compilation of all models, may take.
_TO_PACKAGE, _TO_COMPILE = 900.0, 900.0


def _cases(setting: Setting) -> list[Case]:
    if not setting.is_main:
        return _cases_of_another_dtype(setting)
    names = NAMES[:2] if setting.quick else NAMES
    packaged = [name for name in names if name in (NAT, SWIN)]  # minutes for what torch.compile tells of others as well
    ways = [(PACKAGE, name) for name in packaged if name != NAT] + [(way, NAT) for way in ARTIFACTS]
    if setting.quick:
        ways = ways[-1:]  # the fastest to make
    packages = [Case(f"making {way}, {name}", {"way": way, "network": name}, _TO_PACKAGE) for way, name in ways]
    seconds = 1.0 if setting.quick else 10.0
    batches = [2] if setting.quick else [1, 16]
    eager: list[dict[str, Any]] = [{"batch": batch, "ways": [EAGER], "seconds": seconds} for batch in batches]
    eager[-1]["networks"] = [name for name in names if name != FLOOR or setting.quick]
    once = {"batch": 1, "seconds": seconds, "networks": list(names)}
    compiled = [] if setting.quick else [{**once, "ways": [COMPILED]}]
    compiled.append({**once, "networks": packaged, "ways": [PACKAGE, *ARTIFACTS]})
    timed = [{"networks": list(names), **about} for about in (*eager, *compiled)]
    others = [] if setting.quick else [Case(OTHERS, {"batch": 1, "seconds": 5.0}, _TO_COMPILE)]
    return [*packages, *(Case(_named(about), about, _TO_COMPILE) for about in timed), *others]


def _cases_of_another_dtype(setting: Setting) -> list[Case]:
    """As most would run it, beside float32."""
    ways, names = ([EAGER], [NAT]) if setting.quick else ([COMPILED], [NAT, SWIN])
    about = {"batch": 1, "seconds": 1.0 if setting.quick else 10.0, "networks": names, "ways": ways}
    return [Case(_named(about), about, _TO_COMPILE)]


def _named(about: dict[str, Any]) -> str:
    ways = "packages" if PACKAGE in about["ways"] else about["ways"][0]
    return f"{ways}, batch {about['batch']}"


def run(case: Case, setting: Setting) -> dict[str, Any]:
    """Make a package that others measure, or measure."""
    if "way" in case.about:
        with torch.no_grad():
            return made(case.about["way"], case.about["network"], setting)
    with torch.inference_mode():
        return _attentions(case, setting) if case.name == OTHERS else _measured(case, setting)


def _exact(model: nn.Module) -> nn.Module:
    exact = copy.deepcopy(model).cpu().double()
    if isinstance(exact, NAModel):
        exact.set_backend(Backend.REFERENCE)
    return exact


def _measured(case: Case, setting: Setting) -> dict[str, Any]:
    """Every network in every way of the case, in turns."""
    found, sources = Candidates(BUDGET[setting.dtype]), {}
    labels = [(name, name, setting) for name in case.about["networks"]]
    if setting.is_beside_float32:
        labels.append((NAT_IN_FLOAT32, NAT, dataclasses.replace(setting, dtype="float32")))
    for label, name, own in labels:
        try:
            one = network(name, setting.quick)
        except RuntimeError as error:
            found.refused |= {f"{label}, {way}": str(error) for way in case.about["ways"] if way not in ARTIFACTS}
            continue
        sources[name] = one.source
        x = images(one, case.about["batch"], own)
        expected = _exact(one.model)(x[:1].cpu().double())
        model = placed(one, own)
        for way in case.about["ways"]:
            if (way in ARTIFACTS and name != NAT) or (way == PACKAGE and name == NAT):
                continue  # NAT's package of AOTInductor is our artifact
            found.add(f"{label}, {way}", partial(_prepared, way, name, model, x, expected, setting))
    about = {"batch": case.about["batch"], "sources": sources, "dtype": setting.dtype}
    return {**about, **found.timed(case.about["seconds"], setting.device)}


def _attentions(case: Case, setting: Setting) -> dict[str, Any]:
    """NAT-Tiny, eager, with its attention and with those of others."""
    one, found = network(NAT, setting.quick), Candidates(BUDGET[setting.dtype])
    x = images(one, case.about["batch"], setting)
    expected, model = _exact(one.model)(x[:1].cpu().double()), placed(one, setting)
    gathers = copy.deepcopy(model)
    cast(NAModel, gathers).set_backend(Backend.REFERENCE)
    makers: dict[str, Callable[[], nn.Module]] = {
        OURS: lambda: model,
        "reference backend": lambda: gathers,
        "SDPA": lambda: replaced(gathers, x, DenseMaskAttention),
        "flex": lambda: replaced(gathers, x, FlexAttention),
    }
    for name, make in makers.items():
        found.add(name, lambda make=make: _prepared(EAGER, NAT, make(), x, expected, setting))  # type: ignore[misc]
    return {"batch": case.about["batch"], **found.timed(case.about["seconds"], setting.device)}


def _prepared(
    way: str, name: str, model: nn.Module, x: Tensor, expected: Tensor, setting: Setting
) -> tuple[Call, float]:
    if way == EAGER:
        call: Any = model
    elif way == COMPILED:
        call = torch.compile(model, dynamic=False)
    else:
        call = loaded(way, name, setting)
    # Read when it compiles: at its first call. Others compile parts of themselves, once for layers that are alike.
    with patch.object(torch._inductor.config, "freezing", way == COMPILED), attention_taken_out():
        out = call(x)
    return partial(call, x), relative_error(out[:1].cpu(), expected)


MODELS = Part("models", _cases, run)
