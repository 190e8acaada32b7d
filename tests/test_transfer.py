"""Ways out of the cluster: offline runs to Weights & Biases (the real client against a server on
localhost), results to home by rsync.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from optim.reporting import charts
from tests.file_server import serving
from tests.programs import ROOT, command, folder, start, wait_for_step
from tests.wandb_server import KEY, Handler, Run, WandbServer

pytestmark = pytest.mark.slow


def bash(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    outcome = subprocess.run(
        [str(shutil.which("bash")), *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    print(outcome.stdout, outcome.stderr)
    return outcome


def train_offline(results: Path, wandb_dir: Path, stop_at: int | None) -> None:
    """One job of a chain, which stops cleanly after a step, or goes on to the end."""
    process = start([*command(results, iterations=30), "--wandb"], WANDB_DIR=str(wandb_dir))
    if stop_at is not None:
        wait_for_step(results, stop_at, process)
        process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == (0 if stop_at is None else 83), errors


def logged(results: Path) -> dict[int, dict[str, float]]:
    """What the run has logged by step, in the names under which W&B shows it."""
    steps: dict[int, dict[str, float]] = {}
    for line in (folder(results) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        steps.setdefault(row["step"], {}).update(
            {name: value for name, value in charts(row).items() if "/" in name}
        )
    return steps


def received(run: Run) -> dict[int, dict[str, float]]:
    return {
        step: {key: value for key, value in row.items() if "/" in key} for step, row in run.history().items()
    }


@dataclass
class Site:
    """Offline runs, the experiments that wrote them, and a server to upload to."""

    wandb_dir: Path
    results: Path
    server: WandbServer
    key: str = KEY

    def sync(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        home = self.wandb_dir.parent / "home"  # so that no key of this machine's user is found
        return bash(
            "iridis/wandb-sync/job.sh",
            *words,
            WANDB_DIR=str(self.wandb_dir),
            RESULTS_DIR=str(self.results),
            VENV_DIR=sys.prefix,
            WANDB_BASE_URL=self.server.address,
            WANDB_API_KEY=self.key,
            HOME=str(home),
            WANDB_MODE="offline",
        )

    def files(self) -> list[Path]:
        return sorted(self.wandb_dir.glob("wandb/offline-run-*/*.wandb"))

    def markers(self) -> list[Path]:
        return sorted(self.wandb_dir.glob("wandb/offline-run-*/*.synced"))

    def run(self) -> Run:
        """The only run that the server knows."""
        (found,) = self.server.runs.values()
        return found


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment of two jobs, in exps, whose offline runs are in wandb."""
    base = tmp_path_factory.mktemp("chain")
    train_offline(base / "exps", base / "wandb", stop_at=12)
    train_offline(base / "exps", base / "wandb", stop_at=None)
    return base


@contextmanager
def served(chain: Path, folder: Path) -> Iterator[Site]:
    shutil.copytree(chain / "wandb", folder / "wandb dir", symlinks=True)
    with serving(Handler, WandbServer) as server:
        yield Site(folder / "wandb dir", chain / "exps", server)


@pytest.fixture
def site(chain: Path, tmp_path: Path) -> Iterator[Site]:
    with served(chain, tmp_path) as made:
        yield made


@dataclass
class Calls:
    """A site that was synced twice: what each call said, and the requests that the second one made."""

    site: Site
    first: subprocess.CompletedProcess[str]
    second: subprocess.CompletedProcess[str]
    more_requests: int


def twice(site: Site) -> Calls:
    first, before = site.sync(), len(site.server.requests)
    return Calls(site, first, site.sync(), len(site.server.requests) - before)


