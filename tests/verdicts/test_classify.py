"""The kind of a log by its text alone.

The logs of tests/data/logs are of jobs that really ran and broke; benchmarks/make_log_fixtures.py
and benchmarks/make_trainer_logs.py make such.  The single lines are what trainers, launchers and
schedulers print.
"""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from elmanctl.ledger.records import EvidenceSource, Verdict, VerdictKind
from elmanctl.verdicts import classify_log

LOGS = sorted((Path(__file__).parents[1] / "data" / "logs").glob("*.log"))

TRAINING = """\
model with 1,204 parameters
step 10 loss 4.1 grad_norm 0.9
step 20 loss 3.2 grad_norm 0.8
"""

DIVERGING = """\
model with 1,204 parameters
step 10 loss 4.1 grad_norm 0.9
step 20 loss nan grad_norm nan
step 30 loss nan grad_norm nan
"""


def kind_of(text: str) -> str:
    verdict = classify_log(text)
    assert_is_quoted(verdict, text)
    return str(verdict.kind)


def assert_is_quoted(verdict: Verdict, text: str) -> None:
    """Every quoted line stands where the evidence says."""
    assert verdict.evidence
    lines = text.split("\n")
    for quote in verdict.evidence:
        assert quote.source is EvidenceSource.LOG
        if quote.line is None:
            assert not text.strip() or not any(c.isprintable() for c in text.strip())
        elif "\x1b" not in lines[quote.line - 1]:
            assert quote.text[:40] in lines[quote.line - 1]


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_job_that_really_broke_is_given_its_kind(path: Path) -> None:
    assert kind_of(path.read_text(encoding="utf-8")) == path.stem.partition("-")[0]


def test_there_are_logs_of_real_jobs() -> None:
    assert len({path.stem.partition("-")[0] for path in LOGS}) >= 10


