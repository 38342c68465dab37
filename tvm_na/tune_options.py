"""How to tune: the options of a run, checked and completed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm_na import settings
from tvm_na.search import Strategy


@dataclass(frozen=True)
class Options:
    """How to tune; see :func:`tune`."""

    trials: int = 1000
    time_limit: float | None = None
    jobs: int = 0
    seed: int = 0
    threads: int = 0
    batch: int = 0
    strategy: Strategy = "evolutionary"
    defaults_first: bool = True
    only_default_formulation: bool = False
    cold_cache: bool = False

    def __post_init__(self) -> None:
        for name, minimum in (("trials", 1), ("jobs", 0), ("seed", 0), ("threads", 0), ("batch", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: required an integer, got {type(value).__name__} {value!r}")
            if value < minimum:
                raise ValueError(f"{name}: required an integer >= {minimum}, got {value}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"time_limit: required seconds > 0, got {self.time_limit}")
        if self.strategy not in ("evolutionary", "random"):
            raise ValueError(f"strategy: required evolutionary or random, got {self.strategy!r}")

    def completed(self, problems: int) -> Options:
        """With numbers in place of zeros, for so many problems."""
        jobs = self.jobs or settings.available_cores()
        # Smaller batches ask the model more often, larger ones keep more jobs busy.
        batch = max(4, min(16, self.trials // problems // 8))
        return replace(self, jobs=jobs, threads=self.threads or settings.num_threads(), batch=self.batch or batch)
