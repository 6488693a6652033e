"""Run tiny jobs of other trainers, break them, and keep what they print with what was done to them.

    python benchmarks/make_trainer_logs.py OUT.jsonl.gz [SEED] [JOBS] [dressed]
    python benchmarks/classify_logs.py OUT.jsonl.gz

Needs torch, transformers, accelerate, lightning, pytorch-ignite, keras, skorch, bash and unshare
(for the full disk).  SEED chooses which jobs are run, with how many steps, under which shell, and
where logs are cut; `dressed` puts times, ranks or
colours before the lines of some.  A job whose package is missing is left out.
"""

import gzip
import importlib.util
import json
import os
import random
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import trainer_jobs


class Job(NamedTuple):
    """A trainer, what is done to it, and for how many steps; `luck` chooses the rest."""

    trainer: str
    fault: str
    steps: int
    luck: float


HERE = Path(__file__).parent
REAL = {
    "hf": "transformers",
    "lightning": "lightning",
    "accelerate": "accelerate",
    "ignite": "ignite",
    "keras": "keras",
    "skorch": "skorch",
}
FORMATS = [
    "nanogpt",
    "torchtitan",
    "litgpt",
    "fairseq",
    "megatron",
    "timm",
    "mmengine",
    "jsonl",
    "wandb",
    "olmo",
    "examples",
    "logger",
    "scaled",
]

# What is done to a job, and the kind that its log must be given.
FAULTS = {
    "none": "completed",
    "cut": "lost",
    "nan": "diverged",
    "nan_stop": "diverged",
    "eval_nan": "completed",
    "early": "completed",
    "survived": "completed",
    "scaler": "completed",
    "raise": "python_error",
    "assert": "python_error",
    "data": "python_error",
    "worker": "python_error",
    "worker_kill": "killed",
    "shape": "invalid",
    "argument": "invalid",
    "oom": "oom",
    "memory": "oom",
    "disk": "disk_full",
    "module": "environment",
    "file": "environment",
    "script": "environment",
    "kill": "killed",
    "term": "killed",
    "segv": "killed",
    "quiet_kill": "lost",
    "int": "cancelled",
    "ddp raise": "python_error",
    "ddp kill": "killed",
    "ddp oom": "oom",
    "ddp none": "completed",
    "slurm time": "timeout",
    "slurm preempted": "preempted",
    "slurm node": "node_failure",
    "slurm cancel": "cancelled",
    "slurm memory": "oom",
    "alarm": "timeout",
}
# Done to the log of a job that ran in peace, or by a signal that no shell tells of.
UNSEEN = {
    **dict.fromkeys(("cut", "alarm", *(f for f in FAULTS if f.startswith("slurm"))), "none"),
    "quiet_kill": "kill",
}
PARSE = (
    'import argparse; p = argparse.ArgumentParser("train.py"); '
    'p.add_argument("--n-layer", type=int); p.add_argument("--lr", type=float); p.parse_args()'
)
# So many jobs at a time.
TOGETHER = 4
# Only these trainers have the fault.
ONLY = {
    "early": {"hf", "lightning", "ignite", "keras", "skorch", "logger"},
    "eval_nan": {"hf", "lightning", "accelerate", "ignite", "keras", "nanogpt", "litgpt", "timm",
                 "wandb", "examples", "logger", "jsonl"},
    "scaler": {"fairseq", "megatron", "logger", "scaled"},
    "worker": {*REAL, *FORMATS} - {"keras", "skorch", "scaled"},
    "data": {*REAL, *FORMATS} - {"skorch", "scaled"},
    "worker_kill": {*REAL, *FORMATS} - {"keras", "skorch", "scaled"},
    "disk": {*REAL, *FORMATS} - {"keras"},
    "ddp": {"nanogpt", "accelerate", "hf"},
}  # fmt: skip

AT = "2026-01-02T03:04:05"
ENDS = {
    "slurm time": f"slurmstepd: error: *** JOB 812 ON n1 CANCELLED AT {AT} DUE TO TIME LIMIT ***",
    "slurm preempted": f"slurmstepd: error: *** JOB 812 ON n1 CANCELLED AT {AT} DUE TO PREEMPTION "
    "***",
    "slurm node": f"slurmstepd: error: *** JOB 812 ON n1 CANCELLED AT {AT} DUE TO NODE FAILURE, "
    "SEE SLURMCTLD LOG FOR DETAILS ***",
    "slurm cancel": f"slurmstepd: error: *** STEP 812.0 ON n1 CANCELLED AT {AT} ***\n"
    "srun: Job step aborted: Waiting up to 32 seconds for job step to finish.",
    "slurm memory": "slurmstepd: error: Detected 1 oom_kill event in StepId=812.batch. Some of the "
    "step tasks have been OOM Killed.",
    "alarm": "timeout: sending signal TERM to command \u2018python\u2019\nTerminated",
}  # fmt: skip


