"""What a call of a job script puts into the queue and into its run folder."""

from __future__ import annotations

import json
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.forked import REAL_START
from tests.programs import copy_sources
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.jobs import PATIENCE, SLOW, STEADY, Outcome, Site, logs, tiny

SHORT = tiny(model=None, iterations=6, log_freq=2, save_checkpoint_freq=2)
AT_ONCE = 10
AWKWARD = 'it\'s "50%" of $HOME; `ls` \\n & é *'


@pytest.fixture(scope="module")
def finished(cluster: Cluster, repo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Outcome]:
    """A training, every program of which started from nothing."""
    site = Site(cluster, repo, tmp_path_factory.mktemp("finished") / "results", {REAL_START: "1"})
    outcome = site.submit("lncot-train", "--name", "run", "--", *SHORT)
    site.wait(outcome)
    return site, outcome


def test_a_job_finishes_and_leaves_its_logs_command_and_revision_in_its_run_folder(
    finished: tuple[Site, Outcome],
) -> None:
    site, outcome = finished
    assert site.ledger()[-1]["chain"] == "finished", logs(outcome.run_dir)
    left = {f"slurm_{outcome.job}.out", f"slurm_{outcome.job}.err", "command.txt", "revision.txt"}
    assert left <= {path.name for path in outcome.run_dir.iterdir()}
    assert shlex.split((outcome.run_dir / "command.txt").read_text()) == [
        "bash",
        site.script("lncot-train"),
        "--name",
        "run",
        "--",
        *SHORT,
    ]


def test_a_training_that_began_under_former_defaults_ends_with_them(site: Site) -> None:
    assert site.call("lncot-train", "--local", "--", *SHORT, "--max_runtime_minutes", "0", SEED="2").code != 0
    outcome = site.submit("lncot-train", "--", *SHORT)
    site.wait(outcome)
    (summary,) = site.results.glob("*/*/*/summary.json")
    assert json.loads(summary.read_text())["args"]["seed"] == 2 and summary.parent.name.endswith("_seed2")
    assert logs(outcome.run_dir).count("note: going on with --seed 2") == 1, logs(outcome.run_dir)


def test_a_finished_experiment_is_not_queued_again(finished: tuple[Site, Outcome]) -> None:
    site, first = finished
    outcome = site.call("lncot-train", "--name", "run", "--", *SHORT)
    assert (outcome.code, outcome.job) == (0, "")
    assert "finished already" in outcome.out
    number, earlier = (int(run.run_dir.name.removeprefix("run_")) for run in (outcome, first))
    assert number > earlier


def test_submissions_at_once_are_as_many_jobs_in_as_many_run_folders(site: Site) -> None:
    def submit(n: int) -> Outcome:
        return site.submit("lncot-train", "--name", f"run {n}", "--", *SHORT, SBATCH_OPTIONS="--hold")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(submit, range(AT_ONCE)))
    try:
        assert len({outcome.run_dir for outcome in outcomes}) == AT_ONCE
        assert {outcome.job for outcome in outcomes} <= set(site.queue())
        assert len({outcome.job for outcome in outcomes}) == AT_ONCE
        assert {(outcome.run_dir / "first_job.txt").read_text().strip() for outcome in outcomes} == {
            outcome.job for outcome in outcomes
        }
    finally:
        site.scancel(*(outcome.job for outcome in outcomes))


def test_names_and_flags_with_spaces_quotes_dollars_and_percents_reach_the_training_as_they_are(
    site: Site, tmp_path: Path
) -> None:
    overlay = tmp_path / f"flags {AWKWARD}.json".replace("/", "")
    overlay.write_text(json.dumps({"weight_decay": 0.125}))
    outcome = site.submit("lncot-train", "--name", AWKWARD, "--", *SHORT, "--config", str(overlay))
    site.wait(outcome)
    (experiment,) = site.results.glob("*/*/*")
    assert experiment.name == AWKWARD, logs(outcome.run_dir)
    assert json.loads((experiment / "summary.json").read_text())["args"]["weight_decay"] == 0.125


def test_dry_run_queues_nothing_and_makes_nothing(site: Site) -> None:
    queued, folders = site.queue(), site.run_folders("lncot-train")
    outcome = site.call("lncot-train", "--dry-run", "--name", "run", "--", *SHORT)
    assert outcome.code == 0 and "would submit: sbatch" in outcome.out
    assert set(site.queue()) <= set(queued)
    assert site.run_folders("lncot-train") == folders and not site.results.exists()


