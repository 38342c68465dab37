"""TVM's MetaSchedule, imported the way it can be, and the parts of it that are ours.

MetaSchedule takes builders, runners, mutators and the like as objects of classes that derive from its own. Here
they are thin: each hands its call to a function of ours. Classes are made inside functions, since nothing may
import TVM before it is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

_EXTRAS = ("xgboost", "cloudpickle", "psutil")
_SHARPNESS = 8


def import_metaschedule() -> Any:
    """The module ``tvm.s_tir.meta_schedule``.

    Raises:
        RuntimeError: a package that tuning needs is missing, or tvm_ffi is one that crashes.
    """
    check_packages()
    skip_tensor_intrinsics()
    return importlib.import_module("tvm.s_tir.meta_schedule")


def check_packages() -> None:
    """RuntimeError if tuning cannot work with the packages that are installed; imports none of them."""
    missing = [name for name in _EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"tuning: required the packages of the extra tvm_na[tune], missing {', '.join(missing)}")
    version = metadata.version("apache-tvm-ffi")
    if [int(n) for n in version.split(".")[:3]] >= [0, 1, 15]:
        # It satisfies TVM's own range, and segfaults in tvm.ir.save_json, which every record goes through.
        raise RuntimeError(f"tuning: required apache-tvm-ffi 0.1.14.post1 (newer ones crash), got {version}")


def skip_tensor_intrinsics() -> None:
    """Put an empty module in place of ``tvm.s_tir.tensor_intrin``.

    MetaSchedule imports it in every process. That takes 25 to 45 s (TVMScript's decorator calls
    ``inspect.stack()`` for each of 250 functions), longer than MetaSchedule's own time-out for a build, and gives
    tensor instructions, of which kernels for CPUs use none.
    """
    name = "tvm.s_tir.tensor_intrin"
    if name not in sys.modules:
        parent = importlib.import_module("tvm.s_tir")
        sys.modules[name] = types.ModuleType(name)
        parent.tensor_intrin = sys.modules[name]  # type: ignore[attr-defined]


def make_mutator(mutate: Callable[[Any], Any]) -> Any:
    """A mutator: ``mutate(trace)`` gives another trace, or None if it cannot."""
    ms = import_metaschedule()
    from tvm.ir.utils import derived_object

    mutator_base: Any = ms.mutator.PyMutator

    @derived_object
    class Mutator(mutator_base):
        def _initialize_with_tune_context(self, context: Any) -> None:
            pass

        def apply(self, trace: Any, _: Any) -> Any:
            return mutate(trace)

        def clone(self) -> Any:
            return make_mutator(mutate)

    return Mutator()


def make_model(features: Callable[[str, Any], Sequence[float]], warm_up: int, seed: int) -> Any:
    """MetaSchedule's XGBoost cost model, on features of ours: ``features(task name, trace)``.

    Its scores stand for the time of the best over that of the candidate. ``score(rows)`` gives those of features,
    and None before there are ``warm_up`` measurements; ``predict`` sharpens them for the search, whose choice of
    parents is proportional to them.
    """
    ms = import_metaschedule()
    import numpy as np
    import tvm
    from tvm.ir.utils import derived_object

    extractor_base: Any = ms.feature_extractor.PyFeatureExtractor

    @derived_object
    class Extractor(extractor_base):
        def extract_from(self, context: Any, candidates: Any) -> list[Any]:
            name = str(context.task_name)
            rows = (np.array([features(name, candidate.sch.trace)], "float32") for candidate in candidates)
            return [tvm.runtime.tensor(row) for row in rows]

    rng = np.random.default_rng(seed)

    model_base: Any = ms.cost_model.XGBModel._cls

    @derived_object
    class Model(model_base):
        def knows(self) -> bool:
            return self.booster is not None and self.data_size >= self.num_warmup_samples

        def predict(self, context: Any, candidates: Any) -> Any:
            if not self.knows():
                return rng.uniform(size=len(candidates))  # TVM takes them from NumPy's shared generator
            return np.clip(super().predict(context, candidates), 0.0, None) ** _SHARPNESS

        def score(self, rows: Sequence[Sequence[float]]) -> Any:
            if not self.knows():
                return None
            import xgboost

            return self.booster.predict(xgboost.DMatrix(np.array(rows, "float32")))

    config = ms.cost_model.xgb_model.XGBConfig(seed=seed)
    # One thread: samples are few, and threads that wait for work would disturb the measurements.
    return Model(extractor=Extractor(), config=config, num_warmup_samples=warm_up, num_tuning_cores=1)


def make_builder(build: Callable[[], Sequence[tuple[str | None, str | None]]]) -> Any:
    """A builder: ``build()`` gives (path of the kernel, or None; error, or None) of each current candidate."""
    ms = import_metaschedule()
    from tvm.ir.utils import derived_object

    builder_base: Any = ms.builder.PyBuilder

    @derived_object
    class Builder(builder_base):
        def build(self, build_inputs: Any) -> list[Any]:
            return [ms.builder.BuilderResult(path, error) for path, error in build()]

    return Builder()


def make_runner(run: Callable[[list[str]], Sequence[tuple[float | None, str | None]]]) -> Any:
    """A runner: ``run(paths)`` gives (seconds, or None; error, or None) of each kernel."""
    ms = import_metaschedule()
    from tvm.ir.utils import derived_object

    done_base: Any = ms.runner.PyRunnerFuture

    @derived_object
    class Done(done_base):
        def __init__(self, value: Any) -> None:
            super().__init__()
            self.value = value

        def done(self) -> bool:
            return True

        def result(self) -> Any:
            return self.value

    runner_base: Any = ms.runner.PyRunner

    @derived_object
    class Runner(runner_base):
        def run(self, runner_inputs: Any) -> list[Any]:
            results = run([str(given.artifact_path) for given in runner_inputs])
            return [Done(run_result(seconds, error)) for seconds, error in results]

    return Runner()


def run_result(seconds: float | None, error: str | None) -> Any:
    """MetaSchedule's RunnerResult of one measurement."""
    ms = import_metaschedule()
    return ms.runner.RunnerResult(None if seconds is None else [seconds], error)


def make_callback(measured: Callable[[int, Any, Any], None]) -> Any:
    """A measure callback: ``measured(task id, candidates, runner results)`` after every batch."""
    ms = import_metaschedule()
    from tvm.ir.utils import derived_object

    callback_base: Any = ms.measure_callback.PyMeasureCallback

    @derived_object
    class Callback(callback_base):
        def apply(self, scheduler: Any, task_id: int, candidates: Any, built: Any, results: Any) -> None:
            measured(int(task_id), candidates, results)

    return Callback()


def make_scheduler(pick: Callable[[], int]) -> Any:
    """A task scheduler: ``pick()`` gives the task that is to have the next batch, -1 to end.

    Batches are not overlapped: building beside a measurement would disturb it.
    """
    ms = import_metaschedule()
    from tvm.ir.utils import derived_object

    scheduler_base: Any = ms.task_scheduler.PyTaskScheduler

    @derived_object
    class Scheduler(scheduler_base):
        def next_task_id(self) -> int:
            scheduler = self._outer()
            for task_id in range(len(scheduler.tasks_)):
                scheduler.touch_task(task_id)  # joins the batch that has just been measured
            return pick()

    return Scheduler()