# What a log of a run in training ends with, and the kind.
AFTER_TRAINING = [
    ("Training complete! Final step: 20", "completed"),
    ("Training completed. Do not forget to share your model on the hub", "completed"),
    ("{'train_runtime': 12.5, 'train_samples_per_second': 80.1, 'train_loss': 2.2}", "completed"),
    ("`Trainer.fit` stopped: `max_epochs=3` reached.", "completed"),
    ("submitit INFO (2026-01-02 10:00:00,000) - Job completed successfully", "completed"),
    ("{'loss': nan, 'grad_norm': nan, 'learning_rate': 0.0, 'epoch': 0.5}", "diverged"),
    ('{"step": 30, "loss": NaN, "lr": 0.1}', "diverged"),
    (
        "Epoch 0:  10%|#         | 10/100 [00:01<00:09, 9.9it/s, v_num=0, train_loss=nan.0]",
        "diverged",
    ),
    ("iter 30: loss nan, time 20.1ms, mfu 3.1%", "diverged"),
    (" iteration 3/ 9 | lm loss: nan | loss scale: 1.0 | grad norm: nan |", "diverged"),
    ("Loss is nan, stopping training", "diverged"),
    ("loss: tensor(inf, device='cuda:0')", "diverged"),
    ("step 30: train loss -inf, val loss 2.0", "diverged"),
    ("step 30: val loss nan", "lost"),
    ("Test set: Average loss: nan, Accuracy: 980/10000 (10%)", "lost"),
    ("Epoch 3 training complete, 12 s", "lost"),
    ("Starting training on GPU 0", "lost"),
    ("Generation 1: Once upon a time", "lost"),
    ("[Eval 30] val loss 2.3", "lost"),
    ("Epoch 1, Train Loss: nan, Val Loss: 2.0", "diverged"),
    ("10/10 [====] - 1s 2ms/step - loss: nan - accuracy: 0.1 - val_loss: nan", "diverged"),
    ("Monitored metric train_loss = nan is not finite. Previous best value was inf.", "diverged"),
    ("NaN loss detected at step 30, stopping", "diverged"),
    ("NaN loss detected, skipping batch\nstep 40 loss 2.0\nstep 50 loss 1.9", "lost"),
    ("Training time 1:23:45", "completed"),
    ('{"event": "training_finished", "step": 20}', "completed"),
    ("2026-01-02 10:00:00,000 trainer INFO: Engine run finished. Time taken: 00:01", "completed"),
    ("2026-01-02 10:00:00,000 evaluator INFO: Engine run finished. Time taken: 00:01", "lost"),
    ("2026-01-02 10:00:00,000 train INFO: finished after 20 steps in 12.1 s", "completed"),
    ("[after training is done] datetime: 2026-01-02 03:05:05", "completed"),
    ("| - Training Time : 2.31 s", "completed"),
    (
        "30/30 - 0s - 8ms/step - loss: 1.89\nEpoch 2/2\n30/30 - 0s - 8ms/step - loss: 1.2",
        "completed",
    ),
    ("Epoch 1/2\n30/30 - 0s - 8ms/step - loss: 1.8900 - mae: 1.2216", "lost"),
    ("Iter(train) [  30/30]  lr: 1.0e-02  eta: 0:00:00  loss: 2.0\nSaving checkpoint", "completed"),
    ("epoch 001:     20 / 42 loss=4.523, ppl=23.00, num_updates=20, lr=1e-05", "lost"),
    ("    train/CrossEntropyLoss=nan", "diverged"),
    ("    eval/CrossEntropyLoss=nan", "lost"),
    ("policy_loss: nan | value_loss: 0.2", "diverged"),
    ("val_cls_loss: nan", "lost"),
    ("ValueError: NaN loss", "diverged"),
    ("FloatingPointError: Minimum loss scale reached (0.0001).", "python_error"),
    ("2026-01-02 03:04:05,678 MemoryError", "oom"),
    (
        "Monitored metric val_loss did not improve in the last 1 records. Signaling Trainer to "
        "stop.\nEpoch 1/3  ━━━━ 45/45 0:00:01 • 0:00:00 26.79it/s train_loss: 0.788",
        "completed",
    ),
    ("[rank: 0] Received SIGTERM: 15\nEpoch 0/3 ━━ 31/57 4.8it/s train_loss: 0.03", "killed"),
    ("KeyboardInterrupt\r 53%|##| 20/43 [00:00<00:00, 42.45it/s, loss=0.618]", "cancelled"),
    ("timeout: sending signal TERM to command 'python'", "timeout"),
    ("=>> PBS: job killed: walltime 3601 exceeded limit 3600", "timeout"),
    ("Some of your processes may have been killed by the cgroup out-of-memory handler.", "oom"),
    ("RuntimeError: unable to mmap 8 bytes from file <x>: Cannot allocate memory (12)", "oom"),
    ("RuntimeError: DataLoader worker (pid 3) is killed by signal: Killed. ", "killed"),
    (
        "RuntimeError: DataLoader worker is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory.",
        "environment",
    ),
    ("zsh: killed     python fit.py", "killed"),
    ("Detected KeyboardInterrupt, attempting graceful shutdown ...", "cancelled"),
    ("wandb: WARNING Disk is nearly full", "lost"),
    ("UserWarning: CUDA error handling is experimental", "lost"),
    ("training stops if the loss is nan", "lost"),
    ("using loss nan-guard", "lost"),
    ("loss information follows", "lost"),
    ("eval_loss: nan", "lost"),
    ("best loss: inf", "lost"),
    ("early stopping: best_loss=inf", "lost"),
    ("grad_norm nan", "lost"),
    ("[deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing", "lost"),
    ("Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to 0.5", "lost"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.", "oom"),
    ("RuntimeError: CUDA error: out of memory", "oom"),
    ("MemoryError", "oom"),
    ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8.00 GiB", "oom"),
    (
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "oom",
    ),
    ("slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks", "oom"),
    ("slurmstepd: error: Exceeded job memory limit at some point.", "oom"),
    ("slurmstepd: error: Job 12 exceeded memory limit (900 > 800), being killed", "oom"),
    ("srun: error: n1: task 0: Out Of Memory", "oom"),
    ("[99.1] Out of memory: Killed process 33 (python) total-vm:9kB", "oom"),
    ("torch.AcceleratorError: CUDA error: an illegal memory access was encountered", "cuda_error"),
    ("RuntimeError: CUDA error: device-side assert triggered", "cuda_error"),
    ("RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "cuda_error"),
    ("RuntimeError: Triton Error [CUDA]: misaligned address", "cuda_error"),
    ("NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.", "cuda_error"),
    ("[rank0]:[E1 x.cpp:1] [Rank 0] Watchdog caught collective operation timeout: W", "cuda_error"),
    (
        "torch.distributed.DistBackendError: NCCL error in: x.cpp:1, ncclUnhandledCudaError",
        "cuda_error",
    ),
    ("KeyError: 'scheduler'", "python_error"),
    ("[rank1]: AssertionError", "python_error"),
    ("3: ZeroDivisionError: division by zero", "python_error"),
    ("OSError: [Errno 28] No space left on device", "disk_full"),
    ("cp: error writing 'x': No space left on device", "disk_full"),
    ("OSError: [Errno 122] Disk quota exceeded: 'last.pt'", "disk_full"),
    ("slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2026-01-02 DUE TO TIME LIMIT ***", "timeout"),
    (
        "slurmstepd: error: *** STEP 1.0 ON n1 CANCELLED AT 2026-01-02 DUE TO PREEMPTION ***",
        "preempted",
    ),
    (
        "slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2026-01-02 DUE TO NODE FAILURE, SEE X ***",
        "node_failure",
    ),
    ("slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2026-01-02T03:04:05 ***", "cancelled"),
    ("KeyboardInterrupt", "cancelled"),
    ("Killed", "killed"),
    ("Terminated", "killed"),
    ("Segmentation fault (core dumped)", "killed"),
    ("./job.sh: line 3: 77 Segmentation fault      (core dumped) python train.py", "killed"),
    ("srun: error: n1: task 0: Killed", "killed"),
    ("srun: error: n1: task 0: Bus error (core dumped)", "killed"),
    ("Bus error", "killed"),
    ("spawn.ProcessExitedException: process 0 terminated with signal SIGKILL", "killed"),
    ("  exitcode  : -9 (pid: 33)  (SIGKILL)", "killed"),
    ("elastic.multiprocessing.api.SignalException: Process 3 got signal: 15", "killed"),
    ("", "lost"),
    ("saved checkpoint step_20_loss_1.7.pt", "lost"),
]

BEFORE_TRAINING = [
    ("", "lost"),
    ("\n\n", "lost"),
    ("usage: fit.py [-h]\nfit.py: error: unrecognized arguments: --depth 3", "invalid"),
    ("usage: fit.py [-h]\nfit.py: error: argument --lr: invalid float value: 'x'", "invalid"),
    (
        "usage: fit.py [-h]\nfit.py: error: the following arguments are required: --data",
        "environment",
    ),
    ("Usage: fit.py [OPTIONS]\n\nError: No such option: --depth", "invalid"),
    ("Usage: fit.py [OPTIONS]\n\nError: Missing option '--data'.", "environment"),
    ("ValueError: Unknown optimizer 'adamm'. Choose from: adam, sgd", "invalid"),
    ("RuntimeError: mat1 and mat2 shapes cannot be multiplied (32x24 and 16x1)", "invalid"),
    ("AssertionError: embed_dim must be divisible by num_heads", "invalid"),
    ("RuntimeError: forward only supports bfloat16, got Float", "invalid"),
    ("triton.runtime.errors.OutOfResources: out of resource: shared memory", "invalid"),
    ("ValueError: invalid literal for int() with base 10: 'x'", "python_error"),
    ("ModuleNotFoundError: No module named 'flash_attn'", "environment"),
    ("ImportError: libcudart.so.12: cannot open shared object file: No such file", "environment"),
    ("FileNotFoundError: [Errno 2] No such file or directory: 'corpus.bin'", "environment"),
    ("RuntimeError: Found no NVIDIA driver on your system.", "environment"),
    ("RuntimeError: No CUDA GPUs are available", "environment"),
    ("python: can't open file '/job/fit.py': [Errno 2] No such file or directory", "environment"),
    ("bash: line 1: torchrun: command not found", "environment"),
    ("/var/spool/slurmd/job1/slurm_script: line 4: python: command not found", "environment"),
    ("ValueError: environment variable RANK expected, but not set", "environment"),
    ("slurmstepd: error: execve(): train.py: No such file or directory", "environment"),
    ("the quick brown fox", "undetermined"),
    ("to: all\nsubject: a loss of time\n\nsee you at ten", "undetermined"),
    ("\x00\x01\x02\x7f\ufffd\ufffd", "undetermined"),
    ("[GPU 0] small started\n[GPU 1] large started\nlarge loss=nan", "undetermined"),
    ("[1/3]\nRunning: small\n  params 10M\n  loss 2.0\n[2/3]\n", "undetermined"),
    (
        "small: 5 params\nstep 1 loss 2\nFINAL: loss=2\nlarge: 9 params\nstep 1 loss 2\n",
        "undetermined",
    ),
    ("RuntimeError: Triton Error [CUDA]: out of memory", "oom"),
    ("[I 2026-01-02 03:04:05] A new study created in memory with name: x", "undetermined"),
]


@pytest.mark.parametrize(("line", "kind"), AFTER_TRAINING, ids=lambda value: str(value)[:60])
def test_last_line_of_a_run_in_training_gives_its_kind(line: str, kind: str) -> None:
    assert kind_of(f"{TRAINING}{line}\n") == kind


@pytest.mark.parametrize(("text", "kind"), BEFORE_TRAINING, ids=lambda value: str(value)[:60])
def test_log_of_a_run_that_never_trained_gives_its_kind(text: str, kind: str) -> None:
    assert kind_of(text) == kind


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        ("Training complete", "diverged"),
        ("Killed", "diverged"),
        ("slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT x DUE TO TIME LIMIT ***", "diverged"),
        ("FloatingPointError: the loss is nan", "diverged"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "oom"),
        ("TypeError: save() takes no arguments", "python_error"),
        ("scan forward: unsupported head_dim=24", "invalid"),
        ("UserWarning: unsupported dtype on this device, slower path taken", "diverged"),
        ("step 40 loss 2.5\nstep 50 loss 2.4\nTraining complete", "undetermined"),
        ("skipping step\nstep 40 loss 2.5\nstep 50 loss 2.4\nTraining complete", "completed"),
    ],
)
def test_losses_that_are_not_finite_are_weighed_with_the_ending(ending: str, kind: str) -> None:
    assert kind_of(f"{DIVERGING}{ending}\n") == kind


