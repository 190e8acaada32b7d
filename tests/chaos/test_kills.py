"""SIGKILL at every moment of a training: each run still ends with the bits of one that nobody disturbed,
and no start is refused.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import config
from optim.selftest import differing
from tests.chaos import scale
from tests.chaos.processes import (
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_MOVED_TO,
    FolderWatch,
    wait_until_gone,
    workers,
)
from tests.corpora import write_documents, write_sources
from tests.forked import Running
from tests.programs import command, final_state, flags, folder, metrics, start, train

pytestmark = pytest.mark.slow

SETTINGS = {"iterations": 40, "log_freq": 1, "eval_freq": 10, "save_checkpoint_freq": 5}
# random windows of three sources, the loss on one of which decides best.pt
ON_A_MIXTURE = {"dataset": "a=0.7,b=0.2,c=0.1", "sampling": "random", "track": "val_loss@b"}
START_SECONDS = {1: 1.0, 2: 5.0}  # of a fork, and of torchrun with two workers, on a busy machine
ALONE = ("start-up", "step", "evaluation", "save", "rename", "renamed")
TOGETHER = ("one rank", "step", "torchrun", "save", "start-up", "renamed", "evaluation")


@dataclass
class Hunt:
    """Trainings that were killed again and again."""

    finished: list[Path] = field(default_factory=list)
    kills: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


def steps_told(target: Path) -> set[int]:
    path = target / "metrics.jsonl"
    return (
        {
            int(line.split('"step": ')[1].split(",")[0])
            for line in path.read_text().splitlines()
            if '"step": ' in line
        }
        if path.exists()
        else set()
    )


def wait_for_new_step(target: Path, process: Running, every: int = 1) -> None:
    """Until metrics.jsonl tells of another step; of a multiple of `every`, after which something else is
    due.
    """
    before = steps_told(target)
    while process.poll() is None and not any(step % every == 0 for step in steps_told(target) - before):
        time.sleep(0.005)


def await_moment(moment: str, target: Path, process: Running, draw: random.Random, processes: int) -> None:
    """Return when the training is in the middle of it, or has ended."""
    masks = {"save": IN_CREATE, "rename": IN_CLOSE_WRITE, "renamed": IN_MOVED_TO}
    if moment == "start-up":
        time.sleep(draw.uniform(0.05, START_SECONDS[processes]))
    elif moment in masks:
        with FolderWatch(target) as watch:
            watch.wait(masks[moment], "ckpt", lambda: process.poll() is None)
        time.sleep(draw.choice((0.0, draw.uniform(0, 0.02))))
    else:
        wait_for_new_step(target, process, every=SETTINGS["eval_freq"] if moment == "evaluation" else 1)
        time.sleep(draw.uniform(0, 0.2))


def kill(moment: str, process: Running, draw: random.Random, processes: int) -> bool:
    """Whether there was anything left to kill."""
    ranks = workers(process) if processes > 1 and moment != "start-up" else []
    if process.poll() is not None or (moment == "one rank" and not ranks):
        return False
    if moment == "one rank":
        os.kill(draw.choice(ranks), signal.SIGKILL)
    else:  # the launcher's end must take the workers with it
        os.kill(process.pid, signal.SIGKILL)
        wait_until_gone(ranks)
    return True


def hunt(base: Path, processes: int, count: int, settings: dict[str, Any]) -> Hunt:
    """Train one experiment after the other until so many kills have met them, the last one to its end."""
    draw, done = random.Random(processes), Hunt()
    moments = itertools.cycle(TOGETHER if processes > 1 else ALONE)
    for number in itertools.count():
        results = base / str(number)
        target = config.experiment_folder(config.parse_args(flags(results, **settings)))
        target.mkdir(parents=True)  # to be watched before the first start
        while len(done.kills) < count:
            moment = next(moments)
            process = start(command(results, processes, **settings))
            await_moment(moment, target, process, draw, processes)
            killed = kill(moment, process, draw, processes)
            done.kills += [moment] if killed else []
            output = process.communicate()
            if process.returncode == 0:
                break
            if not killed or ": error: " in output[1]:
                done.refusals.append(f"after {done.kills}: {output[1][-500:]}")
        else:
            outcome = train(results, processes, **settings)
            if outcome.returncode:
                done.refusals.append(outcome.stderr[-500:])
        done.finished.append(results)
        if len(done.kills) >= count:
            return done
    raise AssertionError("not reached")


@pytest.fixture(scope="module", params=["one process", "two processes", "mixture", "packing"])
def trainings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Hunt]:
    """An undisturbed training, and those that were killed."""
    calm, settings = tmp_path_factory.mktemp("calm"), dict(SETTINGS)
    processes, kills = (2, scale(3, 35)) if request.param == "two processes" else (1, scale(6, 65))
    if request.param == "mixture":
        kills = scale(4, 30)
        data_dir = tmp_path_factory.mktemp("datasets")
        write_sources(data_dir, {"a": 9000, "b": 4000, "c": 3000})
        settings |= {**ON_A_MIXTURE, "data_dir": data_dir}
    if request.param == "packing":
        kills = scale(2, 20)
        data_dir = tmp_path_factory.mktemp("documents")
        write_documents(data_dir, {"texts": 300})
        settings |= {"dataset": "texts", "packing": "best_fit", "data_dir": data_dir}
    outcome = train(calm, processes, **settings)
    assert outcome.returncode == 0, outcome.stderr
    return calm, hunt(tmp_path_factory.mktemp("hunted"), processes, kills, settings)


def test_killed_trainings_end_with_the_same_bits(trainings: tuple[Path, Hunt]) -> None:
    calm, hunted = trainings
    assert {results: differing(final_state(calm), final_state(results)) for results in hunted.finished} == {
        results: [] for results in hunted.finished
    }


def test_killed_trainings_have_the_same_best_checkpoint(trainings: tuple[Path, Hunt]) -> None:
    calm, hunted = trainings
    if not (folder(calm) / "best.pt").exists():
        pytest.skip("nothing is tracked")
    differ = [
        results
        for results in hunted.finished
        if differing(final_state(calm, "best.pt"), final_state(results, "best.pt"))
    ]
    assert differ == []


def test_killed_trainings_tell_the_same_metrics(trainings: tuple[Path, Hunt]) -> None:
    calm, hunted = trainings
    assert all(metrics(results) == metrics(calm) for results in hunted.finished)


def test_no_kill_leaves_what_the_next_start_refuses(trainings: tuple[Path, Hunt]) -> None:
    assert trainings[1].refusals == []


def test_no_kill_leaves_files_behind_for_good(trainings: tuple[Path, Hunt]) -> None:
    """Those of the last minutes may be another start's; older ones go with the next start."""
    for results in trainings[1].finished:
        for leftover in folder(results).glob(".*.tmp"):
            os.utime(leftover, (0, 0))
        again = json.loads((folder(results) / "summary.json").read_text())["args"]
        changes = {name: again[name] for name in (*SETTINGS, *ON_A_MIXTURE, "packing", "data_dir")}
        assert train(results, **changes).returncode == 0
        assert list(folder(results).glob(".*.tmp")) == []
