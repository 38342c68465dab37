"""Attack the package for some minutes: numbers, cache, records, artifacts, checkpoints, uploads, kills.

Each finding is printed with the command that repeats it. Exits with 1 if there was one. Ctrl-C ends it early.
"""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tests.fuzz.worker import Worker, subjects


@dataclass
class Campaign:
    """What is attacked, and what was found: seeds and texts."""

    names: list[str]
    rng: random.Random
    end: float
    rounds: int | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    findings: list[tuple[str, int, str]] = field(default_factory=list)

    def next_round(self, name: str) -> int | None:
        """The seed of the next round of a subject; None if there is none."""
        with self.lock:
            enough = self.rounds is not None and self.done.get(name, 0) >= self.rounds
            if enough or time.monotonic() >= self.end:
                return None
            self.done[name] = self.done.get(name, 0) + 1
            return self.rng.getrandbits(48)

    def note(self, name: str, seed: int, begun: float, finding: str | None) -> None:
        """A round has ended."""
        with self.lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun
            if finding is not None:
                self.findings.append((name, seed, finding))

    def table(self) -> Table:
        """For the terminal."""
        shown = Table("subject", "rounds", "seconds", "findings")
        for name in self.names:
            found = sum(1 for other, _, _ in self.findings if other == name)
            cells = (str(self.done.get(name, 0)), f"{self.seconds.get(name, 0.0):.0f}", str(found))
            shown.add_row(name, *cells, style="red" if found else None)
        return shown


def attack(campaign: Campaign, name: str) -> None:
    """Rounds of one subject until there is no time left; another process after each finding."""
    worker: Worker | None = None
    try:
        while (seed := campaign.next_round(name)) is not None:
            begun = time.monotonic()
            if worker is None:
                worker = Worker(subjects()[name])
            finding = worker.broken or worker.round(seed)
            campaign.note(name, seed, begun, finding)
            if finding is not None:
                worker.close()
                worker = None
    finally:
        if worker is not None:
            worker.close()


def main(
    minutes: Annotated[float, typer.Option(help="How long.")] = 5.0,
    subject: Annotated[list[str] | None, typer.Option(help="What is attacked; can be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="The first round's seed; drawn if not given.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each subject, at most.")] = None,
) -> None:
    """See the module."""
    known = list(subjects())
    names = subject if subject else known
    if unknown := set(names) - set(known):
        raise typer.BadParameter(f"required some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    console = Console()
    rng = random.Random() if seed is None else _First(seed)
    campaign = Campaign(names, rng, time.monotonic() + 60 * minutes, rounds)
    pool = ThreadPoolExecutor(len(names))
    try:
        running = [pool.submit(attack, campaign, name) for name in names]
        with Live(campaign.table(), console=console, refresh_per_second=1) as live:
            while not all(future.done() for future in running):
                time.sleep(0.2)
                live.update(campaign.table())
        for future in running:
            future.result()
    except KeyboardInterrupt:
        console.print("interrupted; each subject ends its round")
        campaign.end = 0.0
    pool.shutdown()
    for name, number, finding in campaign.findings:
        console.rule(f"python -m tests.fuzz --subject {name} --seed {number} --rounds 1", style="red")
        console.print(finding, markup=False, highlight=False)
    console.print(f"{sum(campaign.done.values())} rounds, {len(campaign.findings)} findings")
    raise typer.Exit(1 if campaign.findings else 0)


class _First(random.Random):
    """Draws the seed itself first, so that a round can be repeated by its own."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._first: list[int] = [seed]

    def getrandbits(self, k: int, /) -> int:
        return self._first.pop() if self._first else super().getrandbits(k)


if __name__ == "__main__":
    typer.run(main)