def test_summary_may_follow_the_finish() -> None:
    summary = "Training finished\nwandb: train/loss 3.1\nFinal training loss: 3.1\n"
    assert kind_of(TRAINING + summary) == "completed"
    assert kind_of(TRAINING + "Training finished\nstep 30 loss 2.0\n") == "lost"


def test_high_finite_loss_is_no_divergence() -> None:
    assert kind_of("step 10 loss 752.1\nstep 20 loss 751.9\nTraining complete\n") == "completed"


def test_gradients_that_stay_nan_keep_a_run_from_being_completed() -> None:
    lines = [f"{{'loss': 0.0, 'grad_norm': nan, 'epoch': {n}}}" for n in range(5)]
    text = "\n".join([*lines, "{'train_runtime': 9.1, 'train_loss': 0.0}"])
    assert kind_of(text) == "undetermined"


def test_survived_exception_does_not_decide() -> None:
    caught = "Traceback (most recent call last):\n  File 'x', line 1\nValueError: bad sample\n"
    assert kind_of(f"{TRAINING}{caught}step 30 loss 2.0\nTraining complete\n") == "completed"
    assert kind_of(f"{TRAINING}Exception ignored in: <x>\n{caught}") == "lost"


def test_exception_decides_although_buffered_losses_follow() -> None:
    raised = "Traceback (most recent call last):\n  File 'x', line 1\nValueError: bad sample\n"
    assert kind_of(f"{TRAINING}{raised}step 30 loss 2.0\nstep 40 loss 1.9\n") == "python_error"
    much = "".join(f"step {n} loss 2.0\n" for n in range(30, 3000))
    assert kind_of(f"{TRAINING}{raised}{much}") == "lost"


