"""Damaged checkpoints that a start meets: it goes on from the newest good one and says what it passed over,
or stops with a line.

Real checkpoints of a real training. Many kinds of damage by the way that main.py goes, in this process; each
kind once by main.py.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import config
from data import open_splits
from distributed.world import World
from errors import UserError
from optim.checkpoint import random_states
from optim.reporting import log
from optim.selftest import differing, leaves
from optim.setup import seed_everything, starting_point
from tests.chaos import scale
from tests.programs import (
    command,
    final_state,
    flags,
    folder,
    in_read_only,
    metrics,
    run,
    status,
    train,
    trained,
    trainer_of,
)

pytestmark = pytest.mark.slow

SMALL = {
    "n_layer": 4,  # test_storage.py knows how large its checkpoints are
    "iterations": 12,
    "save_checkpoint_freq": 3,
    "keep_checkpoints": 0,
    "eval_freq": 6,
    "eval_batches": 2,
    "log_freq": 2,
    "acc_steps": 2,
}
KILLED_AT = 10  # step whose metrics the training has written, with ckpt_9.pt the newest
ONE_LINE = "main.py: error: "


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("unbroken"), **SMALL)


@pytest.fixture
def killed(unbroken: Path, tmp_path: Path) -> Path:
    """What SIGKILL after step 10 leaves: ckpt_3.pt, ckpt_6.pt, ckpt_9.pt, and metrics up to there."""
    results = tmp_path / "killed"
    shutil.copytree(unbroken, results)
    for name in ("ckpt.pt", "summary.json"):
        (folder(results) / name).unlink()
    rows = [
        line
        for line in (folder(results) / "metrics.jsonl").read_text().splitlines(keepends=True)
        if json.loads(line)["step"] <= KILLED_AT
    ]
    (folder(results) / "metrics.jsonl").write_text("".join(rows))
    ledger = [
        json.loads(line) | {"end_step": 9, "reached": KILLED_AT, "state": "running", "reason": "unknown"}
        for line in (folder(results) / "segments.jsonl").read_text().splitlines()
    ]
    (folder(results) / "segments.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ledger))
    told = status(results) | {"state": "running", "itr": KILLED_AT, "reason": "", "checkpoint": 9}
    (folder(results) / "status.json").write_text(json.dumps(told))
    return results


# kinds of damage


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """An intact file with another content."""
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def of_two_processes_with_one_generator(state: dict[str, Any]) -> None:
    state["world_size"] = 2


def foreign_model(path: Path) -> None:
    changed(path, lambda state: state["model"].update({"transformer.extra.weight": torch.zeros(3)}))


def other_settings(path: Path) -> None:
    changed(path, lambda state: state["args"].update(n_embd=64))


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "moved" / "ckpt_9.pt")


def legacy(path: Path) -> None:
    """The pickle that torch wrote before its zip format: no checksums, so not to be believed."""
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


PASSED_OVER: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "dangling symlink": dangling,
    "legacy pickle": legacy,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "text": lambda path: path.write_text("not a checkpoint\n"),
    "folder": as_folder,
    "zip of something else": lambda path: (
        shutil.make_archive(str(path.with_suffix("")), "zip", path.parent, "status.json")
        and path.with_suffix(".zip").rename(path)
    ),
}
REFUSED: dict[str, Callable[[Path], object]] = {
    "foreign model": foreign_model,
    "generators of a process missing": lambda path: changed(path, of_two_processes_with_one_generator),
    "other settings": other_settings,
}


# by the way that main.py goes: folder -> starting point -> trainer


class Starts:
    """Starts over one experiment in this process, each with a trainer of its own. good: what each
    checkpoint holds, intact.
    """

    def __init__(self, results: Path) -> None:
        self.args = config.parse_args(flags(results, **SMALL))
        self.folder = folder(results)
        self.newest = self.folder / "ckpt_9.pt"
        self.splits = open_splits(
            self.args.dataset, self.args.data_dir, self.args.sequence_length, self.args.vocab_size
        )
        self.good = {9: self.start()[0]}
        self.newest.rename(self.folder / "hidden")
        self.good[6] = self.start()[0]
        (self.folder / "hidden").rename(self.newest)

    def start(self) -> tuple[dict[str, Any], list[str]]:
        """All that the training has taken up, and the lines that the start printed. Raises UserError."""
        lines: list[str] = []
        listener = Listener(lines)
        log.addHandler(listener)
        log.setLevel(logging.INFO)
        try:
            seed_everything(self.args.seed, 0)
            trainer = trainer_of(self.args, World(torch.device("cpu")), self.splits, self.folder)
            path = starting_point(self.folder, "auto")
            if path is not None:
                trainer.progress.load(path)
        finally:
            log.removeHandler(listener)
        return (
            leaves(
                {
                    "step": trainer.progress.step,
                    "model": trainer.progress.network.state_dict(),
                    "optimizer": trainer.progress.optimizer.state_dict(),
                    "schedule": trainer.progress.schedule.state_dict(),
                    "meter": vars(trainer.progress.steps.meter),
                    "rng": random_states(torch.device("cpu")),
                }
            ),
            lines,
        )

    def judge(self) -> str:
        """What a start makes of the newest checkpoint: "passed over", "no harm", or what went wrong."""
        taken, lines = self.start()
        if not differing(taken, self.good[9]):
            return "no harm"
        if differing(taken, self.good[6]):
            return f"took up step {taken['/step']} with other {differing(taken, self.good[6])[:3]}"
        return (
            "passed over"
            if any("passing over ckpt_9.pt: " in line for line in lines)
            else f"passed over without a word: {lines}"
        )

    def meets(self, raw: bytes) -> str:
        """The same of a file with this content."""
        self.newest.write_bytes(raw)
        return self.judge()


class Listener(logging.Handler):
    """Collects the lines of a log."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_checkpoint_cut_short_anywhere_is_passed_over_by_name(killed: Path) -> None:
    starts, places = Starts(killed), random.Random(1)
    raw = starts.newest.read_bytes()
    count = scale(20, 300)
    lengths = [
        len(raw) - 1,
        *(
            places.randrange(part * len(raw) // count, (part + 1) * len(raw) // count)
            for part in range(1, count)
        ),
    ]
    found = {length: starts.meets(raw[:length]) for length in lengths}
    assert {length: what for length, what in found.items() if what != "passed over"} == {}


def test_checkpoint_with_a_flipped_bit_is_passed_over_or_taken_up_unharmed(killed: Path) -> None:
    starts, places = Starts(killed), random.Random(2)
    raw = starts.newest.read_bytes()
    # few bytes, and the ones that steer the reader: half of the places lie there
    directory = raw.rindex(b"PK\x01\x02") - 4096
    found = {}
    for number in range(scale(50, 1000)):
        place = places.randrange(8 * (directory if number % 2 else 0), 8 * len(raw))
        found[place] = starts.meets(
            raw[: place // 8] + bytes([raw[place // 8] ^ 1 << place % 8]) + raw[place // 8 + 1 :]
        )
    assert {place: what for place, what in found.items() if what not in ("passed over", "no harm")} == {}
    # or the flips would not have met the file's content
    assert list(found.values()).count("passed over") > len(found) / 2


@pytest.mark.parametrize("kind", PASSED_OVER)
def test_damaged_newest_is_passed_over_by_name(killed: Path, kind: str) -> None:
    starts = Starts(killed)
    PASSED_OVER[kind](starts.newest)
    assert starts.judge() == "passed over"


@pytest.mark.parametrize("kind", REFUSED)
def test_intact_checkpoint_of_another_run_is_refused_by_name(killed: Path, kind: str) -> None:
    starts = Starts(killed)
    REFUSED[kind](starts.newest)
    with pytest.raises(UserError, match=r"ckpt_9\.pt"):
        starts.start()


@pytest.mark.parametrize(
    "part",
    [
        "format",
        "itr",
        "args",
        "world_size",
        "model",
        "optimizer",
        "scheduler",
        "scaler",
        "rng",
        "data",
        "gradient_meter",
    ],
)
def test_intact_file_that_lacks_a_part_is_refused_by_name(killed: Path, part: str) -> None:
    starts = Starts(killed)
    changed(starts.newest, lambda state: state.pop(part))
    with pytest.raises(UserError, match=r"ckpt_9\.pt"):
        starts.start()


# by main.py


def only_one_line(outcome: subprocess.CompletedProcess[str]) -> str:
    """What a refusal says; fails for a traceback, several lines or another exit code."""
    lines = outcome.stderr.splitlines()
    assert (outcome.returncode, len(lines)) == (2, 1), outcome.stdout + outcome.stderr
    assert lines[0].startswith(ONE_LINE)
    return lines[0]


@pytest.mark.parametrize("kind", scale(["dangling symlink"], list(PASSED_OVER)))
def test_run_that_passes_over_the_newest_ends_with_the_same_bits(
    unbroken: Path, killed: Path, kind: str
) -> None:
    PASSED_OVER[kind](folder(killed) / "ckpt_9.pt")
    if kind == "folder":  # which no checkpoint can replace: the next save has another name
        (folder(killed) / "ckpt_9.pt").rename(folder(killed) / "ckpt_11.pt")
    outcome = train(killed, **SMALL)
    assert outcome.returncode == 0, outcome.stderr
    assert f"warning: passing over ckpt_{11 if kind == 'folder' else 9}.pt: " in outcome.stdout
    assert "ckpt_6.pt at step 6" in outcome.stdout
    assert differing(final_state(unbroken), final_state(killed)) == []
    assert metrics(unbroken) == metrics(killed)


@pytest.mark.parametrize("kind", scale(["generators of a process missing"], list(REFUSED)))
def test_intact_checkpoint_of_another_run_stops_main_in_one_line(killed: Path, kind: str) -> None:
    REFUSED[kind](folder(killed) / "ckpt_9.pt")
    before = {path.name: path.read_bytes() for path in folder(killed).glob("*.pt")}
    assert "ckpt_9.pt" in only_one_line(train(killed, **SMALL))
    assert {path.name: path.read_bytes() for path in folder(killed).glob("*.pt")} == before


def test_experiment_whose_checkpoints_are_all_damaged_is_not_trained_afresh(killed: Path) -> None:
    for path in folder(killed).glob("*.pt"):
        flip(path)
    line = only_one_line(train(killed, **SMALL))
    assert all(f"ckpt_{step}.pt" in line for step in (3, 6, 9)) and "to start afresh" in line


@pytest.mark.parametrize("foreign", [False, True], ids=["auto", "begun from another run's"])
@pytest.mark.parametrize(
    "leave",
    [lambda path: path.unlink(), lambda path: path.rename(path.with_suffix(".bak"))],
    ids=["deleted", "renamed"],
)
def test_experiment_whose_checkpoints_are_gone_is_not_trained_afresh(
    unbroken: Path, killed: Path, leave: Callable[[Path], object], foreign: bool
) -> None:
    """Clusters delete old files from their scratch; status.json still knows that there were checkpoints."""
    for path in folder(killed).glob("*.pt"):
        leave(path)
    with pytest.raises(UserError, match="step 9"):
        starting_point(folder(killed), str(folder(unbroken) / "ckpt.pt") if foreign else "auto")


def test_own_checkpoint_by_another_spelling_is_its_own(killed: Path) -> None:
    (killed / "link").symlink_to(folder(killed))
    outcome = train(killed, **SMALL, use_pretrained=killed / "link" / "ckpt_9.pt", grad_norm_limit=1e-9)
    assert "step 10: " in only_one_line(outcome) and "the last good checkpoint is of step 9" in only_one_line(
        outcome
    )


def test_final_checkpoint_that_points_nowhere_is_passed_over_by_name(killed: Path) -> None:
    """A final checkpoint that was moved to an archive which is gone must not look like an experiment
    without one.
    """
    for path in folder(killed).glob("*.pt"):
        path.unlink()
    (folder(killed) / "ckpt.pt").symlink_to(killed / "archive" / "ckpt.pt")
    with pytest.raises(UserError, match=r"passing over ckpt\.pt"):
        starting_point(folder(killed), "auto")


def test_temporary_files_of_killed_writers_do_no_harm_and_old_ones_are_removed(
    unbroken: Path, killed: Path
) -> None:
    half = (folder(killed) / "ckpt_9.pt").read_bytes()[:300_000]
    names = [".ckpt_12.pt.4711.tmp", ".ckpt.pt.4711.tmp", ".status.json.4711.tmp"]
    for name in names:
        (folder(killed) / name).write_bytes(half)
    two_hours_ago = time.time() - 7200
    os.utime(folder(killed) / names[0], (two_hours_ago, two_hours_ago))
    outcome = train(killed, **SMALL)
    assert outcome.returncode == 0, outcome.stderr
    assert "ckpt_9.pt at step 9" in outcome.stdout
    # a young one may have a writer
    assert [name for name in names if (folder(killed) / name).exists()] == names[1:]
    assert differing(final_state(unbroken), final_state(killed)) == []


def test_folder_that_is_read_only_stops_the_start_in_one_line(killed: Path) -> None:
    words = in_read_only(folder(killed), command(killed, **SMALL))
    assert "cannot write to" in only_one_line(run(words))
    folder(killed).chmod(0o755)  # so that pytest can clear it away
