import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import LeaseLost, LedgerCorrupt, LedgerError, LedgerLocked
from elmanctl.ledger import files
from elmanctl.ledger import lease as lease_module
from elmanctl.ledger.holder import Holder, is_gone
from elmanctl.ledger.lease import LEASE_FILE, Lease, read_holder

Spawn = Callable[..., Any]


def plant(folder: Path, **changes: Any) -> bytes:
    """Leave a lease as another holder would, and return its bytes."""
    with Lease.acquire(folder):
        raw = (folder / LEASE_FILE).read_bytes()
    record = {**json.loads(raw), "token": "planted", **changes}
    planted = json.dumps(record).encode()
    (folder / LEASE_FILE).write_bytes(planted)
    return planted


def age(folder: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(folder / LEASE_FILE, (moment, moment))


def dead_pid(spawn: Spawn) -> int:
    child = spawn("")
    child.process.wait()
    return int(child.pid)


def test_lease_names_its_holder(tmp_path: Path) -> None:
    assert read_holder(tmp_path) is None
    with Lease.acquire(tmp_path, host="login-1") as lease:
        holder = read_holder(tmp_path)
        assert holder == lease.holder
        assert (holder.host, holder.pid, holder.fence) == ("login-1", os.getpid(), 1)
        assert is_gone(holder, "login-1") is False
        assert is_gone(holder, "login-2") is None
    assert list(tmp_path.iterdir()) == []


def test_second_lease_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path) as lease:
        with pytest.raises(LedgerLocked, match=f"process {os.getpid()} on ") as caught:
            Lease.acquire(tmp_path)
        assert caught.value.hint is not None
        assert lease.holder.since in caught.value.message
        lease.check()
    assert list(tmp_path.iterdir()) == []


def test_released_lease_is_over(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path)
    lease.release()
    lease.release()
    with pytest.raises(LeaseLost, match="released"):
        lease.check()


def test_fence_exceeds_the_ledger_and_the_broken_lease(tmp_path: Path, spawn: Spawn) -> None:
    plant(tmp_path, pid=dead_pid(spawn), fence=7)
    with Lease.acquire(tmp_path, minimum_fence=3) as lease:
        assert lease.fence == 8
    with Lease.acquire(tmp_path, minimum_fence=20) as lease:
        assert lease.fence == 21


def test_lease_of_an_ended_process_is_taken(tmp_path: Path, spawn: Spawn) -> None:
    plant(tmp_path, pid=dead_pid(spawn))
    with Lease.acquire(tmp_path) as lease:
        assert [path.name for path in tmp_path.iterdir()] == [LEASE_FILE]
        lease.check()


def test_lease_of_a_reused_process_number_is_taken(tmp_path: Path) -> None:
    plant(tmp_path, pid=os.getpid(), pid_start=1)
    Lease.acquire(tmp_path).release()


def test_start_of_a_process_is_read_whatever_its_name(
    tmp_path: Path, spawn: Spawn, obedient: str
) -> None:
    renamed = "open('/proc/self/comm', 'w').write('a) Z (b')\n"
    child = spawn(renamed + obedient)
    assert child.ask("acquire", folder=str(tmp_path), at=0) == {"fence": 1}
    text = Path(f"/proc/{child.pid}/stat").read_text()
    assert "(a) Z (b)" in text
    holder = read_holder(tmp_path)
    assert holder is not None
    assert holder.pid_start == int(text.replace("(a) Z (b)", "name").split()[21])
    assert is_gone(holder) is False


def test_lease_of_an_earlier_boot_is_taken(tmp_path: Path) -> None:
    plant(tmp_path, pid=os.getpid(), boot_id="an earlier one")
    Lease.acquire(tmp_path).release()


