"""Run small training jobs, break them, and keep what they print in tests/data/logs.

    python benchmarks/make_log_fixtures.py [NAME ...]

Needs torch, bash and unshare (for the full disk).  Paths, host names and process numbers of this
machine are replaced.  Each log's first word is the kind that it must be given, as in
`oom-address-space.log`.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

LOGS = Path(__file__).parent.parent / "tests" / "data" / "logs"

TRAINER = """
import argparse, ctypes, os, resource, signal, sys, time, torch
from torch import nn
parser = argparse.ArgumentParser(prog="fit.py")
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--width", type=int, default=16)
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--corpus")
parser.add_argument("--break-by")
parser.add_argument("--keep")
args = parser.parse_args()
rank = int(os.environ.get("RANK", "0"))
if args.break_by == "module":
    import nothing_of_that_name
if args.corpus:
    open(args.corpus).read()
torch.manual_seed(0)
torch.set_num_threads(1)
if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
model = nn.Sequential(nn.Linear(8, args.width), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
count = sum(p.numel() for p in model.parameters())
print(f"model with {count} parameters on cpu, rank {rank}", flush=True)
for step in range(1, args.steps + 1):
    x = torch.randn(32, 8)
    loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    optimizer.step()
    if step % 4 == 0 and rank == 0:
        print(f"step {step:4d}  train_loss={loss.item():.4f}  grad_norm={norm:.3f}", flush=True)
    if step == 20 and args.break_by and rank == int(os.environ.get("WORLD_SIZE", "1")) - 1:
        if args.break_by == "exception":
            {}["scheduler"]
        if args.break_by == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
            torch.zeros(2 << 30)
        if args.break_by == "bytes":
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
            bytearray(9 << 30)
        if args.break_by == "segfault":
            ctypes.string_at(0)
        if args.break_by in ("KILL", "TERM", "INT"):
            os.kill(os.getpid(), getattr(signal, "SIG" + args.break_by))
            time.sleep(60)
        if args.break_by == "exit":
            sys.exit(3)
if args.keep:
    torch.save({"weights": torch.zeros(4_000_000)}, args.keep)
if rank == 0:
    print("training done")
"""

PYTHON = f"{sys.executable} fit.py"
TORCHRUN = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 fit.py"
SMALL_DISK = "unshare --mount --map-root-user bash -c 'mount -t tmpfs -o size=1m none disk && {}'"

JOBS = {
    "completed-plain": PYTHON,
    "completed-torchrun": TORCHRUN,
    "diverged-by-learning-rate": f"{PYTHON} --lr 1e30",
    "diverged-torchrun-killed": f"{TORCHRUN} --lr 1e30 --break-by KILL",
    "invalid-unknown-option": f"{PYTHON} --depth 3",
    "invalid-value-of-option": f"{PYTHON} --width wide",
    "invalid-shapes": f"{PYTHON} --width 24",
    "oom-address-space": f"{PYTHON} --break-by memory",
    "oom-python-memory": f"{PYTHON} --break-by bytes",
    "oom-torchrun-one-rank": f"{TORCHRUN} --break-by memory",
    "python_error-exception": f"{PYTHON} --break-by exception",
    "python_error-torchrun": f"{TORCHRUN} --break-by exception",
    "environment-missing-module": f"{PYTHON} --break-by module",
    "environment-missing-corpus": f"{PYTHON} --corpus corpus.txt",
    "environment-no-such-script": f"{sys.executable} fits.py",
    "environment-no-such-command": "torchrunn fit.py",
    "killed-by-kill": f"{PYTHON} --break-by KILL; true",
    "killed-by-term": f"{PYTHON} --break-by TERM; true",
    "killed-by-segfault": f"{PYTHON} --break-by segfault; true",
    "killed-torchrun-one-rank": f"{TORCHRUN} --break-by KILL",
    "killed-torchrun-term": f"{TORCHRUN} --break-by TERM",
    "cancelled-by-interrupt": f"{PYTHON} --break-by INT",
    "disk_full-saving": SMALL_DISK.format(f"{PYTHON} --keep disk/last.pt"),
    "lost-cut-short": f"{{ {PYTHON} --break-by KILL; }} 2>/dev/null; true",
}


def main() -> int:
    """Make all logs, or those named."""
    LOGS.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or JOBS:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            (place / "fit.py").write_text(TRAINER, encoding="utf-8")
            (place / "disk").mkdir()
            (place / "job.sh").write_text(JOBS[name] + "\n", encoding="utf-8")
            done = subprocess.run(
                ["bash", "job.sh"],
                cwd=place,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
                check=False,
            )
        text = anonymous(done.stdout.decode(errors="replace"), folder)
        (LOGS / f"{name}.log").write_text(text, encoding="utf-8")
        print(f"{name}: exit {done.returncode}, {len(text)} characters")
    return 0


def anonymous(text: str, folder: str) -> str:
    """Return a log without what is this machine's alone."""
    for path, word in (
        (folder, "/job"),
        (os.path.realpath(sys.executable), "python"),
        (sys.executable, "python"),
        (sys.prefix, "/venv"),
        (sys.base_prefix, "/usr"),
        (socket.gethostname(), "n1"),
    ):
        text = text.replace(path, word)
    text = re.sub(r"(/tmp/)[\w./-]+", r"\1x", text)
    text = re.sub(r"\b(pid|process|PID)([:=]? )\d+", r"\g<1>\g<2>4711", text)
    return re.sub(r"\[W\d+ [\d:.]+ ", "[W0101 00:00:00 ", text)


if __name__ == "__main__":
    sys.exit(main())