def test_after_makes_the_job_wait_for_that_job_to_succeed(site: Site) -> None:
    first = site.submit("lncot-train", "--name", "first", "--", *SHORT, SBATCH_OPTIONS="--hold")
    second = site.submit("lncot-train", "--name", "second", "--after", first.job, "--", *SHORT)
    try:
        assert f"afterok:{first.job}(" in site.show(second.job, "Dependency")
    finally:
        site.scancel(first.job, second.job)


def test_a_job_after_a_chain_moves_to_its_next_job_and_starts_only_when_the_chain_is_finished(
    site: Site,
) -> None:
    site.pace(STEADY)
    chain = site.submit(
        "lncot-train", "--name", "run", "--", *tiny(model=None, iterations=40, save_checkpoint_freq=50)
    )
    evaluation = site.submit(
        "eval-lncot", "--name", "run", "--after", chain.job, "--", "--device", "cpu", N_GPUS="0"
    )
    site.wait_for_step(9)
    site.cluster.run("scancel", "--batch", "--signal=USR1", chain.job)  # as before a time limit
    wait_until(lambda: chain.job not in site.queue(), PATIENCE, "the first job's end")
    (successor,) = site.queue("%i", f"--name={chain.job_name}")
    assert f"afterok:{successor}(" in site.show(evaluation.job, "Dependency")
    site.pace(0)
    site.wait(evaluation)
    summary = evaluation.run_dir / "eval_summary_ckpt_40.json"
    assert json.loads(summary.read_text())["itr"] == 40, logs(evaluation.run_dir)


# what is refused is told in one line, and leaves nothing behind

