"""The parts of the campaign: which searches are made, and what is done to each."""

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from campaign import cluster, controllers, cut, disk
from campaign.inside import InsideKiller
from campaign.kills import UNIFORM, Killer, shapes
from campaign.record import Results, Trial
from campaign.search import (
    SETTINGS,
    Fault,
    Judgement,
    References,
    Search,
    Shape,
    judge,
    judge_alone,
)
from elmanctl.ledger.contents import read_events

# Instants at which a controller is paused, as dying.py knows them; None is a random one.
PAUSES = (None, "tell:before:1", "fsync:before:14", "submit:before:1", "fsync:after:16", None)

ASYNCHRONOUS = "kills-asynchronous"
INSIDE = "kills-inside"

# Settings of the searches of some parts.
SETTINGS_OF = {
    ASYNCHRONOUS: f'{SETTINGS}\n[search]\nmode = "asynchronous"\n',
    "kills-lanes": SETTINGS.replace("[slurm]\n", "[slurm]\nper_job = 2\n"),
}

# What a trial does with its search: it counts how often by kind as it goes, and returns a remark.
Doing = Callable[[Search, Counter[str]], str]


class Campaign:
    """Runs parts, keeps their trials, and goes on after a fault."""

    def __init__(
        self, folder: Path, results: Results, *, seed: int, say: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._results = results
        self._seed = seed
        self._say = say
        self._chance = random.Random(seed)
        self._references = References(folder / "undisturbed")
        self.faults: list[str] = []

    def kills(
        self,
        executor: str,
        wanted: int,
        searches: int,
        *,
        part: str = "kills",
        is_quick: bool = False,
    ) -> None:
        """Kill controllers `wanted` times, spread over about so many searches."""
        many = -(-wanted // searches)
        done = self._results.of(part, executor)
        left = wanted - sum(trial.times for trial in done)
        killer = Killer(self._chance, executor, left, max(1, searches - len(done)))
        for number, shape in enumerate(shapes(self._seed, 10 * searches, is_quick=is_quick)):
            if left <= 0:
                return
            if number < len(done):
                continue

            def kill(search: Search, kinds: Counter[str], most: int = min(many, left)) -> str:
                return killer.disturb(search, most, kinds)

            trial = self._try(part, executor, number, shape, kill)
            # A fault before the first kill must not make the campaign endless.
            left -= trial.times or many

    def inside(self, wanted: int, searches: int) -> None:
        """End controllers and allocations of searches inside them `wanted` times."""
        many = -(-wanted // searches)
        left = wanted - sum(trial.times for trial in self._results.of(INSIDE, "slurm"))
        done = len(self._results.of(INSIDE, "slurm"))
        for number, shape in enumerate(shapes(self._seed, 10 * searches, is_quick=False)):
            if left <= 0:
                return
            if number < done:
                continue

            def end(search: Search, kinds: Counter[str], most: int = min(many, left)) -> str:
                return InsideKiller(search, self._chance, kinds).disturb(most)

            longer = replace(shape, seconds=(1.0, 4.0))
            left -= (
                self._try(INSIDE, "slurm", number, longer, end, more_attempts=True).times or many
            )

    def cuts(self, step: int, resumes: int) -> None:
        """Open a ledger cut to every `step`th size, and go on from `resumes` random cuts."""
        shape = Shape(population=4, generations=2, seed=2, faults=0.35)
        if not self._results.of("cut", "local"):
            self._cut_everywhere(shape, step)
        for number in range(resumes):

            def resume(search: Search, kinds: Counter[str]) -> str:
                note = cut.resume_from_cut(search, self._chance)
                kinds["cut-resume"] += 1
                return note

            self._try("cut-resume", "local", number, shape, resume)

    def _cut_everywhere(self, shape: Shape, step: int) -> None:
        start = time.monotonic()
        kinds: Counter[str] = Counter()
        try:
            search = Search(self._folder / "cut", shape, "local")
            cut.make_varied_ledger(search)
            ledger = search.run_folder / "ledger.jsonl"
            size = ledger.stat().st_size
            kinds["cut"], most = cut.open_every_cut(ledger, range(0, size + 1, step))
            events = Counter(event.kind for event in read_events(ledger).events)
            judgement = Judgement(
                evaluations=len(search.state().evaluations), lost=most, duplicated=0, same=True
            )
        except Exception as exc:
            self._fault("cut", "local", 0, shape, start, kinds, exc)
        else:
            note = (
                f"{size:,} bytes, {events.total()} events of {len(events)} kinds "
                f"({', '.join(sorted(events))}); every cut opened and showed each event whose "
                "line was whole"
            )
            self._keep("cut", "local", 0, shape, judgement, start, kinds, note)

    def pairs(self, executor: str, wanted: int) -> None:
        """Start two controllers at one instant, `wanted` times in all."""
        left, number = wanted, 0
        while left > 0 and number < wanted:
            shape = Shape(population=6, generations=4, seed=self._seed + number, faults=0.2)

            def both(search: Search, kinds: Counter[str], left: int = left) -> str:
                return controllers.start_pairs(search, left, self._chance, kinds)

            left -= self._try("pairs", executor, number, shape, both).times or wanted
            number += 1

    def paused(self, executor: str, rounds: int) -> None:
        """Pause, replace and wake a controller, each time of another search."""
        for number in range(rounds):
            point = PAUSES[number % len(PAUSES)]
            shape = Shape(population=4, generations=3, seed=self._seed + number, faults=0.35)

            def pause(
                search: Search,
                kinds: Counter[str],
                point: str | None = point,
                late: bool = number % 6 == 5,
            ) -> str:
                controllers.pause_and_replace(search, self._chance, point, wakes_late=late)
                kinds[point or UNIFORM] += 1
                return ""

            self._try("paused", executor, number, shape, pause)

    def orphans(self, rounds: int) -> None:
        """Let a replaced controller submit to Slurm what its successor has given up."""
        for number in range(rounds):
            shape = Shape(population=6, generations=2, seed=self._seed + number)

            def wake(search: Search, kinds: Counter[str], late: bool = number % 3 == 2) -> str:
                note = controllers.submit_after_replacement(search, self._chance, wakes_late=late)
                kinds["orphan"] += 1
                return note

            self._try("orphan", "slurm", number, shape, wake)

    def cluster(self, part: str, rounds: int) -> None:
        """Disturb the cluster in the middle of a search."""
        doings = {
            "slurmctld": (cluster.restart_slurmctld, None),
            "slurmdbd": (cluster.stop_slurmdbd, cluster.start_slurmdbd),
            "node": (cluster.kill_a_node, None),
            "preempt": (cluster.preempt, None),
            "no-accounting": (lambda search: None, None),
        }
        disturbance, after = doings[part]
        for number in range(rounds):
            ends_trainings = part in ("node", "preempt")
            shape = Shape(
                population=6,
                generations=3,
                seed=self._seed + number,
                faults=0.0 if ends_trainings else 0.2,
                seconds=(2.0, 5.0) if ends_trainings else (0.0, 2.0),
            )

            def disturb(search: Search, kinds: Counter[str]) -> str:
                resumes = cluster.disturb(search, disturbance, after)
                kinds[part] += 1
                return f"`resume` was needed {resumes}x" if resumes else ""

            # Without slurmctld srun gives up before the worker begins: an attempt, no training.
            again = ends_trainings or part == "slurmctld"
            self._try(part, "slurm", number, shape, disturb, more_attempts=again)

    def disk(self, executor: str, rounds: int) -> None:
        """Fill the disk of a running search."""
        for number in range(rounds):
            shape = Shape(population=6, generations=3, seed=self._seed + number)

            def fill(search: Search, kinds: Counter[str], number: int = number) -> str:
                with disk.small_disk(search.run_folder.parent):
                    note = disk.fill_and_free(search, 1.5 * number)
                    # The judgement comes after the file system is gone.
                    shutil.copytree(search.run_folder, search.folder / "kept", symlinks=True)
                shutil.copytree(search.folder / "kept", search.run_folder, symlinks=True)
                kinds["disk"] += 1
                return note

            self._try("disk", executor, number, shape, fill, more_attempts=True)

    def _try(
        self,
        part: str,
        executor: str,
        number: int,
        shape: Shape,
        do: Doing,
        *,
        more_attempts: bool = False,
    ) -> Trial:
        """Make one search, disturb it and judge it, unless there is a trial of it already."""
        known = [t for t in self._results.of(part, executor) if t.number == number]
        if known:
            return known[0]
        start = time.monotonic()
        kinds: Counter[str] = Counter()
        folder = self._folder / f"{part}-{executor}" / str(number)
        try:
            reference = self._references.of(replace(shape, seconds=(0.0, 0.1)))
            search = Search(folder, shape, executor, settings=SETTINGS_OF.get(part))
            note = do(search, kinds)
            if part == ASYNCHRONOUS:
                judgement = judge_alone(search)
            else:
                judgement = judge(search, reference, more_attempts=more_attempts)
        except Exception as exc:
            # A ledger that does not open any more is a finding too: the campaign goes on.
            return self._fault(part, executor, number, shape, start, kinds, exc)
        return self._keep(part, executor, number, shape, judgement, start, kinds, note)

    def _keep(
        self,
        part: str,
        executor: str,
        number: int,
        shape: Shape,
        judgement: Judgement,
        start: float,
        kinds: Counter[str],
        note: str = "",
    ) -> Trial:
        return self._add(
            Trial.of(
                judgement,
                part=part,
                executor=executor,
                slurm=self._results.slurm if executor == "slurm" else "",
                number=number,
                shape=shape.name,
                times=kinds.total(),
                kinds=dict(kinds),
                seconds=round(time.monotonic() - start, 1),
                note=note,
            )
        )

    def _fault(
        self,
        part: str,
        executor: str,
        number: int,
        shape: Shape,
        start: float,
        kinds: Counter[str],
        exc: Exception,
    ) -> Trial:
        """Put on record that a search could not be judged, and why."""
        return self._add(
            Trial(
                part=part,
                executor=executor,
                slurm=self._results.slurm if executor == "slurm" else "",
                number=number,
                shape=shape.name,
                times=kinds.total(),
                kinds=dict(kinds),
                evaluations=0,
                lost=0,
                duplicated=0,
                same=False,
                seconds=round(time.monotonic() - start, 1),
                fault=str(exc) if isinstance(exc, Fault) else repr(exc),
            )
        )

    def _add(self, trial: Trial) -> Trial:
        self._results.add(trial)
        words = f"{trial.part} {trial.executor} {trial.number}"
        if not trial.is_good:
            self.faults.append(f"{words}: {trial.fault or trial.note}")
        self._say(
            f"{words}: {trial.times} times, {trial.evaluations} evaluations, "
            f"{trial.lost} lost, {trial.duplicated} trained twice, "
            f"{'same' if trial.same else 'OTHER'} points, {trial.seconds:.0f} s {trial.note}"
            + (f" FAULT {trial.fault}" if trial.fault else "")
        )
        return trial