@pytest.fixture(scope="module")
def whole(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    """Of both segments."""
    with served(chain, tmp_path_factory.mktemp("whole")) as site:
        yield twice(site)


@pytest.fixture(scope="module")
def killed(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    """Where a kill has cut the first segment short."""
    with served(chain, tmp_path_factory.mktemp("killed")) as site:
        first = site.files()[0]
        os.truncate(first, first.stat().st_size - 5)
        yield twice(site)


def test_two_segments_become_one_run_without_doubled_or_lost_rows(whole: Calls) -> None:
    site = whole.site
    assert whole.first.returncode == 0
    assert list(site.server.runs) == [(folder(site.results) / "wandb_id").read_text()]
    assert received(site.run()) == logged(site.results)
    assert site.run().rows_sent == len(logged(site.results))


def test_summary_names_experiment_run_and_segments(whole: Calls) -> None:
    run_id = (folder(whole.site.results) / "wandb_id").read_text()
    assert f"run  {run_id}  2 of 2 segments up to date, 2 uploaded now\n" in whole.first.stdout


def test_second_call_asks_the_server_nothing(whole: Calls) -> None:
    assert (whole.second.returncode, whole.more_requests) == (0, 0)
    assert "2 of 2 segments up to date\n" in whole.second.stdout


def test_key_is_never_printed(whole: Calls) -> None:
    assert KEY not in whole.first.stdout + whole.first.stderr


def test_later_segment_is_appended_by_a_later_call(site: Site) -> None:
    second = site.files()[1].parent
    elsewhere = second.rename(site.wandb_dir.parent / second.name)
    assert site.sync().returncode == 0
    assert max(site.run().history()) == 12
    elsewhere.rename(second)
    assert site.sync().returncode == 0
    assert received(site.run()) == logged(site.results)
    assert site.run().rows_sent == len(logged(site.results))


def test_segment_of_a_killed_job_does_not_keep_back_the_later_ones(killed: Calls) -> None:
    assert killed.first.returncode == 0
    assert "ends in the middle of a record" in killed.first.stderr
    assert received(killed.site.run()) == logged(killed.site.results)


def test_killed_segment_is_not_sent_again(killed: Calls) -> None:
    assert (killed.second.returncode, killed.more_requests) == (0, 0)


def test_segment_that_has_grown_is_sent_again(site: Site) -> None:
    second = site.files()[1]
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    site.sync()
    partial = len(site.run().history())
    second.write_bytes(whole)
    assert "1 uploaded now" in site.sync().stdout
    assert partial < len(logged(site.results))
    assert received(site.run()) == logged(site.results)


def test_running_job_is_uploaded_as_far_as_it_is(site: Site, tmp_path: Path) -> None:
    shutil.rmtree(site.wandb_dir)
    live = Site(site.wandb_dir, tmp_path / "exps", site.server)
    process = start(
        [*command(live.results, iterations=5000, log_freq=1), "--wandb"], WANDB_DIR=str(live.wandb_dir)
    )
    try:
        while process.poll() is None and not any(file.stat().st_size > 2**15 for file in live.files()):
            time.sleep(0.1)
        outcome = live.sync()
        running = process.poll() is None
    finally:
        process.send_signal(signal.SIGUSR1)
        process.communicate(timeout=60)
    assert (outcome.returncode, running) == (0, True)
    early = received(live.run())
    assert early
    assert live.sync().returncode == 0
    assert received(live.run()) == logged(live.results)
    assert early.items() <= logged(live.results).items()


def test_file_without_a_record_yet_is_passed_over(site: Site) -> None:
    first = site.files()[0]
    os.truncate(first, 7)
    outcome = site.sync(first.parent)
    assert (outcome.returncode, site.server.requests, site.markers()) == (0, [], [])


def test_dry_run_tells_and_sends_nothing(site: Site) -> None:
    outcome = site.sync("--dry-run")
    assert "0 of 2 segments up to date, 2 to upload\n" in outcome.stdout
    assert (outcome.returncode, site.server.requests, site.markers()) == (0, [], [])


def test_only_named_folders_are_synced(site: Site) -> None:
    assert "1 of 1 segments up to date" in site.sync(site.files()[0].parent).stdout


@pytest.mark.parametrize(("key", "reason"), [("", "No API key"), ("1" * 40, "invalid key")])
def test_without_login_one_line_tells_to_log_in(site: Site, key: str, reason: str) -> None:
    site.key = key
    outcome = site.sync()
    (line,) = outcome.stderr.splitlines()
    assert outcome.returncode == 2
    assert reason in line and "wandb login" in line and "1" * 40 not in line
    assert site.markers() == []


def test_without_network_one_line_tells_so(site: Site) -> None:
    site.server.address = "http://127.0.0.1:9"  # nothing listens there
    outcome = site.sync()
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (2, 1)
    assert "cannot reach http://127.0.0.1:9" in outcome.stderr
    assert site.markers() == []


def test_refused_upload_is_not_marked_and_made_up_for_by_the_next_call(site: Site) -> None:
    site.server.refused = "file_stream"
    outcome = site.sync()
    assert outcome.returncode == 1
    assert "0 of 2 segments up to date, 0 uploaded now, FAILED\n" in outcome.stdout
    assert site.markers() == []
    site.server.refused = None
    assert site.sync().returncode == 0
    assert received(site.run()) == logged(site.results)


SSH = """#!/usr/bin/env bash
# runs the command here, as sshd would: in the home folder, by the login shell,
# after start-up files that print
[[ "$*" != *nowhere* ]] || exit 255
while [[ "$1" == -* ]]; do [[ "$1" != -[ol] ]] || shift; shift; done
shift
cd "$CLUSTER" || exit 1
[[ "$1" == rsync ]] || echo "Welcome to the cluster"
unset SCRATCH_DIR RESULTS_DIR
exec bash -c "$*"
"""


@dataclass
class Cluster:
    """A home folder with a clone named as this one, an experiment, a run folder; and a `ssh` that leads
    there.
    """

    path: Path
    to: Path

    def fetch(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return bash(
            "iridis/fetch-results.sh",
            *words,
            CLUSTER=str(self.path),
            PATH=f"{self.path / 'bin'}:{os.environ['PATH']}",
            SCRATCH_DIR=str(self.to.parent),
        )

    def fetched(self) -> set[str]:
        return {str(path.relative_to(self.to)) for path in self.to.rglob("*") if path.is_file()}


def write(path: Path, text: str = "content") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


EXPERIMENT = "exps/data/model/a run"
SMALL = {f"{EXPERIMENT}/summary.json", f"{EXPERIMENT}/metrics.jsonl", "iridis/quickstart/run_0/command.txt"}
CHECKPOINTS = {f"{EXPERIMENT}/ckpt.pt", "iridis/quickstart/run_0/exps/ckpt_9.pt"}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    home = tmp_path / "home on the cluster"
    clone, scratch = home / ROOT.name, home / "my scratch"
    write(home / "bin" / "ssh", SSH)
    (home / "bin" / "ssh").chmod(0o755)
    write(clone / "iridis" / "env.sh", (ROOT / "iridis" / "env.sh").read_text())
    write(clone / "iridis" / "site.sh", f"SCRATCH_DIR='{scratch}'\n")
    write(clone / "iridis" / "quickstart" / "job.sh")
    for name in SMALL | CHECKPOINTS | {f"{EXPERIMENT}/.summary.json.1.tmp"}:
        write((clone if name.startswith("iridis") else scratch) / name)
    return Cluster(home, tmp_path / "at home")


def test_experiments_and_run_folders_come_without_checkpoints_and_temporary_files(cluster: Cluster) -> None:
    assert cluster.fetch("iridis5", "--to", cluster.to).returncode == 0
    assert cluster.fetched() == SMALL


def test_checkpoints_come_when_asked_for(cluster: Cluster) -> None:
    assert cluster.fetch("iridis5", "--checkpoints", "--to", cluster.to).returncode == 0
    assert cluster.fetched() == SMALL | CHECKPOINTS


def test_dry_run_lists_and_copies_nothing(cluster: Cluster) -> None:
    outcome = cluster.fetch("iridis5", "--dry-run", "--to", cluster.to)
    assert f"{EXPERIMENT}/summary.json" in outcome.stdout
    assert cluster.fetched() == set()


def test_second_fetch_takes_only_what_has_changed(cluster: Cluster) -> None:
    cluster.fetch("iridis5", "--to", cluster.to)
    write(cluster.path / "my scratch" / EXPERIMENT / "metrics.jsonl", "more content")
    outcome = cluster.fetch("iridis5", "--to", cluster.to)
    assert (cluster.to / EXPERIMENT / "metrics.jsonl").read_text() == "more content"
    assert "metrics.jsonl" in outcome.stdout and "summary.json" not in outcome.stdout


def test_what_is_gone_on_the_cluster_stays_at_home(cluster: Cluster) -> None:
    cluster.fetch("iridis5", "--to", cluster.to)
    shutil.rmtree(cluster.path / "my scratch" / "exps" / "data")
    write(cluster.to / "exps" / "mine.txt")
    assert cluster.fetch("iridis5", "--to", cluster.to).returncode == 0
    assert cluster.fetched() == SMALL | {"exps/mine.txt"}


def test_default_folder_is_below_scratch_and_the_last_line_tells_how_to_look(cluster: Cluster) -> None:
    outcome = cluster.fetch("user@iridis5")
    home = cluster.to.parent / "fetched" / "user@iridis5"
    assert (home / EXPERIMENT / "summary.json").is_file()
    assert outcome.stdout.splitlines()[-1] == f"fetched to {home}; look at it with: python status.py {home}"


def test_clone_of_another_name_is_found_by_from(cluster: Cluster) -> None:
    (cluster.path / ROOT.name).rename(cluster.path / "my clone; of it")
    assert cluster.fetch("iridis5", "--from", "my clone; of it", "--to", cluster.to).returncode == 0
    assert cluster.fetched() == SMALL


def test_cluster_without_results_yet_is_no_error(cluster: Cluster) -> None:
    shutil.rmtree(cluster.path / "my scratch")
    assert cluster.fetch("iridis5", "--to", cluster.to).returncode == 0


REFUSED: list[tuple[list[str], str]] = [
    ([], "usage:"),
    (["nowhere"], "cannot reach nowhere"),
    (["iridis5", "--from", "elsewhere"], "--from REMOTE_REPO"),
    (["iridis5", "--to"], "--to needs a folder"),
    (["iridis5", "--delete"], "unknown option --delete"),
    (["a", "b"], "one HOST"),
]


@pytest.mark.parametrize(("words", "reason"), REFUSED)
def test_bad_calls_are_refused_in_one_line(cluster: Cluster, words: list[Any], reason: str) -> None:
    outcome = cluster.fetch(*words)
    (line,) = outcome.stderr.splitlines()
    assert (outcome.returncode, line.startswith("error: "), reason in line) == (2, True, True)
