"""Write the files of an older elmanctl that tests/test_older_runs.py reads.

    git worktree add --detach /tmp/old fa2d121
    python benchmarks/older_runs/make.py /tmp/old tests/data/older-runs-fa2d121.tar.gz

Everything is done by the commands and the code of that checkout: a search with processes that is
killed, interrupted, resumed and acted on (`local`), searches with a scheduler in memory
(`every-kind`, `long`: old_code.py), and one training of each model.  What `status`, `show`,
`ledger export` and `ledger verify` say of them is kept beside them, in `shown.json`.

It runs under `unshare`, with a host name and folders of its own, so that the files name nothing of
this machine and are those that the old code wrote, byte for byte.  Takes a few minutes.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

# Where everything lies while it is made.
CODE = Path("/srv/elmanctl")
STUDY = Path("/srv/study")
RUNS = STUDY / "runs"
KEPT = Path("/srv/kept")
HOST = "login1"
BOOT_ID = "00000000-0000-4000-8000-000000000000"

SETTINGS = """\
[train]
heartbeat_s = 0.5

[local]
workers = 2

[retry]
replacements = 8
breaker = 1000

[disk]
floor_gb = 0.0
keep_best = 1
keep_last = 1
"""

# Of each log and of metrics so many lines are kept.
LINES = 3

# Results in pickles hold tracebacks with paths of the installation.
LEFT_OUT = (
    *("code", "reserve", "lease.json", ".*", "ledger.damaged-*", "finished", "scheduler.json"),
    "*_result.pkl",
)


def main() -> None:
    """Enter the namespaces, or make the files within them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="of the old commit")
    parser.add_argument("archive", type=Path, help="a .tar.gz; it is replaced")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    own = parser.parse_args()
    checkout, archive = own.checkout.resolve(), own.archive.resolve()
    if not own.inside:
        command = ["unshare", "--map-root-user", "--mount", "--uts", sys.executable, __file__]
        os.execvp(command[0], [*command, "--inside", str(checkout), str(archive)])
    enter(checkout)
    make()
    pack(archive)


def enter(checkout: Path) -> None:
    """Give this process a host name, a boot and a file system that say nothing of the machine."""
    socket.sethostname(HOST)
    run(["mount", "-t", "tmpfs", "older-runs", "/srv"])
    CODE.mkdir()
    run(["mount", "--bind", str(checkout), str(CODE)])
    RUNS.mkdir(parents=True)
    boot = Path("/srv/boot_id")
    boot.write_text(f"{BOOT_ID}\n", encoding="ascii")
    run(["mount", "--bind", str(boot), "/proc/sys/kernel/random/boot_id"])
    (STUDY / "elman.toml").write_text(SETTINGS, encoding="utf-8")
    # Any text does; this one every checkout has.
    texts = sorted((CODE / "docs").rglob("*.md"))
    (STUDY / "corpus.bytes").write_bytes(b"\x1e".join(path.read_bytes() for path in texts))


def environment(**more: str) -> dict[str, str]:
    """Return the variables of a process that runs the old code."""
    kept = {k: os.environ[k] for k in ("PATH", "LANG") if k in os.environ}
    return kept | {
        "HOME": str(STUDY),
        "USER": "user",
        "XDG_CACHE_HOME": "/srv/cache",
        "PYTHONPATH": str(CODE),
        "OMP_NUM_THREADS": "1",
        **more,
    }


def run(command: list[str], **more: Any) -> str:
    """Run a command to its end and return what it prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **more).stdout


def elmanctl(*arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    """Run a command of the old elmanctl in the study's folder."""
    print("elmanctl", *arguments, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "elmanctl", *arguments],
        cwd=STUDY,
        env=STAND_INS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in codes:
        sys.exit(f"exit code {done.returncode}")
    return done.stdout


STAND_INS = environment(
    PYTHONPATH=f"{CODE}:{CODE / 'benchmarks' / 'campaign' / 'worker'}",
    STANDIN_LOG="/srv/workers.log",
    STANDIN_FAULTS="0.4",
    STANDIN_SECONDS="1.0,2.0",
)


def make() -> None:
    """Make all that is kept, in KEPT."""
    (KEPT / "runs").mkdir(parents=True)
    lease = local_search()
    for name in ("every-kind", "long"):
        print(old_code(name, str(RUNS), str(STUDY / "corpus.bytes")), end="", flush=True)
    for name in ("local", "every-kind", "long"):
        keep_run(name)
    (KEPT / "lease.json").write_bytes(lease)
    described = json.loads(old_code("describe"))
    train(described.pop("tiny"))
    commit = run(["git", "-C", str(CODE), "rev-parse", "HEAD"]).strip()
    write(KEPT / "about.json", {"commit": commit, "study": str(STUDY), **described})


