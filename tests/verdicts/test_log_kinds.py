"""Logs recognized by their form: a shell in any language, several runs, measures."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from elmanctl.verdicts import classify_log

TRAINING = "model with 1,204 parameters\nstep 10 loss 4.1\nstep 20 loss 3.2\n"
SCRIPT = "/var/spool/slurmd/job31/slurm_script"

OF_SHELLS = [
    (f"{SCRIPT}: Zeile 7: 3311 Getötet                 python fit.py --lr 0.1", "killed"),
    (f"{SCRIPT}: ligne 7 : 3311 Processus arrêté        python fit.py", "killed"),
    (f"{SCRIPT}: línea 7: 3311 Terminado (killed)      python fit.py", "killed"),
    (f"{SCRIPT}: строка 7: 3311 Убито              python fit.py", "killed"),
    (f"{SCRIPT}: 第 7 行: 3311 已杀死               python fit.py", "killed"),
    ("./job.sh: riga 7: 3311 Errore di segmentazione (core dump creato) python fit.py", "killed"),
    (f"{SCRIPT}: Zeile 7: 3311 Getötet    | python fit.py 2>&1", "killed"),
    (f"{SCRIPT} : ligne 7 : 3311 Processus arrêté        python fit.py", "killed"),
    (f"{SCRIPT}, linha 7: 3311 Morto                   python fit.py", "killed"),
    (f"{SCRIPT} línia 7: 3311 Matat                   python fit.py", "killed"),
    (f"{SCRIPT}: rivi 7:3311 Tapettu                 python fit.py", "killed"),
    (f"{SCRIPT}: 7. sor: 3311 Kilőve                  python fit.py", "killed"),
    (f"{SCRIPT}: 7 eilutė: 3311 Nutraukta (killed)      python fit.py", "killed"),
    (f"{SCRIPT}: 第 7 列\uff1a3311 強制結束                    python fit.py", "killed"),
    (f"{SCRIPT}: 行 7:    11 Killed                  python fit.py", "killed"),
    (f"{SCRIPT}:行4: python: 未找到命令", "environment"),
    (f"{SCRIPT}: sor: 4: python: parancs nem található", "environment"),
    ("make: *** [Makefile:3: fit] Killed", "killed"),
    ("make: *** [Makefile:3: fit] Error 137", "killed"),
    ("Command terminated by signal 9", "killed"),
    ("error: command '['fit']' died with <Signals.SIGKILL: 9>.", "killed"),
    ("srun: error: n1: task 0: Exited with exit code 137", "killed"),
    ("srun: error: n1: task 0: Exited with exit code 139", "killed"),
    ("srun: error: n1: task 0: Exited with exit code 130", "cancelled"),
    ("srun: error: n1: task 0: Exited with exit code 127", "environment"),
    ("srun: error: n1: task 0: Exited with exit code 1", "lost"),
    (f"{SCRIPT}: Zeile 4: python: Kommando nicht gefunden.", "environment"),
    (f"{SCRIPT}: ligne 4 : torchrun : commande introuvable", "environment"),
    (f"{SCRIPT}: line 4: DATA: unbound variable", "environment"),
    (f"{SCRIPT}: fork: retry: Die Ressource ist zur Zeit nicht verfügbar", "environment"),
    (f"{SCRIPT}: Zeile 9: fork: Kann keinen Speicher reservieren", "environment"),
    (f"{SCRIPT}: fork: Cannot allocate memory", "oom"),
    ("sh: 1: Cannot fork", "environment"),
    ("CondaError: Run 'conda init' before 'conda deactivate'", "environment"),
    ("EnvironmentNameNotFound: Could not find conda environment: fit", "environment"),
    ("Could not find conda environment: fit", "environment"),
    ("EnvironmentLocationNotFound: Not a conda environment: /x", "environment"),
    ("CommandNotFoundError: Your shell has not been configured", "environment"),
    ("/opt/env/bin/python: /lib64/libc.so.6: version `GLIBC_2.34' not found (x)", "environment"),
    ("bash: /opt/env/bin/activate: Stale file handle", "environment"),
    ("ls: cannot access '/scratch/bo': Transport endpoint is not connected", "environment"),
    ("mkdir: cannot create directory '/scratch/bo/x': Read-only file system", "environment"),
    ("mktemp: failed to create directory '/tmp/x.1': No space left on device", "environment"),
    ("bash: cannot create temp file for here-document: No space left on device", "environment"),
    (f"{SCRIPT}: line 5: echo: write error: No space left on device", "disk_full"),
    ("enroot-nsenter: failed to create user namespace: No space left on device", "environment"),
    ("ERROR: this might be caused by insufficient shared memory (shm).", "environment"),
    ('rsync: read errors mapping "/nfs/x": Input/output error (5)', "environment"),
    ("FATAL:   While making image from oci registry: no checksum", "environment"),
    ("slurmstepd: error: pyxis: container start failed with error code: 1", "environment"),
    ("nvidia-container-cli: initialization error: driver not loaded", "environment"),
    ("Failed to initialize NVML: Driver/library version mismatch", "environment"),
    ("BLAS : Program is Terminated. Because of too many memory regions.", "environment"),
    ("conda: error: argument COMMAND: invalid choice: 'activate'", "environment"),
    ("mamba: command not found", "environment"),
    ("cc1plus: out of memory allocating 65536 bytes", "oom"),
    ("Error out of memory at line 38 in file x.c", "oom"),
    ("GPUassert: out of memory x.cu 7", "oom"),
    ("GPUassert: an illegal memory access was encountered x.cu 7", "cuda_error"),
    ("FATAL:   could not open image /images/fit.sif: no such file", "environment"),
    ("slurmstepd: error: pyxis: couldn't start container", "environment"),
    ("docker: Error response from daemon: could not select device driver", "environment"),
    ("libgomp: Thread creation failed: Resource temporarily unavailable", "environment"),
    (
        "terminate called after throwing an instance of 'std::system_error'\n"
        "  what():  Resource temporarily unavailable\nAborted (core dumped)",
        "environment",
    ),
    ("  what():  CUDA error: an illegal memory access was encountered", "cuda_error"),
    ("  what():  CUDA error: no CUDA-capable device is detected\nAborted", "environment"),
    ("Memory access fault by GPU node-1 on address 0x7f. Reason: Page not present", "cuda_error"),
    (
        ":0:x.cpp:1: Queue at 0x7f aborting with error : HSA_STATUS_ERROR_OUT_OF_RESOURCES",
        "oom",
    ),
    ("fit.py: line 7: 3311 batches  skipped", "lost"),
    ("/users/bo/fit.py: step 7: 3311 bytes  read", "lost"),
]


@pytest.mark.parametrize(("line", "kind"), OF_SHELLS)
@pytest.mark.parametrize("noise", ["", "qzqz\n" * 50_000], ids=["short", "long"])
def test_end_is_known_by_its_form(line: str, kind: str, noise: str) -> None:
    assert classify_log(f"{noise}{TRAINING}{line}\n").kind == kind


def test_what_a_shell_complains_of_is_survived_where_training_goes_on() -> None:
    complaint = f"{SCRIPT}: Zeile 2: module: Kommando nicht gefunden."
    assert classify_log(f"{complaint}\n{TRAINING}Training complete\n").kind == "completed"
    ended = f"{complaint}\n{TRAINING}{SCRIPT}: Zeile 7: 3311 Getötet            python fit.py\n"
    assert classify_log(ended).kind == "killed"


def test_what_fails_for_a_script_after_the_training_did_not_end_it() -> None:
    for line in ("rm: cannot remove '/tmp/x': Device or resource busy", f"{SCRIPT}: line 9: x: y"):
        assert classify_log(f"{TRAINING}Training complete\n{line}\n").kind == "completed"
        assert classify_log(f"{line}\n{TRAINING}Training complete\n").kind == "completed"
        assert classify_log(f"{TRAINING}{line}\n").kind == "environment"


def test_only_what_an_exception_says_is_read_as_one() -> None:
    raised = 'Traceback (most recent call last):\n  File "fit.py", line 1\nValueError: lr\n'
    text = "no CUDA GPUs are available: is not read of plain lines: No module named 'x'\n"
    assert classify_log(raised + text).kind == "environment"
    assert classify_log(raised + 20 * "error: x\n" + text).kind == "python_error"
    assert classify_log(f"{TRAINING}{text}").kind == "lost"


def test_threads_that_openblas_lacks_are_no_interrupt_of_somebody() -> None:
    text = "OpenBLAS blas_thread_init: pthread_create failed for thread 9 of 16: Resource gone\n"
    raised = 'Traceback (most recent call last):\n  File "fit.py", line 1\nKeyboardInterrupt\n'
    assert classify_log(text + raised).kind == "environment"
    assert classify_log(raised).kind == "cancelled"
    assert classify_log(f"{text}{TRAINING}Training complete\n").kind == "completed"


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash writes these lines")
def test_what_bash_writes_of_a_process_that_was_killed_is_known(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    command = f"{sys.executable} -c 'import os; os.kill(os.getpid(), 9)'"
    script.write_text(f"{command}\nno-such-command-1\n", encoding="utf-8")
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    killed, missing = done.stderr.splitlines()
    assert classify_log(f"{TRAINING}{killed}\n").kind == "killed"
    assert classify_log(f"{TRAINING}{missing}\n").kind == "environment"
    # The same line with the words of another language in it.
    translated = killed.replace("line", "Zeile").replace("Killed", "Getötet")
    assert translated != killed
    assert classify_log(f"{TRAINING}{translated}\n").kind == "killed"


ONE = "model with 1,204 parameters\nstep 10 loss 4.1\nstep 20 loss 3.2\n"
DIED = 'Traceback (most recent call last):\n  File "fit.py", line 1\nValueError: lr\n'
SEVERAL = {
    "hydra": f"[2026-01-02][HYDRA] Launching 3 jobs locally\n[x][HYDRA] \t#0 : lr=1\n{ONE}",
    "hydra, cut": f"[x][HYDRA] \t#0 : lr=1\n{ONE}[x][HYDRA] \t#1 : lr=2\nstep 10 loss nan\n",
    "joblib": f"[x][HYDRA] Joblib.Parallel(n_jobs=2) is launching 4 jobs\n{ONE}",
    "wandb": f"wandb: Agent Starting Run: ab1 with config:\n{ONE}"
    f"wandb: Agent Starting Run: cd2 with config:\n{ONE}",
    "wandb's sweep": f"wandb: Creating sweep with ID: x1\n{ONE}",
    "ray": f"Trial fit_7b3a_00000 started with configuration:\n{ONE}",
    "keras": f"Search: Running Trial #1\n{ONE}",
    "hyperopt": f" 10%|#  | 1/10 [00:09<01:21,  9.00s/trial, best loss: 0.5]\n{ONE}"
    "100%|##| 10/10 [01:30<00:00,  1.20trial/s, best loss: 0.4]\n",
    "grid": f"Fitting 5 folds for each of 3 candidates, totalling 15 fits\n{ONE}",
    "traced": f"+ python fit.py --lr 1\n{ONE}+ python fit.py --lr 2\n{ONE}",
    "headed": f"=== run 1 ===\n{ONE}=== run 2 ===\n{ONE}",
    "counted": f"Run 1/2: lr=1\n{ONE}Run 2/2: lr=2\nstep 10 loss nan\n",
    "named only": "Trial 0:\nepoch 1 loss 3\nTrial 1:\nepoch 1 loss nan\n",
    "of seeds": f"seed: 1\n{ONE}seed: 2\nstep 10 loss nan\n",
    "side by side": "[run 1] step 1 loss 3\n[run 2] step 1 loss 3\n[run 2] step 2 loss nan\n",
    "tasks of an array": f"SLURM_ARRAY_TASK_ID=0\n{ONE}SLURM_ARRAY_TASK_ID=1\nstep 10 loss nan\n",
    "named": f"--- seed=1 ---\n{ONE}--- seed=2 ---\nstep 10 loss nan\nstep 20 loss nan\n",
    "a loop of a shell": f"{ONE}model with 2,408 parameters\nstep 10 loss nan\nstep 20 loss nan\n",
    "two deaths": f"model with 1 parameters\n{DIED}model with 2 parameters\n{DIED}",
    "two deaths in training": f"{ONE}{DIED}{ONE}{DIED}",
}
OF_ONE = {
    "hydra": (f"[x][HYDRA] Launching 1 jobs locally\n[x][HYDRA] \t#0 : lr=1\n{ONE}", "lost"),
    "wandb": (
        f"wandb: Agent Starting Run: ab1 with config:\n{ONE}Training complete\n",
        "completed",
    ),
    "traced": (f"+ python get.py a\n+ python get.py b\n+ python fit.py\n{ONE}", "lost"),
    "headed": (f"=== run 1 ===\n{ONE}=== run 1 ===\nTraining complete\n", "completed"),
    "headed twice": (f"=== run 1 ===\n=== seed 7 ===\n{ONE}", "lost"),
    "its job": (f"SLURM_JOB_ID=71\nSLURM_ARRAY_TASK_ID=3\n{ONE}", "lost"),
    "epochs": (f"epoch 1\n{ONE}epoch 2\nloading data\n{ONE}", "lost"),
    "plain repetition": ("step 1 loss 3\nstep 2 loss 2\nstep 1 loss 2\nstep 2 loss 1\n", "lost"),
    "going on": (f"{ONE}loading checkpoint 20\nstep 30 loss 3\nTraining complete\n", "completed"),
    "ranks": (f"model with 1 parameters\nmodel with 1 parameters\n{DIED}{DIED}", "python_error"),
    "survived": (f"{ONE}{DIED}step 30 loss 3\nTraining complete\n", "completed"),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_log_of_several_runs_is_of_none(name: str) -> None:
    verdict = classify_log(SEVERAL[name])
    assert verdict.kind == "undetermined"
    assert verdict.evidence


@pytest.mark.parametrize("name", OF_ONE)
def test_log_of_one_run_is_not_taken_for_several(name: str) -> None:
    text, kind = OF_ONE[name]
    assert classify_log(text).kind == kind


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ("it 1 bpb 2.7\nit 2 bpb nan\nit 3 bpb nan", "diverged"),
        ("step 1 | bits_per_byte: 2.7\nstep 2 | bits_per_byte: inf", "diverged"),
        ("iter 1 ppl 812.0\niter 2 perplexity nan", "diverged"),
        ("step 1 nll=2.7\nstep 2 nll=nan", "diverged"),
        ("step 1 bpt 2.7\nstep 2 bpt nan", "diverged"),
        ("it 1 bpb 2.7\nit 2 bpb 2.6\nTraining complete", "completed"),
        ("step 1 bpc 2.7\nstep 2 bpc 2.6", "lost"),
        # A loss that is printed decides alone.
        ("step 1 loss 8.1\nstep 1 ppl inf\nstep 2 loss 7.9\nTraining complete", "completed"),
        ("it 1 bpb 2.7\nit 2 val bpb nan\nit 3 bpb 2.5\nTraining complete", "completed"),
        ("evaluation: bpb nan", "undetermined"),
        (
            " iteration  1/ 9 | lm loss: 4.1 | number of nan iterations:  0 |\n"
            " iteration  2/ 9 | grad norm: nan | number of nan iterations:  1 |\n"
            " iteration  3/ 9 | grad norm: nan | number of nan iterations:  1 |",
            "diverged",
        ),
        (
            " iteration  1/ 9 | lm loss: 4.1 | number of nan iterations:  0 |\n"
            " iteration  2/ 9 | number of skipped iterations: 1 | number of nan iterations:  0 |",
            "lost",
        ),
    ],
)
def test_what_is_no_loss_by_name_tells_of_divergence_too(lines: str, kind: str) -> None:
    assert classify_log(f"{lines}\n").kind == kind
