"""Names of device functions that say what they compute, for whoever reads a profile.

A library's entry keeps the name that loaders look up. TVM names device functions after the host function that they
were part of: so that one is renamed before, and gets its name back when it has been taken apart.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tvm_na.problems.registry import problem_from_json
from tvm_na.te import ENTRY

_SYMBOL, _PROBLEM, _FORMULATION = "global_symbol", "tvm_na.problem", "tvm_na.formulation"
_PREFIX = "__tvm_ffi_"  # of a host function's symbol, once TVM has given it its calling convention
_PIPELINE = "tvm_na: entries keep their name"


def name_of(func: Any) -> str:
    """What a PrimFunc computes, as an identifier of C; the entry's name where it does not say.

    Such as ``na2d_56x56_heads_2_dim_32_k_7_float16_rpb_band``: its problem and formulation, not its schedule.
    """
    if not func.attrs or _PROBLEM not in func.attrs:
        return ENTRY
    problem = problem_from_json(str(func.attrs[_PROBLEM]))
    formulation = json.loads(str(func.attrs[_FORMULATION])).get("formulation", "")
    return re.sub(r"\W+", "_", f"na{problem.rank}d {problem} {formulation}".strip(), flags=re.ASCII)


def named(module: Any) -> Any:
    """A module whose PrimFunc ``main`` has the name of :func:`name_of` as its symbol."""
    import tvm

    functions = {variable.name_hint: func for variable, func in module.functions.items()}
    functions[ENTRY] = functions[ENTRY].with_attr(_SYMBOL, name_of(functions[ENTRY]))
    return tvm.IRModule(functions, attrs=module.attrs)


def pipeline_with_entry(pipeline: str) -> str:
    """The name of a pipeline of TVM's that does what ``pipeline`` does, and then names the host function ``main``."""
    import tvm
    from tvm.tirx.compilation_pipeline import get_tir_pipeline, register_tir_pipeline

    @tvm.transform.module_pass(opt_level=0)
    def restore(module: Any, _: Any) -> Any:
        functions = dict(module.functions.items())
        for variable, func in functions.items():
            if str(func.attrs.get(_SYMBOL, "")).startswith(_PREFIX):
                functions[variable] = func.with_attr(_SYMBOL, _PREFIX + ENTRY)
        return tvm.IRModule(functions, attrs=module.attrs)

    def changed() -> tuple[Any, Any, Any]:
        passes, finalize_host, finalize_device = get_tir_pipeline(pipeline)
        return tvm.transform.Sequential([passes, restore]), finalize_host, finalize_device

    name = f"{_PIPELINE}: {pipeline}"
    register_tir_pipeline(name, changed)
    return name
