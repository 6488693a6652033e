import json
import os
import threading
from pathlib import Path

from elmanctl.jobs.claim import Claim, Worker, take_claim, this_worker
from elmanctl.processes import start_ticks


def worker(job_id: str, restart: int = 0) -> Worker:
    return Worker(job_id=job_id, restart=restart, host="node", pid=1, pid_start=2)


def test_the_job_is_named_by_what_its_starter_set() -> None:
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    assert this_worker(array).job_id == "7_2"
    assert this_worker({"SLURM_JOB_ID": "9"}).job_id == "9"
    assert this_worker(array | {"SLURM_RESTART_COUNT": "3"}).restart == 3
    local = this_worker(array | {"SLURM_RESTART_COUNT": "3", "ELMAN_LOCAL_JOB": "tiny-s1_0"})
    assert (local.job_id, local.restart) == ("tiny-s1_0", 0)


def test_a_process_that_no_scheduler_started_names_itself() -> None:
    alone = this_worker({})
    assert alone.job_id == f"{alone.host}-{os.getpid()}"
    assert (alone.pid, alone.pid_start) == (os.getpid(), start_ticks(os.getpid()))


def test_the_first_job_gets_the_claim_and_another_one_learns_who(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    assert take_claim(path, worker("1")) == Claim(is_ours=True)
    refused = take_claim(path, worker("2"))
    assert not refused.is_ours
    assert refused.earlier is not None
    assert refused.earlier["job_id"] == "1"
    assert json.loads(path.read_text())["job_id"] == "1"


def test_a_second_process_of_the_same_start_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    take_claim(path, worker("1"))
    assert not take_claim(path, worker("1")).is_ours


def test_a_later_start_of_the_same_job_takes_over_and_an_earlier_one_does_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "claim.json"
    take_claim(path, worker("1"))
    claim = take_claim(path, worker("1", restart=2))
    assert claim.is_ours
    assert claim.earlier is not None
    assert claim.earlier["restart"] == 0
    assert json.loads(path.read_text())["restart"] == 2
    assert not take_claim(path, worker("1", restart=1)).is_ours


def test_of_many_at_the_same_time_one_gets_the_claim(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    claims: list[Claim] = []
    start = threading.Barrier(8)

    def contend(number: int) -> None:
        start.wait()
        claims.append(take_claim(path, worker(str(number))))

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [claim.is_ours for claim in claims].count(True) == 1
    assert [item.name for item in tmp_path.iterdir()] == ["claim.json"]
