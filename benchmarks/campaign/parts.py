"""The parts of the campaign: which searches are made, and what is done to each."""

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from campaign import cluster, controllers, cut, disk
from campaign.kills import Killer, shapes
from campaign.record import Results, Trial
from campaign.search import Fault, Judgement, References, Search, Shape, judge

# Instants at which a controller is paused, as dying.py knows them; None is a random one.
PAUSES = (None, "save:before:2", "fsync:before:12", "spawn:before:1", "fsync:after:9", None)

# What a trial does with its search: how often by kind, and a remark.
Doing = Callable[[Search], tuple[Counter[str], str]]


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

    def kills(self, executor: str, wanted: int, searches: int) -> None:
        """Kill controllers `wanted` times, spread over about so many searches."""
        killer = Killer(self._chance)
        many = -(-wanted // searches)
        done = self._results.of("kills", executor)
        left = wanted - sum(trial.times for trial in done)
        for number, shape in enumerate(shapes(self._seed, 10 * searches)):
            if left <= 0:
                return
            if number < len(done):
                continue
            trial = self._try(
                "kills", executor, number, shape,
                lambda search, left=left: (killer.disturb(search, min(many, left)), ""),
            )  # fmt: skip
            left -= trial.times if trial else many

    def cuts(self, step: int, resumes: int) -> None:
        """Open a ledger cut to every `step`th size, and go on from `resumes` random cuts."""
        reference = self._references.of(Shape(population=4, generations=2, seed=2, faults=0.35))
        ledger = reference.run_folder / "ledger.jsonl"
        start = time.monotonic()
        size = ledger.stat().st_size
        try:
            opened, most = cut.open_every_cut(ledger, range(0, size + 1, step))
        except Fault as fault:
            self._fault("cut", "local", 0, fault)
        else:
            events = ledger.read_bytes().count(b"\n")
            self._results.add(
                Trial(
                    part="cut",
                    executor="local",
                    number=0,
                    shape=reference.shape.name,
                    times=opened,
                    kinds={},
                    evaluations=len(reference.state().evaluations),
                    lost=most,
                    duplicated=0,
                    same=True,
                    seconds=round(time.monotonic() - start, 1),
                    note=f"{size:,} bytes, {events} events; every cut opened and showed each event "
                    "whose line was whole",
                )
            )
        for number in range(len(self._results.of("cut-resume", "local")), resumes):
            start = time.monotonic()
            folder = self._folder / "cut-resume" / str(number)
            try:
                judgement = cut.resume_from_cut(reference, folder, self._chance)
            except Fault as fault:
                self._fault("cut-resume", "local", number, fault)
            else:
                self._keep("cut-resume", "local", number, reference.shape, judgement, start)

    def pairs(self, executor: str, wanted: int) -> None:
        """Start two controllers at one instant, `wanted` times in all."""
        left, number = wanted, 0
        while left > 0 and number < wanted:
            shape = Shape(population=6, generations=4, seed=self._seed + number, faults=0.2)

            def both(search: Search, left: int = left) -> tuple[Counter[str], str]:
                return Counter(pairs=controllers.start_pairs(search, left, self._chance)), ""

            trial = self._try("pairs", executor, number, shape, both)
            left -= trial.times if trial else wanted
            number += 1

    def paused(self, executor: str, rounds: int) -> None:
        """Pause, replace and wake a controller, each time of another search."""
        for number in range(rounds):
            point = PAUSES[number % len(PAUSES)]
            shape = Shape(population=4, generations=3, seed=self._seed + number, faults=0.35)

            def pause(
                search: Search, point: str | None = point, late: bool = number % 6 == 5
            ) -> tuple[Counter[str], str]:
                controllers.pause_and_replace(search, self._chance, point, wakes_late=late)
                return Counter(paused=1), ""

            self._try("paused", executor, number, shape, pause)

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

            def disturb(search: Search) -> tuple[Counter[str], str]:
                resumes = cluster.disturb(search, disturbance, after)
                return Counter({part: 1}), f"`resume` was needed {resumes}x" if resumes else ""

            # Without slurmctld srun gives up before the worker begins: an attempt, no training.
            again = ends_trainings or part == "slurmctld"
            self._try(part, "slurm", number, shape, disturb, more_attempts=again)

    def disk(self, executor: str, rounds: int) -> None:
        """Fill the disk of a running search."""
        for number in range(rounds):
            shape = Shape(population=6, generations=3, seed=self._seed + number)

            def fill(search: Search, number: int = number) -> tuple[Counter[str], str]:
                with disk.small_disk(search.run_folder.parent):
                    code, _ = disk.fill_and_free(search, 1.5 * number)
                    # The judgement comes after the file system is gone.
                    shutil.copytree(search.run_folder, search.folder / "kept", symlinks=True)
                shutil.copytree(search.folder / "kept", search.run_folder, symlinks=True)
                return Counter(disk=1), f"it stopped with exit code {code}"

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
    ) -> Trial | None:
        """Make one search and disturb it; None for a fault, or when there is a trial already."""
        known = [t for t in self._results.of(part, executor) if t.number == number]
        if known:
            return known[0]
        try:
            reference = self._references.of(replace(shape, seconds=(0.0, 0.1)))
            search = Search(self._folder / f"{part}-{executor}" / str(number), shape, executor)
            start = time.monotonic()
            kinds, note = do(search)
            judgement = judge(search, reference, more_attempts=more_attempts)
        except Fault as fault:
            self._fault(part, executor, number, fault)
            return None
        return self._keep(part, executor, number, shape, judgement, start, kinds, note)

    def _keep(
        self,
        part: str,
        executor: str,
        number: int,
        shape: Shape,
        judgement: Judgement,
        start: float,
        kinds: Counter[str] | None = None,
        note: str = "",
    ) -> Trial:
        kinds = Counter({part: 1}) if kinds is None else kinds
        trial = Trial.of(
            judgement,
            part=part,
            executor=executor,
            number=number,
            shape=shape.name,
            times=kinds.total(),
            kinds=dict(kinds),
            seconds=round(time.monotonic() - start, 1),
            note=note,
        )
        self._results.add(trial)
        if not trial.is_good:
            self.faults.append(f"{part} {executor} {number}: {trial.note}")
        self._say(
            f"{part} {executor} {number}: {trial.times} times, {trial.evaluations} evaluations, "
            f"{trial.lost} lost, {trial.duplicated} trained twice, "
            f"{'same' if trial.same else 'OTHER'} points, {trial.seconds:.0f} s {trial.note}"
        )
        return trial

    def _fault(self, part: str, executor: str, number: int, fault: Fault) -> None:
        self.faults.append(f"{part} {executor} {number}: {fault}")
        self._say(f"FAULT in {part} {executor} {number}: {fault}")
