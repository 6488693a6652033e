"""Answers of sbatch, in the words of Slurm 22.05, 24.11 and 26.05 and of its plugins."""

import pytest

from elmanctl.schedulers.sbatch_answer import Outcome, Reason, brief, read_answer

FAILED = "sbatch: error: Batch job submission failed: "
POLICY = f"{FAILED}Job violates accounting/QOS policy (job submit limit, user's size and/or limits)"

LIMITS = [
    f"sbatch: error: AssocMaxSubmitJobLimit\n{POLICY}",
    f"sbatch: error: AssocGrpSubmitJobsLimit\n{POLICY}",
    f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{POLICY}",
    f"sbatch: error: QOSGrpSubmitJobsLimit\n{POLICY}",
    f"sbatch: error: MaxSubmitJobsPerAccount\n{POLICY}",
    "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
    f"{FAILED}Resource temporarily unavailable",
    f"sbatch: error: Slurm job queue full, sleeping and retrying\n{FAILED}Unable to create job "
    "record, try again",
    f"{FAILED}MaxJobCount limit reached",
    f"sbatch: error: You have too many queued jobs.\n{FAILED}Unspecified error",
    "--> max jobs a user ... FAILED: too many simultaneous jobs in queue",
    f"sbatch: error: there are 12 jobs of yours already, 12 is the most\n{FAILED}Unspecified error",
    f"sbatch: error: Maximum number of jobs (500) reached.\n{FAILED}Unspecified error",
    f"sbatch: error: over the limit of 100 queued jobs\n{FAILED}Unspecified error",
    f"sbatch: error: job submit limit exceeded\n{FAILED}Unspecified error",
    f"sbatch: error: one job at a time, please\n{FAILED}Unspecified error",
    f"sbatch: error: the long queue is full\n{FAILED}Unspecified error",
]
BUSY = [
    f"{FAILED}Rate limit exceeded, please retry momentarily",
    f"{FAILED}Rate limit exceeded, please retry later",
    f"{FAILED}Slurm backup controller in standby mode",
    f"{FAILED}Controller is in standby mode, try a different controller",
    f"{FAILED}Requested operation is presently disabled",
    f"{FAILED}System submissions disabled",
    f"{FAILED}I/O error writing script/environment to file",
    f"{FAILED}Licenses currently unavailable",
    "sbatch: error: The license server does not answer.\n" + f"{FAILED}Unspecified error",
    "sbatch: error: lua: the filter is down, try again later\n" + f"{FAILED}Unspecified error",
    f"sbatch: error: submissions are closed over the weekend\n{FAILED}Unspecified error",
    f"sbatch: error: job submission has been paused\n{FAILED}Unspecified error",
    f"sbatch: error: this cluster is not currently accepting jobs\n{FAILED}Unspecified error",
    f"sbatch: error: /scratch is currently unavailable\n{FAILED}Unspecified error",
    f"{FAILED}Error generating job credential",
    f"{FAILED}Authentication credential expired",
]
CLOSED = [
    f"{FAILED}Required partition not available (inactive or drain)",
    f"{FAILED}Partition in DOWN state",
    f"{FAILED}Requested reservation not usable now",
    f"{FAILED}Required node not available (down, drained or reserved)",
    f"{FAILED}Requested account has breached requested QOS usage threshold",
    f"sbatch: error: downtime since 8 o'clock\n{FAILED}Unspecified error",
]
NEVER = [
    (f"{FAILED}Invalid partition name specified", "slurm.partition"),
    (f"{FAILED}User's group not permitted to use this partition", "slurm.partition"),
    (f"{FAILED}Requested partition configuration not available now", "slurm.partition"),
    (f"{FAILED}Invalid account or account/partition combination specified", "slurm.account"),
    (f"{FAILED}Invalid accounting frequency requested", "slurm.extra"),
    (f"{FAILED}Invalid qos specification", "slurm.extra"),
    (f"{FAILED}Invalid feature specification", "slurm.extra"),
    (f"{FAILED}Requested reservation is invalid", "slurm.extra"),
    (f"{FAILED}Requested time limit is invalid (missing or too long)", "slurm.timeout_min"),
    (f"sbatch: error: AssocMaxWallDurationPerJobLimit\n{POLICY}", "slurm.timeout_min"),
    (f"sbatch: error: QOSMaxGRESPerUser\n{POLICY}", "slurm.gres"),
    (f"sbatch: error: QOSMaxMemoryPerJob\n{POLICY}", "slurm.mem_gb"),
    (f"sbatch: error: AssocGrpCpuLimit\n{POLICY}", "slurm.cpus"),
    ("sbatch: error: Invalid generic resource (gres) specification", "slurm.gres"),
    (f"sbatch: error: Memory specification can not be satisfied\n{FAILED}Requested node "
     "configuration is not available", "slurm.mem_gb"),
    (f"{FAILED}Requested node configuration is not available", None),
    ("sbatch: unrecognized option '--nonsense'\nTry \"sbatch --help\" for more information",
     "slurm.extra"),
    ("sbatch: error: Invalid --mail-type specification", "slurm.extra"),
    ("sbatch: error: Invalid --time specification", "slurm.timeout_min"),
]  # fmt: skip
LOST = [
    f"{FAILED}Zero Bytes were transmitted or received",
    f"{FAILED}Socket timed out on send/recv operation",
    f"{FAILED}Unexpected message received",
    f"{FAILED}Message receive failure",
    f"{FAILED}Header lengths are longer than data received",
    f"{FAILED}Unable to contact slurm controller (connect failure)",
    f"{FAILED}Unable to contact slurm controller (receive failure)",
    f"{FAILED}Connection timed out reading",
    f"{FAILED}Protocol authentication error",
    f"{FAILED}Failed to send entire message",
    "sbatch: error: slurm_receive_msg: Connection reset by peer",
    "submit: 504 Gateway Time-out",
    # A wrapper tried twice: the first try may have been taken, and holds the limit.
    f"{FAILED}Socket timed out on send/recv operation\nsbatch: error: AssocMaxSubmitJobLimit",
]