def test_exception_of_an_unknown_name_is_known_by_its_traceback() -> None:
    raised = "Traceback (most recent call last):\n  File 'x', line 1\nmylib.Trouble: no\n"
    assert kind_of(TRAINING + raised) == "python_error"
    assert kind_of(TRAINING + "mylib.Trouble: no\n") == "lost"


def test_exception_group_is_known_by_what_it_holds() -> None:
    group = (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "x", line 1, in <module>\n'
        "  | ExceptionGroup: workers (1 sub-exception)\n"
        "  +-+---------------- 1 ----------------\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "x", line 2, in work\n'
        "    | MemoryError\n"
        "    +------------------------------------\n"
    )
    assert kind_of(TRAINING + group) == "oom"
    assert kind_of(TRAINING + group.replace("MemoryError", "KeyError: 1")) == "python_error"


def test_superseded_exception_does_not_decide() -> None:
    first = "Traceback (most recent call last):\n  File 'x', line 1\nImportError: no fast path\n"
    then = "During handling of the above exception, another exception occurred:\n"
    last = "Traceback (most recent call last):\n  File 'x', line 2\nTypeError: none\n"
    assert kind_of(f"{first}\n{then}\n{last}") == "python_error"
    full = first.replace("ImportError: no fast path", "OSError: [Errno 28] No space left on device")
    assert kind_of(f"{full}\n{then}\n{last}") == "disk_full"