REFUSED = {
    "a flag that is unknown": (["--n_layers", "4"], {}, "unknown flag --n_layers"),
    "a flag out of range": (["--dropout", "2"], {}, "--dropout must be at most"),
    "a partition that does not exist": ([], {"PARTITION": "l40"}, "there is no partition 'l40'"),
    "a time limit above the partition's": (
        [],
        {"TIME_LIMIT": "2-00:00:00"},
        "more than partition amd_student allows",
    ),
    "more GPUs than a node has": (["--acc_steps", "4"], {"N_GPUS": "4"}, "N_GPUS 4 is more than a node"),
    "more nodes than there are": (
        ["--acc_steps", "4"],
        {"N_NODES": "4"},
        "N_NODES 4 is more than partition amd_student has",
    ),
    "data that are not prepared": (
        ["--data_dir", "/nowhere"],
        {},
        "download-dataset/job.sh --full, then bash iridis/extract-tokenize-dataset/job.sh",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_line_with_nothing_queued_and_no_run_folder(site: Site, what: str) -> None:
    flags, env, reason = REFUSED[what]
    queued, folders = site.queue("%i", "--state=PENDING"), site.run_folders("lncot-train")
    outcome = site.call("lncot-train", "--name", "run", "--", *SHORT, *flags, **env)
    errors = [line for line in outcome.err.splitlines() if "error: " in line]
    assert outcome.code == 2 and len(errors) == 1, outcome.err
    assert reason in errors[0]
    assert outcome.job == "" and site.queue("%i", "--state=PENDING") == queued
    assert site.run_folders("lncot-train") == folders and not site.results.exists()


def test_an_experiment_in_training_is_refused_naming_the_job_and_goes_on_undisturbed(site: Site) -> None:
    words = ("lncot-train", "--name", "run", "--", *tiny(model=None, iterations=24))
    site.pace(SLOW)
    first = site.submit(*words)
    site.wait_for_step(3)
    second = site.call(*words)
    assert second.code == 2 and f"in the queue already: job {first.job}" in second.err
    assert {path.name for path in second.run_dir.iterdir()} == {
        "command.txt",
        "revision.txt",
        "experiment.txt",
        "not_submitted.txt",
    }
    site.pace(0)
    site.wait(first)
    assert [(row["start_step"], row["end_step"], row["chain"]) for row in site.ledger()] == [
        (0, 24, "finished")
    ]


def test_an_experiment_in_training_without_a_job_is_refused_naming_its_process(site: Site) -> None:
    words = ("--name", "run", "--", *tiny(model=None, iterations=600))
    site.pace(STEADY)
    training = site.start("lncot-train", "--local", *words)
    try:
        site.wait_for_step(3)
        second = site.call("lncot-train", *words)
        holder = json.loads((site.experiment() / "lock").read_text())
        assert second.code == 2 and f"is being trained by {holder['job']}" in second.err and second.job == ""
    finally:
        training.terminate()
        training.communicate(timeout=60)


def test_after_a_job_that_slurm_does_not_know_is_refused(site: Site) -> None:
    outcome = site.call("lncot-train", "--name", "run", "--after", "999999", "--", *SHORT)
    assert (outcome.code, outcome.err) == (2, "error: --after 999999: SLURM knows no such job\n")


def cancel(site: Site, *words: str) -> tuple[int, str]:
    done = site.cluster.run("bash", str(site.repo / "iridis" / "cancel.sh"), *words, **site.environment())
    return done.returncode, done.stdout + done.stderr


def test_cancel_takes_an_experiment_and_what_waits_for_it_and_leaves_the_others(site: Site) -> None:
    first = site.submit("lncot-train", "--name", "first", "--", *SHORT, SBATCH_OPTIONS="--hold")
    waiting = site.submit("eval-lncot", "--name", "first", "--after", first.job, "--", "--device", "cpu")
    other = site.submit("lncot-train", "--name", "other", "--", *SHORT, SBATCH_OPTIONS="--hold")
    try:
        code, said = cancel(site, "first")
        assert code == 0, said
        assert set(re.findall(r"^cancelled: (\d+) ", said, re.MULTILINE)) == {first.job, waiting.job}
        wait_until(
            lambda: first.job not in site.queue() and waiting.job not in site.queue(), PATIENCE, "their end"
        )
        assert other.job in site.queue()
        assert cancel(site, "first")[0] == 2
        assert (
            cancel(
                site, str(site.results / "openwebtext2" / "cotformer_full_depth_lnmid_depthemb" / "other")
            )[0]
            == 0
        )
    finally:
        site.scancel(other.job)


def test_a_pinned_chain_runs_the_code_of_its_submission(site: Site, tmp_path: Path) -> None:
    site.repo = tmp_path / "clone"
    copy_sources(site.repo)
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"],
    ):
        site.cluster.run("git", "-C", str(site.repo), *words)
    revision = site.cluster.run("git", "-C", str(site.repo), "rev-parse", "HEAD").stdout.strip()
    outcome = site.submit("lncot-train", "--pin-code", "--name", "run", "--", *SHORT, SBATCH_OPTIONS="--hold")
    (site.repo / "main.py").write_text("raise SystemExit('edited while the job waited')\n")
    site.cluster.run("scontrol", "release", outcome.job)
    site.wait(outcome)
    (row,) = site.ledger()
    assert (row["chain"], row["revision"], row["dirty"]) == ("finished", revision, False), logs(
        outcome.run_dir
    )


def test_the_name_of_a_job_tells_the_model_and_its_size(site: Site) -> None:
    outcome = site.call("base-train", "cot", "2x3", "--dry-run", "--name", "run", "--", *SHORT)
    assert "--job-name=train-cot4x3-run-" in outcome.out or "--job-name=train-cot2x3-run-" in outcome.out, (
        outcome.out + outcome.err
    )


@pytest.mark.parametrize(
    ("given", "account"),
    [
        ({"SBATCH_ACCOUNT": "theirs"}, "theirs"),
        ({"SBATCH_ACCOUNT": "theirs", "ACCOUNT": "ours"}, "ours"),
        ({"ACCOUNT": "ours", "SBATCH_OPTIONS": "--hold --account=mine"}, "mine"),
    ],
)
def test_account_goes_before_that_of_a_profile_and_options_before_both(
    site: Site, given: dict[str, str], account: str
) -> None:
    outcome = site.submit(
        "lncot-train", "--name", "run", "--", *SHORT, **{"SBATCH_OPTIONS": "--hold", **given}
    )
    try:
        assert site.show(outcome.job, "Account") == account
    finally:
        site.scancel(outcome.job)


def test_slurm_mails_the_end_of_a_job_that_is_no_training(site: Site, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words of a text\n" * 100)
    words = (
        "--name",
        "mine",
        "--input",
        str(tmp_path / "text.txt"),
        "--val-fraction",
        "0.1",
        "--tokenizer",
        "char",
    )
    outcome = site.submit(
        "extract-tokenize-dataset", *words, DATA_DIR=str(tmp_path), NOTIFY_EMAIL="tokens@example.org"
    )
    site.wait(outcome)
    mails = site.cluster.folder / "mails"
    wait_until(lambda: mails.is_file() and "tokens@example.org" in mails.read_text(), PATIENCE, "the mail")
    (mail,) = [line for line in mails.read_text().splitlines() if "tokens@example.org" in line]
    assert f"Job_id={outcome.job} " in mail and "Ended" in mail, logs(outcome.run_dir)