def old_code(*arguments: str) -> str:
    """Run old_code.py and return what it prints."""
    command = [sys.executable, str(HERE / "old_code.py"), *arguments]
    return run(command, env=environment(), cwd=STUDY)


def pack(archive: Path) -> None:
    """Put all that is kept into one archive, whose files belong to nobody."""

    def of_nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for path in sorted(KEPT.iterdir()):
            tar.add(path, path.name, filter=of_nobody)
    archive.write_bytes(gzip.compress(data.getvalue(), mtime=0))
    print(f"{archive}: {archive.stat().st_size} bytes")


def local_search() -> bytes:
    """Search with processes; return the lease of a controller that was killed."""
    ledger = RUNS / "local" / "ledger.jsonl"

    def holds(*words: str) -> Callable[[], bool]:
        return lambda: ledger.exists() and all(w in ledger.read_text() for w in words)

    begin = ["search", "e88", "--preset", "tiny", "--local", "--yes", "--name", "local"]
    begin += ["--generations", "2", "--population", "4", "--data", str(STUDY / "corpus.bytes")]
    with controller(*begin) as process:
        wait_for(holds("attempt_started"))
        process.send_signal(signal.SIGKILL)
    lease = (RUNS / "local" / "lease.json").read_bytes()
    with controller("resume", "local") as process:
        wait_for(holds('"g001-e01"', "attempt_finished"))
        elmanctl("cancel", "local", "g001-e01")
        process.send_signal(signal.SIGINT)
    elmanctl("resume", "local", "--set", "retry.killed=2", "--generations", "3")
    elmanctl("requeue", "local", "--failed", "--force", "--yes")
    elmanctl("requeue", "local", "g001-e01", "--timeout-min", "7")
    elmanctl("clean", "local", "--yes")
    elmanctl("resume", "local")
    return lease


@contextlib.contextmanager
def controller(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a controller, and wait for its end."""
    print("elmanctl", *arguments, flush=True)
    command = [sys.executable, "-m", "elmanctl", *arguments]
    with subprocess.Popen(command, cwd=STUDY, env=STAND_INS, stdin=subprocess.DEVNULL) as process:
        yield process
        process.wait(120)


def wait_for(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 120
    while not is_so():
        if time.monotonic() > end:
            sys.exit("waited two minutes in vain")
        time.sleep(0.05)


def keep_run(name: str) -> None:
    """Keep what a run's folder holds, in short, and what the old commands say of it."""
    folder, shorter = RUNS / name, STUDY / "shorter"
    shutil.copytree(folder, shorter, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.rmtree(folder)
    shorter.rename(folder)
    if name == "long":
        for part in ("evaluations", "submissions"):
            shutil.rmtree(folder / part)
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_bytes().splitlines()]
    states = [line["data"]["optimizer"]["file"] for line in lines if "optimizer" in line["data"]]
    for path in (folder / "optimizer").iterdir():
        # The long run is gone on with from its last generation but one.
        if path.name != states[-2 if name == "long" else -1]:
            path.unlink()
    for path in folder.rglob("*"):
        if path.name.endswith(("_log.out", "_log.err", "metrics.jsonl")):
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:LINES]))
    write(folder / "shown.json", shown(name))
    shutil.copytree(folder, KEPT / "runs" / name)


def shown(name: str) -> dict[str, Any]:
    """Return what the old commands say of a run, as plain data."""
    brief = json.loads(elmanctl("status", name, "--json"))
    csv = elmanctl("ledger", "export", name, "--csv").splitlines()
    if name == "long":
        return {"brief": brief, "csv": csv}
    status = json.loads(elmanctl("status", name, "--all", "--json"))
    names = [row["evaluation"] for row in status["evaluations"]]
    return {
        "brief": brief,
        "csv": csv,
        "status": status,
        "export": json.loads(elmanctl("ledger", "export", name)),
        "verify": json.loads(elmanctl("ledger", "verify", name, "--json")),
        "show": {e: json.loads(elmanctl("show", name, e, "--json")) for e in names},
    }


def train(models: Mapping[str, Mapping[str, Any]]) -> None:
    """Train a small model of each kind, and keep what its worker was asked and wrote."""
    corpus = str(STUDY / "corpus.bytes")
    for model, fields in models.items():
        out = STUDY / "trainings" / model
        values = [f"{key}={json.dumps(value)}" for key, value in fields.items()]
        options = ["--train-steps", "2", "--preset", "tiny", "--data", corpus, "--out", str(out)]
        elmanctl("eval", model, *values, *options)
        left_out = shutil.ignore_patterns(*LEFT_OUT)
        shutil.copytree(out, KEPT / "trainings" / model, ignore=left_out)


def write(path: Path, data: Any) -> None:
    """Write plain data."""
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