def test_rank_that_ran_out_of_memory_decides_over_the_ranks_that_lost_it() -> None:
    text = (
        "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB.\n"
        "[rank0]: torch.distributed.DistBackendError: NCCL error: ncclRemoteError\n"
        "slurmstepd: error: *** STEP 1.0 ON n1 CANCELLED AT 2026-01-02T03:04:05 ***\n"
        "srun: error: n1: task 0: Killed\n"
    )
    assert kind_of(TRAINING + text) == "oom"


def test_time_limit_decides_over_what_it_made_fail() -> None:
    text = (
        "slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2026-01-02 DUE TO TIME LIMIT ***\n"
        "Traceback (most recent call last):\n  File 'x', line 1\nRuntimeError: shutting down\n"
    )
    assert kind_of(TRAINING + text) == "timeout"


def test_colours_and_progress_bars_are_read_through() -> None:
    bar = "\r".join(f"\x1b[32m{n}%|##| loss={'nan' if n > 5 else 2.0}\x1b[0m" for n in range(9))
    verdict = classify_log(f"model params\r\n{bar}\n")
    assert verdict.kind is VerdictKind.DIVERGED
    assert (verdict.evidence[0].line, verdict.evidence[0].text) == (2, "6%|##| loss=nan")


pieces = st.sampled_from(
    [
        *(line for line, _ in AFTER_TRAINING if not re.search("nan|inf", line, re.IGNORECASE)),
        *(text for text, _ in BEFORE_TRAINING if not re.search("nan|inf", text, re.IGNORECASE)),
        "Traceback (most recent call last):",
        '  File "x.py", line 1, in run',
        "During handling of the above exception, another exception occurred:",
        "\x1b[31m",
        "\r",
    ]
)


@given(st.lists(st.one_of(pieces, st.text(max_size=40)), max_size=12).map("\n".join))
@example("Loss is  ")
def test_any_text_is_given_a_kind_with_lines_that_exist(text: str) -> None:
    verdict = classify_log(text)
    count = text.count("\n") + 1
    assert all(quote.line is None or 1 <= quote.line <= count for quote in verdict.evidence)
    if verdict.kind is VerdictKind.DIVERGED:
        assert re.search("nan|inf", text, re.IGNORECASE)


@given(st.lists(st.one_of(pieces, st.text("abc :=.|%\x1b\r09", max_size=60)), max_size=8))
def test_what_follows_a_completed_run_never_makes_it_diverged(noise: list[str]) -> None:
    text = "\n".join([TRAINING + "Training complete! Final step: 20", *noise])
    assert classify_log(text).kind is not VerdictKind.DIVERGED


@given(st.integers(0, 40), st.sampled_from(["", "loading data", "\r 3%| | \r 4%| |"]))
def test_line_numbers_count_lines_and_not_states_of_a_bar(before: int, filler: str) -> None:
    text = "\n".join([*[filler] * before, "MemoryError", "bye"])
    assert classify_log(text).evidence[0].line == before + 1


HEAD = "Traceback (most recent call last):"


def test_traceback_that_other_words_cut_off_is_still_evidence() -> None:
    lines = ["step 1 loss 3.0", HEAD, '  File "a.py", line 1, in <module>', "    f()"]
    verdict = classify_log("\n".join([*lines, "words of another process", ""]))
    assert verdict.kind is VerdictKind.LOST
    assert [(e.text, e.line) for e in verdict.evidence] == [
        (HEAD, 2),
        ("words of another process", 5),
    ]
