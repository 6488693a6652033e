"""The executor inside an allocation: its slots, its srun, and how often it asks Slurm."""

from dataclasses import replace
from pathlib import Path

import pytest

from elmanctl.ledger.submissions import Allocation, Resources, Submission, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.executor import ALLOCATION_ENDED, JobState, LiveJob
from elmanctl.schedulers.inside_executor import InsideExecutor
from elmanctl.settings import SearchSettings, Settings, SlurmSettings
from tests.integration.runs import wait_for
from tests.schedulers.slurm_tools import SlurmTools

HELD = Allocation(job_id="4711", job_name="held")
SHOWN = """\
JobId=4711 JobName=held JobState=RUNNING StartTime=2026-12-01T13:09:07 EndTime=Unknown
  Nodes=n[1-2] CPU_IDs=0-7 Mem=8000 GRES=gpu:2(IDX:0-1)
"""
RESOURCES = Resources(
    timeout_min=30, partition="gpu", account="lab", gres="gpu:1", extra={"qos": "high"}, per_job=2
)
SETTINGS = Settings(search=SearchSettings(max_jobs=64), slurm=SlurmSettings(poll_s=60.0))
# One answer for each subcommand of scontrol.
ASKED = 'if [ "$2" = hostnames ]; then printf "n1\\nn2\\n"; exit 0; fi'


class Inside:
    """An executor in an allocation of two nodes with two GPUs each, and a clock."""

    def __init__(self, root: Path, tools: SlurmTools) -> None:
        self.tools, self.clock = tools, 0.0
        self.show(SHOWN)
        self.paths = RunPaths(root / "run")
        self.executor = InsideExecutor(
            self.paths, SETTINGS, RESOURCES, gpus=1, now=lambda: self.clock
        )

    def show(self, text: str) -> None:
        self.tools.answer("scontrol", text, does=ASKED)

    @property
    def queries(self) -> int:
        return sum(self.tools.called(name) for name in ("scontrol", "squeue", "sacct"))


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inside:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    return Inside(tmp_path, SlurmTools(tmp_path / "bin", monkeypatch))


def task(slot: int | None, allocation: Allocation | None = HELD) -> Task:
    return Task(index=0, evaluation="g000-e00", attempt=1, slot=slot, allocation=allocation)


def submission(slot: int = 3, **resources: object) -> Submission:
    asked = replace(RESOURCES, **resources)  # type: ignore[arg-type]
    return Submission(
        id="s0003", job_name="elman-run-s0003", tasks=(task(slot),), resources=asked, is_array=False
    )


def test_slots_are_free_unless_an_attempt_of_this_allocation_has_them(inside: Inside) -> None:
    executor = inside.executor
    assert executor.free_slots([]) == [0, 1, 2, 3]
    assert executor.free_slots([task(1)]) == [0, 2, 3]
    # Of another allocation, or a job: they hold none here, and count all the same.
    others = [task(0, Allocation(job_id="99", job_name="held")), task(None, None)]
    assert executor.free_slots(others) == [0, 1, 2, 3]
    executor.adjust(replace(SETTINGS, search=SearchSettings(max_jobs=3)), ())
    assert executor.free_slots(others) == [0]


def test_bad_nodes_are_avoided_while_there_are_others(inside: Inside) -> None:
    inside.executor.adjust(SETTINGS, {"n1"})
    assert inside.executor.free_slots([]) == [2, 3]
    inside.executor.adjust(SETTINGS, {"n1", "n2"})
    assert inside.executor.free_slots([]) == [0, 1, 2, 3]


def test_step_asks_for_its_slot_and_for_nothing_that_only_a_job_has(inside: Inside) -> None:
    asked = inside.executor.request(RESOURCES)
    assert asked == Resources(timeout_min=30, gres="gpu:1")
    inside.tools.answer("srun", does=f"printf '%s\\n' \"$@\" > {inside.tools.folder}/words")
    for name in ("setsid", "bash", "uname", "cut", "mv"):
        (inside.tools.folder / name).symlink_to(f"/usr/bin/{name}")
    one = submission()
    folder = inside.paths.submission(one.id)
    folder.mkdir(parents=True)
    assert inside.executor.submit(one, folder) == "4711.s0003"
    wait_for(lambda: (folder / "exit").exists(), "the end of srun")
    words = (inside.tools.folder / "words").read_text(encoding="utf-8").splitlines()
    assert words[:-2] == [
        *("--jobid=4711", "--exact", "--nodes=1", "--ntasks=1", "--nodelist=n2"),
        *("--cpus-per-task=4", "--gres=gpu:1", "--mem=4000M", "--time=30"),
        *("--job-name=elman-run-s0003", "--unbuffered"),
    ]
    assert words[-2:] == ["bash", str(folder / "step.sh")]
    link = folder / "4711.s0003_submitted.pkl"
    assert link.resolve() == folder / "task-0.pkl"


def test_steps_cost_one_query_in_each_interval(inside: Inside) -> None:
    folder = inside.paths.submission("s0003")
    folder.mkdir(parents=True)
    (folder / "step").write_text("0 n2\n", encoding="utf-8")
    (folder / "exit").write_text("139\n", encoding="utf-8")
    job = LiveJob(
        job_id="4711.s0003", submission="s0003", task_index=0, job_name="elman", allocation=HELD
    )
    began = inside.queries
    for _ in range(1200):
        inside.clock += 0.5
        report = inside.executor.poll([job], []).reports["4711.s0003"]
        assert report.signal == 11
    assert inside.queries - began == 10


def test_end_of_the_allocation_is_seen(inside: Inside) -> None:
    assert inside.executor.left_s is None
    inside.show("slurm_load_jobs error: Invalid job id specified\n")
    inside.tools.answer(
        "scontrol", stderr="slurm_load_jobs error: Invalid job id specified\n", code=1
    )
    inside.clock = 61.0
    inside.executor.poll([], [])
    assert inside.executor.left_s == 0.0


def test_what_ran_in_another_allocation_is_asked_about(inside: Inside) -> None:
    other = Allocation(job_id="99", job_name="held")
    job = LiveJob(
        job_id="99.s0001", submission="s0001", task_index=0, job_name="elman", allocation=other
    )
    inside.paths.submission("s0001").mkdir(parents=True)
    inside.tools.answer("squeue")
    inside.tools.answer("sacct", "99|PREEMPTED|0:0|0:0|n[1-2]|None|held\n")
    # At once, and then by turns with the allocation.
    report = inside.executor.poll([job], []).reports["99.s0001"]
    assert (report.state, report.raw, report.reason) == (
        *(JobState.ENDED, ALLOCATION_ENDED),
        "PREEMPTED",
    )
    asked = []
    for _ in range(4):
        before = inside.tools.called("squeue")
        inside.clock += 61.0
        inside.executor.poll([job], [])
        asked.append(inside.tools.called("squeue") > before)
    assert asked == [False, True, False, True]
