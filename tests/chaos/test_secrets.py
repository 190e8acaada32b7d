"""Secrets of the environment: in no file, no output and no command line of a job."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import status
from tests.chaos.attacks import MARK, SMALL, Outcome, check_job, job, landed
from tests.programs import PEER, flags

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left")]
# of the length that wandb asks for
KEY, TOKEN = "5ec2e7" + "0123456789abcdef" * 2 + "ff", "hf_MarkerThatNobodyElseWrites0123456789"


class Watch:
    """Looks at the command lines of all processes until it is stopped; keeps those that hold a word."""

    def __init__(self, *words: str) -> None:
        self.words, self.found, self.rounds = [word.encode() for word in words], set[bytes](), 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self.stopped.wait(0.05):
            self.rounds += 1
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    line = (folder / "cmdline").read_bytes()
                except OSError:
                    continue
                if any(word in line for word in self.words):
                    self.found.add(line)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()


def holding(folder: Path, *words: str) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and any(word.encode() in path.read_bytes() for word in words)
    ]


def test_a_secret_in_a_command_line_is_seen(tmp_path: Path) -> None:
    with Watch("a-secret-of-this-test") as watch:
        subprocess.run(
            [sys.executable, "-c", "import time; time.sleep(1)", "a-secret-of-this-test"], check=True
        )
    assert watch.found


class Run(NamedTuple):
    outcome: Outcome
    folder: Path  # results, run folder, wandb's files
    watch: Watch


@pytest.fixture(scope="module")
def with_secrets(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training as a job in the foreground, whose name, folders and project are hostile too; everything
    that writes, writes below one folder.
    """
    folder = tmp_path_factory.mktemp("secrets")
    name = f"$(touch {MARK}) `touch {MARK}`;touch {MARK};'\" * -x"
    shutil.copytree(PEER / "datasets", folder / name / "datasets")
    with Watch(KEY, TOKEN) as watch:
        outcome = job(
            "base-train",
            "base",
            "12",
            "--local",
            "--name",
            name,
            "--",
            *SMALL,
            SCRATCH_DIR=str(folder / name / "scratch"),
            WANDB="1",
            RESULTS_DIR=str(folder / name / "results"),
            DATA_DIR=str(folder / name / "datasets"),
            WANDB_PROJECT="a $(b) `c` 'd'",
            HOME=str(folder),
            WANDB_API_KEY=KEY,
            HF_TOKEN=TOKEN,
        )
    shown = [
        line.removeprefix("run folder: ")
        for line in outcome.out.splitlines()
        if line.startswith("run folder: ")
    ]
    for run_dir in shown:
        shutil.move(run_dir, folder / "run")
    return Run(outcome, folder, watch)


def test_a_job_with_hostile_names_does_its_work(with_secrets: Run) -> None:
    assert with_secrets.outcome.code == 0, with_secrets.outcome
    assert list((with_secrets.folder).glob("*/results/openwebtext2/base/*/summary.json"))


def test_a_job_with_hostile_names_runs_nothing_of_them(with_secrets: Run) -> None:
    assert not landed() and not list(with_secrets.folder.rglob(MARK))


def test_a_job_logs_to_wandb_without_a_network(with_secrets: Run) -> None:
    assert list(with_secrets.folder.rglob("run-*.wandb"))


def test_no_file_of_a_job_holds_a_secret(with_secrets: Run) -> None:
    assert (with_secrets.folder / "run" / "command.txt").exists() and holding(
        with_secrets.folder, "openwebtext2"
    )
    assert not holding(with_secrets.folder, KEY, TOKEN)


def test_a_job_does_not_print_secrets(with_secrets: Run) -> None:
    assert not any(secret in with_secrets.outcome.out + with_secrets.outcome.err for secret in (KEY, TOKEN))


def test_no_command_line_of_a_job_holds_a_secret(with_secrets: Run) -> None:
    assert with_secrets.watch.rounds > 10
    assert not with_secrets.watch.found


def test_what_a_job_would_do_is_shown_without_secrets(tmp_path: Path) -> None:
    with Watch(KEY, TOKEN) as watch:
        outcome = job(
            "base-train",
            "base",
            "12",
            "--local",
            "--dry-run",
            "--",
            *SMALL,
            SCRATCH_DIR=str(tmp_path),
            HOME=str(tmp_path),
            WANDB="1",
            WANDB_API_KEY=KEY,
            HF_TOKEN=TOKEN,
        )
    assert outcome.code == 0 and not any(secret in outcome.out + outcome.err for secret in (KEY, TOKEN)), (
        outcome
    )
    assert not holding(tmp_path, KEY, TOKEN) and not watch.found


@pytest.mark.parametrize("way", ["table", "json", "page", "preflight"])
def test_those_that_look_show_no_secrets(
    with_secrets: Run, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    words: dict[str, list[Any]] = {
        "table": [],
        "json": ["--json"],
        "page": ["--html", tmp_path / "page.html"],
    }
    words["preflight"] = ["--", *flags(tmp_path / "results")]
    outcome = call(
        check_job if way == "preflight" else status.main,
        *words[way],
        *([] if way == "preflight" else [with_secrets.folder]),
    )
    assert outcome.code == 0 and not any(secret in outcome.out + outcome.err for secret in (KEY, TOKEN)), (
        outcome
    )
    assert not holding(tmp_path, KEY, TOKEN)