def test_killed_holder_is_recognised_before_anybody_waited_for_it(
    tmp_path: Path, spawn: Spawn
) -> None:
    child = spawn()
    assert child.ask("acquire", folder=str(tmp_path), at=0) == {"fence": 1}
    with pytest.raises(LedgerLocked, match=f"process {child.pid} "):
        Lease.acquire(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with Lease.acquire(tmp_path) as lease:
        assert lease.fence == 2


@pytest.mark.parametrize(
    "changes", [{"host": "elsewhere"}, {"pid_namespace": "pid:[1]", "pid": 2**22 - 1}]
)
def test_holder_out_of_sight_is_judged_by_its_signs_of_life(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    planted = plant(tmp_path, **changes)
    age(tmp_path, 100)
    with pytest.raises(LedgerLocked):
        Lease.acquire(tmp_path, stale_s=120)
    assert (tmp_path / LEASE_FILE).read_bytes() == planted
    age(tmp_path, 130)
    with Lease.acquire(tmp_path, stale_s=120) as lease:
        assert lease.fence == 2


def test_silent_but_living_holder_on_this_host_keeps_its_lease(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path) as lease:
        age(tmp_path, 10_000)
        with pytest.raises(LedgerLocked):
            Lease.acquire(tmp_path, stale_s=1)
        lease.check()


def test_sign_of_life_is_given_at_most_so_often(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path) as lease:
        age(tmp_path, 1000)
        lease.renew(every_s=3600)
        assert (tmp_path / LEASE_FILE).stat().st_mtime < time.time() - 900
        lease.renew(every_s=0)
        assert (tmp_path / LEASE_FILE).stat().st_mtime > time.time() - 100


def test_deposed_holder_learns_who_took_over_and_takes_nothing_back(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path)
    (tmp_path / LEASE_FILE).unlink()
    with pytest.raises(LeaseLost, match="an unknown holder"):
        lease.check()
    planted = plant(tmp_path, host="elsewhere", pid=4711)
    with pytest.raises(LeaseLost, match="process 4711 on elsewhere"):
        lease.renew(every_s=0)
    lease.release()
    assert (tmp_path / LEASE_FILE).read_bytes() == planted


def test_damaged_lease_counts_as_a_holder_out_of_sight(tmp_path: Path) -> None:
    (tmp_path / LEASE_FILE).write_bytes(b'{"host":')
    with pytest.raises(LedgerCorrupt, match="damaged"):
        read_holder(tmp_path)
    with pytest.raises(LedgerLocked, match="damaged"):
        Lease.acquire(tmp_path, minimum_fence=4)
    age(tmp_path, 1000)
    with Lease.acquire(tmp_path, minimum_fence=4) as lease:
        assert lease.fence == 5


def test_folder_that_cannot_be_written_is_a_ledger_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot take the lease"):
        Lease.acquire(tmp_path / "none")


def test_forked_child_neither_uses_nor_releases_its_parents_lease(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path) as lease:
        child = os.fork()
        if child == 0:
            try:
                lease.check()
            except LeaseLost:
                lease.release()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        lease.check()


def test_lease_moved_by_mistake_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spawn: Spawn
) -> None:
    """Two processes judge a dead holder; the slower one must not take the faster one's lease."""
    plant(tmp_path, pid=dead_pid(spawn), fence=3)
    faster: list[Lease] = []
    rename = Path.rename

    def overtaken(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        faster.append(Lease.acquire(tmp_path))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    with pytest.raises(LedgerLocked, match=f"process {os.getpid()} "):
        Lease.acquire(tmp_path)
    faster[0].check()
    assert faster[0].fence == 4
    assert [path.name for path in tmp_path.iterdir()] == [LEASE_FILE]


def test_lease_that_cannot_be_put_back_still_raises_the_next_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spawn: Spawn
) -> None:
    """A third process gets in while the faster one's lease is aside: three holders in a row."""
    plant(tmp_path, pid=dead_pid(spawn), fence=3)
    leases: list[Lease] = []
    rename = Path.rename

    def overtaken_by_two(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        leases.append(Lease.acquire(tmp_path))
        moved = rename(self, target)
        leases.append(Lease.acquire(tmp_path))
        return moved

    monkeypatch.setattr(Path, "rename", overtaken_by_two)
    with pytest.raises(LedgerLocked):
        Lease.acquire(tmp_path)
    assert [lease.fence for lease in leases] == [4, 5]
    with pytest.raises(LeaseLost):
        leases[0].check()
    leases[1].check()
    assert [path.name for path in tmp_path.iterdir()] == [LEASE_FILE]


def test_holder_whose_lease_is_about_to_be_put_back_waits_for_it(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path) as lease:
        aside = tmp_path / "lease.aside-0.json"
        (tmp_path / LEASE_FILE).rename(aside)
        timer = threading.Timer(0.03, aside.rename, (tmp_path / LEASE_FILE,))
        timer.start()
        lease.check()
        timer.join()


def test_new_holder_does_not_remove_its_own_lease_while_it_is_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = tmp_path / "lease.aside-0.json"
    create = files.create_atomically

    def create_and_move_aside(path: Path, data: bytes) -> None:
        create(path, data)
        path.rename(aside)

    monkeypatch.setattr(files, "create_atomically", create_and_move_aside)
    lease = Lease.acquire(tmp_path)
    aside.rename(tmp_path / LEASE_FILE)
    lease.check()
    lease.release()


def test_number_that_somebody_else_had_meanwhile_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = plant(tmp_path, fence=5, host="elsewhere")
    (tmp_path / LEASE_FILE).rename(tmp_path / "lease.aside-0.json")
    readings = [4]
    real = lease_module._highest_fence

    def outdated(folder: Path) -> int:
        return readings.pop() if readings else real(folder)

    monkeypatch.setattr(lease_module, "_highest_fence", outdated)
    assert b'"fence": 5' in aside
    with Lease.acquire(tmp_path) as lease:
        assert lease.fence == 6
        assert [path.name for path in tmp_path.iterdir()] == [LEASE_FILE]


def test_exactly_one_of_two_racing_processes_wins(tmp_path: Path, spawn: Spawn) -> None:
    children = [spawn(), spawn()]
    dead = dead_pid(spawn)
    for round_number in range(20):
        folder = tmp_path / str(round_number)
        folder.mkdir()
        if round_number % 2:
            plant(folder, pid=dead, fence=round_number)
        start = time.monotonic() + 0.02
        for child in children:
            child.tell("acquire", folder=str(folder), at=start)
        answers = [child.answer() for child in children]
        won = [child for child, answer in zip(children, answers, strict=True) if "fence" in answer]
        errors = [answer["error"] for answer in answers if "error" in answer]
        assert (len(won), errors) == (1, ["LedgerLocked"])
        assert won[0].ask("check") == {}
        holder = read_holder(folder)
        assert isinstance(holder, Holder)
        assert (holder.pid, is_gone(holder)) == (won[0].pid, False)
        assert won[0].ask("release") == {}
        assert [path.name for path in folder.iterdir()] == []
