"""MetaSchedule's search: evolutionary search with an XGBoost cost model, over formulations of many problems."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from tvm_na.tune import metaschedule
from tvm_na.tune.features import Features, Mutator, read_point
from tvm_na.tune.session import Candidate, Session, Slot

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("tvm_na.tune")
_UNLIMITED = 2**30
#: Batches without a new point after which a formulation counts as exhausted.
_IDLE = 4
#: Measurements from which on the cost model is asked; TVM waits for 100.
_WARM_UP = 5
#: Measurements of former sessions that a cost model learns a formulation from.
_RECALLED = 64


def candidate_of(slot: Slot, schedule: Any, args_info: Any = None) -> Candidate:
    """A schedule of a formulation as a candidate."""
    if args_info is None:
        ms = metaschedule.import_metaschedule()
        args_info = ms.arg_info.ArgInfo.from_entry_func(schedule.mod, remove_preproc=True)
    sketch, parameters = read_point(slot.formulation, schedule.trace)
    return Candidate(slot, schedule, sketch, parameters, args_info)


class Search:
    """Searches the formulations that are open, batch by batch, until the session stops."""

    def __init__(self, session: Session) -> None:
        """Make MetaSchedule's objects; with one job, equal seeds and measurements give equal searches."""
        ms, options = metaschedule.import_metaschedule(), session.options
        self._session, self._batch_size = session, options.candidates
        self._slots = [slot for slot in session.slots if slot.state.open]
        self._idle = [0] * len(self._slots)
        self._recalled: set[int] = set()
        self._current = 0
        self._batch: list[Candidate] = []
        self._raised: Exception | None = None
        self._files: dict[str, Candidate] = {}
        self._features = Features([slot.formulation for slot in self._slots])
        with_model = options.strategy == "evolutionary"
        self._model = metaschedule.make_model(self._features, _WARM_UP, options.seed) if with_model else None
        self._contexts = [self._context(ms, number) for number in range(len(self._slots))]
        self._scheduler = metaschedule.make_scheduler(self._noted(self._pick))

    def _context(self, ms: Any, number: int) -> Any:
        slot, seed = self._slots[number], self._session.options.seed
        # Only the instructions of these count, not their decisions.
        spaces = [scheduled.schedule for scheduled in slot.formulation.spaces.values()]
        mutators = {}
        if self._model is None:
            search = ms.search_strategy.ReplayTrace()
        else:
            features = functools.partial(self._features.of, number)
            mutate = Mutator(slot.formulation, features, self._model.score, seed + number)
            mutators[metaschedule.make_mutator(mutate)] = 1.0
            population = 2 * self._batch_size  # small: replaying a trace takes 40 ms
            search = ms.search_strategy.EvolutionarySearch(
                population_size=population,
                init_measured_ratio=0.5,
                init_min_unmeasured=max(1, population // 4),
                genetic_num_iters=2,
                genetic_mutate_prob=0.9,
                eps_greedy=0.13,
            )
        return ms.TuneContext(
            slot.module,
            target=self._session.target,
            space_generator=ms.space_generator.ScheduleFn(lambda _: spaces, [], [], mutators),
            search_strategy=search,
            task_name=str(number),
            rand_state=seed * 1009 + number + 1,
            num_threads=self._session.options.jobs,
            logger=_log,
        )

    def run(self) -> None:
        """Search until the session stops, or until everything is exhausted.

        Raises:
            Exception: what was raised in a callback of ours.
        """
        if not self._slots:
            return
        try:
            self._search()
        except Exception:
            if self._raised is None:
                raise
            raise self._raised from None

    def _search(self) -> None:
        self._scheduler.tune(
            tasks=self._contexts,
            task_weights=[slot.problem.weight for slot in self._slots],
            max_trials_global=_UNLIMITED,  # `_pick` ends it
            max_trials_per_task=_UNLIMITED,
            num_trials_per_iter=self._batch_size,
            builder=metaschedule.make_builder(self._noted(self._build)),
            runner=metaschedule.make_runner(self._noted(self._run)),
            measure_callbacks=[metaschedule.make_callback(self._noted(self._measured))],
            database=self._session.memory,
            cost_model=self._model,
        )

    def _noted(self, callback: Callable[P, R]) -> Callable[P, R]:
        """A callback whose exception is kept: coming through TVM it may lose its class."""

        @functools.wraps(callback)
        def noted(*arguments: P.args, **options: P.kwargs) -> R:
            try:
                return callback(*arguments, **options)
            except Exception as error:
                self._raised = error
                raise

        return noted

    def _pick(self) -> int:
        """The task that is to have the next batch; -1 to end."""
        session = self._session
        if session.state.stopped():
            return -1
        for number, record in enumerate(self._scheduler.tasks_):
            if record.is_terminated:
                self._slots[number].state.open = False
        chosen = session.state.next_problem()
        if chosen is None:
            return -1
        problem = session.state.problems[chosen]
        state = problem.formulations[problem.next_formulation() or 0]
        self._current = next(number for number, slot in enumerate(self._slots) if slot.state is state)
        self._recall(self._current)
        session.observe(session.state)
        return self._current

    def _recall(self, number: int) -> None:
        """Teach the cost model what is already known of a formulation, when its turn comes for the first time."""
        if self._model is None or number in self._recalled:
            return
        self._recalled.add(number)
        with self._session.state.during("training"):
            records = self._session.memory.get_top_k(self._slots[number].searched, _RECALLED)
            candidates = [record.as_measure_candidate() for record in records]
            results = [metaschedule.run_result(float(record.run_secs[0]), None) for record in records]
            self._model.update(self._contexts[number], candidates, results)

    def _build(self) -> list[tuple[str | None, str | None]]:
        slot = self._slots[self._current]
        given = list(self._scheduler.tasks_[self._current].measure_candidates)
        self._batch = [candidate_of(slot, candidate.sch, candidate.args_info) for candidate in given]
        self._predict()
        built = self._session.build(self._batch)
        self._files = {}
        results: list[tuple[str | None, str | None]] = []
        for index, (candidate, result) in enumerate(zip(self._batch, built, strict=True)):
            if result.file is None and candidate.seconds is None:
                results.append((None, candidate.failure or result.failure))
                continue
            path = f"known {index}" if result.file is None else str(result.file)
            self._files[path] = candidate
            results.append((path, None))
        return results

    def _predict(self) -> None:
        if not self._batch or self._model is None:
            return
        rows = [self._features.of(self._current, c.sketch, c.parameters) for c in self._batch]
        scores = self._model.score(rows)
        if scores is not None:
            for candidate, score in zip(self._batch, scores, strict=True):
                candidate.predicted = float(score)

    def _run(self, paths: list[str]) -> list[tuple[float | None, str | None]]:
        candidates = [self._files[path] for path in paths]
        there = [(c, Path(path)) for c, path in zip(candidates, paths, strict=True) if c.fresh]
        self._session.measure([c for c, _ in there], [file for _, file in there])
        return [(c.seconds, c.failure) for c in candidates]

    def _measured(self, number: int, candidates: Any, results: Any) -> None:
        """Teach the cost model what was measured now."""
        slot = self._slots[number]
        slot.problem.note_round()
        fresh = [index for index, candidate in enumerate(self._batch) if candidate.fresh]
        self._idle[number] = 0 if fresh else self._idle[number] + 1
        if self._idle[number] >= _IDLE:
            slot.state.open = False
        if self._model is not None and fresh and not self._session.state.stopped():
            with self._session.state.during("training"):
                self._model.update(self._contexts[number], [candidates[i] for i in fresh], [results[i] for i in fresh])