def main() -> int:
    """Run the jobs and write the logs."""
    chance = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    here = [name for name, module in REAL.items() if importlib.util.find_spec(module)]
    load(here)
    pairs = [
        (trainer, fault)
        for trainer in (*here, *FORMATS)
        for fault in FAULTS
        if trainer in ONLY.get(fault, ONLY.get(fault.partition(" ")[0], {trainer}))
    ]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else len(pairs)
    jobs = [Job(*pair, chance.randrange(24, 60), chance.random()) for pair in pairs]
    chosen = sorted(chance.sample(jobs, min(count, len(jobs))))
    with gzip.open(sys.argv[1], "wt", encoding="utf-8") as out:
        for start in range(0, len(chosen), TOGETHER):
            for job, text in run(chosen[start : start + TOGETHER]):
                record = {"text": text, "label": FAULTS[job.fault], "alt_labels": []}
                if "Minimum loss scale reached" in text:
                    # The gradients overflow; no loss is printed that is not finite.
                    record["alt_labels"] = ["python_error"]
                if job.fault == "worker_kill" and "killed by signal" not in text:
                    # The trainer saw only a broken pipe.
                    record["alt_labels"] = ["python_error"]
                record["path"] = f"{job.trainer}/{job.fault}-{job.steps}-{job.luck:.3f}"
                if "dressed" in sys.argv:
                    record["text"] = dressed(job, text)
                out.write(json.dumps(record) + "\n")
    print(f"{len(chosen)} of {len(pairs)} jobs")
    return 0


def load(here: Sequence[str]) -> None:
    """Import once what takes long, and is then forked."""
    os.environ |= {"OMP_NUM_THREADS": "1", "KERAS_BACKEND": "torch", "PYTHONPATH": ""}
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for name in here:
        importlib.import_module(REAL[name])
        if name == "hf":
            importlib.import_module("transformers.trainer")


def run(jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
    """Yield each job with what it prints; they run at the same time."""
    with tempfile.TemporaryDirectory() as place:
        pids = []
        for number, job in enumerate(jobs):
            folder = Path(place, str(number))
            (folder / "disk").mkdir(parents=True)
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                try:
                    become(job, folder)
                finally:
                    os._exit(1)
            pids.append(pid)
        for number, (job, pid) in enumerate(zip(jobs, pids, strict=True)):
            _, status = os.waitpid(pid, 0)
            text = Path(place, str(number), "log").read_text(errors="replace")
            number_of_signal = os.waitstatus_to_exitcode(status)
            if number_of_signal < 0 and job.fault != "quiet_kill":
                # What bash writes, which here is not the parent.
                words = (signal.strsignal(-number_of_signal) or "").ljust(23)
                text += f"job.sh: line 3: {pid:>5} {words} python train.py\n"
            yield job, afterwards(job, anonymous(text, f"{place}/{number}"))


def become(job: Job, folder: Path) -> NoReturn:
    """Be the job from here on."""
    os.chdir(folder)
    log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    command = shell_command(job)
    if command is not None:
        os.execvp("bash", ["bash", "-c", command])
    sys.stdout.reconfigure(line_buffering=job.luck > 0.3)  # type: ignore[union-attr]
    sys.argv = ["train.py", job.trainer, UNSEEN.get(job.fault, job.fault), str(job.steps)]
    code = 0
    try:
        trainer_jobs.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        code = 1
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def shell_command(job: Job) -> str | None:
    """Return the command of a job that needs a process of its own."""
    script = f"python -u {HERE}/trainer_jobs.py {job.trainer}"
    parse = f"python -c {PARSE!r}"
    if job.fault == "argument":
        return f"{parse} --n-layer=twelve" if job.luck < 0.5 else f"{parse} --n-layers 12 --lr 0.1"
    if job.fault == "script":
        return "python trian.py --steps 9" if job.luck < 0.7 else "acelerate launch train.py"
    if job.fault == "disk":
        mount = "mount -t tmpfs -o size=1m none disk"
        run = f"{mount} && {script} disk {job.steps}"
        return f"unshare --mount --map-root-user bash -c '{run}'"
    if job.fault.startswith("ddp"):
        launch = "python -m torch.distributed.run --standalone --nproc-per-node 2"
        return f"{launch} {script.removeprefix('python -u ')} {job.fault[4:]} {job.steps}"
    return None


def afterwards(job: Job, text: str) -> str:
    """Return a log with its end cut, or replaced by what Slurm writes."""
    if job.fault != "cut" and job.fault not in ENDS:
        return text
    # Within the training, and not behind its last tenth.
    text = text[: int(len(text) * (0.2 + 0.6 * job.luck))]
    return text if job.fault == "cut" else f"{text}\n{ENDS[job.fault]}\n"


def dressed(job: Job, text: str) -> str:
    """Return a log as launchers and terminals pass it on."""
    way = int(job.luck * 1000) % 6
    if way == 0:
        return re.sub(r"(?m)^(?=.)", "2026-01-02 03:04:05.678 ", text)
    if way == 1:
        return re.sub(r"(?m)^(?=.)", "[rank0]: ", text)
    if way == 2:
        return re.sub(r"(?m)^(.*(?:oss|rror).*)$", "\x1b[1;33m\\1\x1b[0m", text)
    return text.replace("\n", "\r\n") if way == 3 else text


def anonymous(text: str, folder: str) -> str:
    """Return a log without the paths of this machine."""
    text = text.replace(folder, "/job").replace(str(HERE), "/src")
    text = text.replace(sys.base_prefix, "/usr")
    return re.sub(r"/\S+/site-packages", "/venv/site-packages", text)


if __name__ == "__main__":
    sys.exit(main())