@pytest.mark.parametrize("words", LIMITS)
def test_limit_on_jobs_is_a_refusal_for_now(words: str) -> None:
    found = read_answer(1, "", words)
    assert (found.outcome, found.reason) == (Outcome.NOT_NOW, Reason.LIMIT)


@pytest.mark.parametrize("words", BUSY)
def test_busy_controller_refuses_for_now(words: str) -> None:
    found = read_answer(1, "", words)
    assert (found.outcome, found.reason) == (Outcome.NOT_NOW, Reason.BUSY)


@pytest.mark.parametrize("words", CLOSED)
def test_what_is_closed_may_open(words: str) -> None:
    found = read_answer(1, "", words)
    assert (found.outcome, found.reason) == (Outcome.NOT_NOW, Reason.CLOSED)


@pytest.mark.parametrize(("words", "key"), NEVER)
def test_request_that_can_never_be_met_names_its_setting(words: str, key: str | None) -> None:
    found = read_answer(1, "", words)
    assert (found.outcome, found.reason, found.key) == (Outcome.NEVER, Reason.REQUEST, key)


@pytest.mark.parametrize("words", LOST)
def test_lost_answer_is_no_answer(words: str) -> None:
    found = read_answer(1, "", words)
    assert (found.outcome, found.reason) == (Outcome.PERHAPS, Reason.LOST)


@pytest.mark.parametrize(("words", "key"), NEVER)
def test_options_that_sbatch_itself_refuses_are_an_answer(words: str, key: str | None) -> None:
    """It ends with 255 there, which is no signal."""
    found = read_answer(255, "", words)
    assert (found.outcome, found.key) == (Outcome.NEVER, key)


@pytest.mark.parametrize("code", [-9, -15, 124, 137, 143])
def test_sbatch_that_was_cut_short_has_not_answered(code: int) -> None:
    assert read_answer(code, "", "").outcome is Outcome.PERHAPS
    assert read_answer(code, "4711\n", "").outcome is Outcome.PERHAPS


def test_slurms_own_error_outweighs_what_is_said_before_it() -> None:
    plugin = "sbatch: gres gpu:1 was added, invalid account names are temporarily accepted\n"
    found = read_answer(1, "", f"{plugin}{FAILED}Slurm backup controller in standby mode")
    assert (found.outcome, found.reason) == (Outcome.NOT_NOW, Reason.BUSY)
    found = read_answer(
        1, "", f"sbatch: the queue is overloaded\n{FAILED}Invalid qos specification"
    )
    assert (found.outcome, found.key) == (Outcome.NEVER, "slurm.extra")
    # And what says nothing leaves the word to the plugin.
    found = read_answer(1, "", f"sbatch: error: Invalid account: zoo\n{FAILED}Unspecified error")
    assert (found.outcome, found.key) == (Outcome.NEVER, "slurm.account")


def test_words_that_nobody_sorted_refuse_nothing() -> None:
    plugin = "sbatch: error: {}\n" + f"{FAILED}Unspecified error"
    for words in (
        *("", f"{FAILED}Unspecified error", "Das Kontingent ist erreicht"),
        plugin.format("at most 4 nodes: the maximum number of nodes for jobs is 4"),
        plugin.format("ask for no more than the maximum of 4 GB for jobs here"),
        plugin.format("jobs without an account are not accepted"),
        plugin.format("no time limit over the maximum for short jobs"),
    ):
        found = read_answer(1, "", words)
        assert (found.outcome, found.reason) == (Outcome.PERHAPS, Reason.UNKNOWN)


@pytest.mark.parametrize("text", ["4711", "4711\n", "4711;cluster-a", "\n 4711 \n"])
def test_id_alone_is_an_acceptance(text: str) -> None:
    found = read_answer(0, text, "sbatch: a warning of a plugin")
    assert (found.outcome, found.job_id) == (Outcome.ACCEPTED, "4711")


@pytest.mark.parametrize("text", ["", "2026\n4711", "job 4711", "4711;a;b", "4711 a", "٤٧", "-1"])
def test_success_without_an_id_alone_leaves_the_job_to_its_name(text: str) -> None:
    found = read_answer(0, text, "")
    assert (found.outcome, found.job_id) == (Outcome.PERHAPS, None)


def test_words_are_told_in_one_line() -> None:
    assert brief(f"sbatch: error: AssocMaxSubmitJobLimit\n{FAILED}Job violates policy\n") == (
        "AssocMaxSubmitJobLimit; Job violates policy"
    )
    assert brief(LIMITS[5]) == "Resource temporarily unavailable"
    assert len(brief("x" * 9999)) == 300
