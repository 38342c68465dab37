"""Whole models: eager, through ``torch.compile`` with freezing, as packages of AOTInductor, and as our artifacts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.peer_modules import DenseMaskAttention, FlexAttention, replaced
from benchmarks.suite.cases import Case, Part, Setting
from benchmarks.suite.networks import NAMES, NAT, network
from benchmarks.suite.op import OURS
from benchmarks.suite.packages import ARTIFACTS, PACKAGE, images, loaded, made, placed
from benchmarks.suite.turns import Call, Candidates
from tvm_na.functional import Backend
from tvm_na.models.base import NAModel
from tvm_na.reference.accuracy import LOGITS_BUDGET, relative_error

#: Of logits, relative to the largest; float16 throughout some twenty layers.
BUDGET = {"cpu": LOGITS_BUDGET, "cuda": 2e-2}
#: The case of NAT-Tiny with attention of others.
OTHERS = "attention of others, eager, batch 1"
EAGER, COMPILED = "eager", "torch.compile"
#: Seconds that one package, and the compilation of all models, may take.
_TO_PACKAGE, _TO_COMPILE = 900.0, 900.0


def _cases(setting: Setting) -> list[Case]:
    names = NAMES[:2] if setting.quick else NAMES
    ways = [(PACKAGE, name) for name in names if name != NAT] + [(way, NAT) for way in ARTIFACTS]
    if setting.quick:
        ways = ways[-1:]  # the fastest to make
    packages = [Case(f"making {way}, {name}", {"way": way, "network": name}, _TO_PACKAGE) for way, name in ways]
    seconds = 1.0 if setting.quick else 25.0
    batches = [2] if setting.quick else [1, 16]
    eager = [{"batch": batch, "ways": [EAGER], "seconds": seconds} for batch in batches]
    once = {"batch": 1, "seconds": seconds, "networks": list(names)}
    compiled = [] if setting.quick else [{**once, "ways": [COMPILED]}]
    compiled.append({**once, "ways": [PACKAGE, *ARTIFACTS]})
    timed = [{"networks": list(names), **about} for about in (*eager, *compiled)]
    others = [] if setting.quick else [Case(OTHERS, {"batch": 1, "seconds": 10.0}, _TO_COMPILE)]
    return [*packages, *(Case(_named(about), about, _TO_COMPILE) for about in timed), *others]


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
    found, sources = Candidates(BUDGET[setting.device]), {}
    for name in case.about["networks"]:
        try:
            one = network(name, setting.quick)
        except RuntimeError as error:
            found.refused |= {f"{name}, {way}": str(error) for way in case.about["ways"] if way not in ARTIFACTS}
            continue
        sources[name] = one.source
        x = images(one, case.about["batch"], setting)
        expected = _exact(one.model)(x[:1].cpu().double())
        model = placed(one, setting)
        for way in case.about["ways"]:
            if (way in ARTIFACTS and name != NAT) or (way == PACKAGE and name == NAT):
                continue  # NAT's package of AOTInductor is our artifact
            found.add(f"{name}, {way}", partial(_prepared, way, name, model, x, expected, setting))
    about = {"batch": case.about["batch"], "sources": sources, "dtype": str(x.dtype).removeprefix("torch.")}
    return {**about, **found.timed(case.about["seconds"], setting.device)}


def _attentions(case: Case, setting: Setting) -> dict[str, Any]:
    """NAT-Tiny, eager, with its attention and with those of others."""
    one, found = network(NAT, setting.quick), Candidates(BUDGET[setting.device])
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
    with patch.object(torch._inductor.config, "freezing", way == COMPILED):
        out = call(x)
    return partial(call, x), relative_error(out[:1].cpu(), expected)


MODELS = Part("models", _cases, run)
