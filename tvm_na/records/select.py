"""Which schedule a problem gets: its best record, else the nearest problem's, else the default.

It is decided without TVM, at the first call of a problem in every process, so it must be quick: an index of the
best records of each folder is kept in the cache folder (:mod:`tvm_na.records.index`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from tvm_na import fingerprint, settings
from tvm_na.problems.base import HALVES
from tvm_na.problems.registry import Problem, problem_from_json
from tvm_na.records.files import shipped_folder, user_folder
from tvm_na.records.index import FolderIndex, RecordRef, ref_of
from tvm_na.records.rejections import InapplicableError, Rejections
from tvm_na.targets.target import NATarget, alike, other_levels, parse_target

if TYPE_CHECKING:
    from tvm_na.records.record import Record

#: The largest :meth:`tvm_na.problems.base.Problem.distance` at which a record is transferred.
FARTHEST = 6.0
# How much further a record is of the other half precision, and of float32 for a half.
OTHER_HALF, OTHER_DTYPE = 0.1, 0.3

#: By how much a record of another level of the instruction set is further away: its vectors are as long or shorter
#: (which the target has too), or longer.
OTHER_LEVEL, WIDER_LEVEL = 1.0, 2.0

# From how many problems records are transferred at most, the nearest first.
_NEIGHBORS = 8
# A record that is slower than its problem's best by more than this is not transferred to others.
_NEARLY_BEST = 1.25


class Selection(NamedTuple):
    """A schedule for a problem.

    Attributes:
        kind: ``record`` of the problem itself, record of the ``nearest`` problem or of this one on another level of the
            instruction set, or the ``default``.
        record: Which one; None for the default.
        reason: Why, in words.
        skipped: Which of the problem's records were rejected before, and why, in words.
    """

    kind: Literal["record", "nearest", "default"]
    record: RecordRef | None
    reason: str
    skipped: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: Record, reason: str) -> Selection:
        """A record of the problem itself, whatever :func:`select` would give."""
        return cls("record", ref_of(record, shipped=False), reason)

    @property
    def key(self) -> str:
        """What of it a kernel depends on."""
        if self.record is None:
            return "default"
        return f"{self.kind}:{self.record.digest}"

    def __str__(self) -> str:
        if self.record is None:
            return f"default schedule ({self.reason})"
        whose = "shipped" if self.record.shipped else "user's"
        of = f" of {self.record.problem}" if self.kind == "nearest" else ""
        return f"{whose} record {self.record.digest[:8]}{of} ({self.reason})"


def select(problem: Problem, target: NATarget, threads: int | None = None, mode: str | None = None) -> Selection:
    """The schedule that ``problem`` gets on ``target``, the first of :func:`candidates` that was not rejected.

    Args:
        threads: How many it will run on; None for TVM_NA_NUM_THREADS or PyTorch's number. On a GPU it plays no role.
        mode: Which records count, one of ``settings.RECORDS_MODES``; None for TVM_NA_RECORDS.
    """
    skipped: tuple[str, ...] = ()
    rejections = None
    for candidate in candidates(problem, target, threads, mode):
        if candidate.record is None:
            break
        rejections = rejections or Rejections(problem, target)
        reason = rejections.reason(candidate.record)
        if reason is None:
            break
        if candidate.kind == "record":  # that another problem's cannot be transferred is nothing to tell
            skipped += (f"{candidate} does not apply: {reason}",)
    return candidate._replace(skipped=skipped)  # the last one is the default, which cannot be rejected


def candidates(
    problem: Problem, target: NATarget, threads: int | None = None, mode: str | None = None
) -> Iterator[Selection]:
    """Schedules for a problem, the preferred first: records of it, of near problems, and last the default.

    The user's records come before the shipped ones, records of as many threads before others, then the fastest. Those
    of another level of the instruction set that has the same kernel count as those of ``target``, behind its own; those
    of other levels are among the near ones, at a distance of their own.
    """
    mode = settings.records_mode() if mode is None else settings.check_records_mode("records", mode)
    if target.kind == "cuda" or target.is_wasm:
        threads = 1  # as its records have it
    threads = settings.num_threads() if threads is None else threads
    same = alike(target, problem.uses_dots)
    folders = sorted((folder for level in same for folder in _folders(level, mode)), key=lambda folder: folder.shipped)
    for folder in folders:
        for ref in _preferred(folder.refs(problem.to_json()), threads):
            yield Selection("record", ref, _whence(ref, target) + _reason(ref, threads, target))
    others = [level for level in other_levels(target) if level not in same]
    further = [(_level_distance(level, target), folder) for level in others for folder in _folders(level, mode)]
    for far, ref in _near(problem, target, [*((0.0, folder) for folder in folders), *further], threads):
        whence = _whence(ref, target)
        yield Selection("nearest", ref, f"{whence}no usable record for this problem; distance {far:.2g}")
    if mode == "off":
        reason = "tuning records are switched off"
    elif not any(folder.problems() for folder in folders):
        reason = f"no {'' if mode == 'all' else mode + ' '}tuning records for {target.name}"
    else:
        reason = "no usable tuning record of this problem or one near it"
    yield Selection("default", None, reason)


def _whence(ref: RecordRef, target: NATarget) -> str:
    return "" if ref.target == target.name else f"from {ref.target}, "


def _preferred(refs: list[RecordRef], threads: int) -> list[RecordRef]:
    """The records in the order in which they are wanted for a number of threads."""
    return sorted(refs, key=lambda ref: (abs(ref.threads - threads), ref.seconds_per_sample))


def _reason(ref: RecordRef, threads: int, target: NATarget) -> str:
    measured = f"{ref.seconds * 1e3:.3g} ms with {describe_conditions(target.name, ref.threads, ref.batch)}"
    return measured if ref.threads == threads else f"{measured}; none with {threads}"


def describe_threads(count: int) -> str:
    """``"1 thread"``, ``"2 threads"``."""
    return f"{count} thread{'s' * (count != 1)}"


def describe_conditions(target_name: str, threads: int, batch: int) -> str:
    """What a record was measured with, such as ``"2 threads and a batch of 4"``; on a GPU ``"a batch of 4"``."""
    if target_name.startswith("cuda"):
        return f"a batch of {batch}"
    return describe_threads(threads) + (f" and a batch of {batch}" if batch > 1 else "")


def _folders(target: NATarget, mode: str) -> list[FolderIndex]:
    """The folders that count, the preferred first."""
    version = fingerprint.versions()["apache-tvm"]
    folders = []
    if mode in ("all", "user"):
        folders.append(FolderIndex(user_folder(target.name), target.name, False, version))
    if mode in ("all", "shipped"):
        folders.append(FolderIndex(shipped_folder(target.name), target.name, True, version))
    return folders


def _near(
    problem: Problem, target: NATarget, folders: Sequence[tuple[float, FolderIndex]], threads: int
) -> Iterator[tuple[float, RecordRef]]:
    """(distance, record) of problems that are near enough, the nearest first, each with its fastest records.

    Each folder has the distance of its target.
    """
    own, found = problem.to_json(), []
    for place, (level, folder) in enumerate(folders):
        for key in folder.problems():
            if key == own and not level:  # its records came first
                continue
            far = _distance(problem, problem_from_json(key), folder.target_name, target)
            if far is not None and far <= FARTHEST:
                found.append((far + level, place, key))
    for far, place, key in sorted(found)[:_NEIGHBORS]:
        refs = _preferred(folders[place][1].refs(key), threads)
        best = {ref.threads: ref.seconds_per_sample for ref in reversed(refs)}
        for ref in refs:
            if ref.seconds_per_sample <= _NEARLY_BEST * best[ref.threads]:
                yield far, ref


def _distance(problem: Problem, other: Problem, level: str, target: NATarget) -> float | None:
    """How far a record's problem is; on CPUs, which compute halves in float32, also of another dtype.

    None where only the kernels of ``target`` have dot products: its default, which has them, is expected to be faster.
    """
    if type(problem) is not type(other):
        return None
    if problem.uses_dots and target.dot and not (other.uses_dots and parse_target(level).dot):
        return None
    dtypes = {problem.dtype, other.dtype}
    if target.kind == "cuda" or len(dtypes) == 1 or not dtypes <= {"float32", *HALVES}:
        return problem.distance(other)
    far = problem.distance(other.with_dtype(problem.dtype))
    return None if far is None else far + (OTHER_HALF if dtypes == set(HALVES) else OTHER_DTYPE)


def _level_distance(level: NATarget, target: NATarget) -> float:
    """How far another level of an instruction set is from ``target``."""
    return OTHER_LEVEL if level.vector_bytes <= target.vector_bytes else WIDER_LEVEL


def reject(selection: Selection, problem: Problem, target: NATarget, error: InapplicableError) -> None:
    """Skip the record of ``selection`` from now on; logs that."""
    if selection.record is None:
        raise ValueError("selection: required a record, got the default schedule")
    Rejections(problem, target).add(selection.record, error)
