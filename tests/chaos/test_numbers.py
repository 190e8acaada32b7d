"""Numbers that run away: the run stops within the step, or skips it, and no checkpoint ever holds what is
not finite.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from config import parse_args
from data import SampleOrder, open_splits
from distributed.world import World
from errors import UserError
from optim.checkpoint import load_checkpoint, save_checkpoint
from optim.experiment import Experiment
from optim.selftest import differing
from optim.step import OVERFLOWS_IN_A_ROW
from optim.stopping import Stopper
from tests.programs import (
    TINY,
    command,
    final_state,
    flags,
    folder,
    metrics,
    start,
    status,
    train,
    trained,
    trainer_of,
    wait_for_step,
)

pytestmark = pytest.mark.slow

# the first step throws the weights so far away that the second has no loss
RUNAWAY = {
    "opt": "sgd",
    "lr": 1e30,
    "warmup_percent": 0,
    "save_checkpoint_freq": 1,
    "eval_freq": 0,
    "log_freq": 0,
}
CALM = {"iterations": 30, "log_freq": 1, "eval_freq": 0}


@pytest.fixture(scope="module")
def runaway(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    results = tmp_path_factory.mktemp("runaway")
    return results, train(results, **RUNAWAY)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("calm"), **CALM)


@pytest.fixture(scope="module")
def skipping(calm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training, in which the largest norms count as explosions."""
    return trained(
        tmp_path_factory.mktemp("skipping"), **CALM, grad_norm_limit=limit_of(calm), on_bad_step="skip"
    )


def limit_of(calm: Path) -> float:
    """Below the largest norm of the undisturbed training, and above most."""
    return 0.95 * max(row["grad_norm"] for row in metrics(calm) if row["kind"] == "train")


def one_error(outcome: subprocess.CompletedProcess[str]) -> str:
    """The only error line of a run that was refused or stopped."""
    assert outcome.returncode == 2 and "Traceback" not in outcome.stderr, outcome.stderr
    lines = [line for line in outcome.stderr.splitlines() if ": error: " in line]
    assert len(lines) == 1, outcome.stderr
    return lines[0]


def test_loss_that_is_not_finite_stops_the_run_within_its_step(
    runaway: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    assert "step 2: the loss of micro-batch 0 is nan" in one_error(runaway[1])
    assert (status(runaway[0])["state"], status(runaway[0])["itr"]) == ("failed", 1)


def test_sequences_of_the_bad_micro_batch_are_named(
    runaway: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    splits = open_splits(TINY["dataset"], str(TINY["data_dir"]), TINY["sequence_length"], TINY["vocab_size"])
    first = TINY["batch_size"] * TINY["acc_steps"]
    windows = SampleOrder(splits.train.n_windows, data_seed=2).windows(first, TINY["batch_size"])
    assert (
        f"samples {first} to {first + 3} of the order, sequences {', '.join(map(str, windows))} of"
        in one_error(runaway[1])
    )


def test_last_good_checkpoint_is_named_and_loads(
    runaway: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    assert "the last good checkpoint is of step 1" in one_error(runaway[1])
    state = torch.load(folder(runaway[0]) / "ckpt_1.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["model"].values())


def test_bad_step_stops_two_processes_alike(tmp_path: Path) -> None:
    outcome = train(tmp_path, processes=2, **RUNAWAY)
    assert outcome.stderr.count("step 2: the loss of micro-batch 0 is nan") == 1
    codes = re.findall(r"exitcode  : (-?\d+)", outcome.stderr)
    assert "2" in codes and set(codes) <= {"2", "-15"}  # whom torchrun ends is as good as ended


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """A moment that is not finite ruins the weights with a loss and a gradient that are."""
    assert train(tmp_path, iterations=10, save_checkpoint_freq=5).returncode == 0
    for name in ("ckpt.pt", "summary.json"):
        (folder(tmp_path) / name).unlink()
    state = load_checkpoint(folder(tmp_path) / "ckpt_5.pt")
    next(iter(state["optimizer"]["state"].values()))["exp_avg"].fill_(torch.inf)
    save_checkpoint(folder(tmp_path) / "ckpt_5.pt", state)
    outcome = train(tmp_path, iterations=10, save_checkpoint_freq=1)
    assert "the weights of step 6 are not finite; the last good checkpoint is of step 5" in one_error(outcome)
    assert not (folder(tmp_path) / "ckpt_6.pt").exists()


def test_explosion_stops_the_run_at_the_limit(calm: Path, tmp_path: Path) -> None:
    limit = limit_of(calm)
    first = next(row["step"] for row in metrics(calm) if row["kind"] == "train" and row["grad_norm"] > limit)
    assert f"error: step {first}: the loss is " in one_error(train(tmp_path, **CALM, grad_norm_limit=limit))


def test_stop_at_a_bad_step_costs_no_good_one(calm: Path, skipping: Path, tmp_path: Path) -> None:
    limit = limit_of(calm)
    assert train(tmp_path, **CALM, grad_norm_limit=limit, save_checkpoint_freq=30).returncode == 2
    bad = next(row["step"] for row in metrics(calm) if row["kind"] == "train" and row["grad_norm"] > limit)
    assert [path.name for path in folder(tmp_path).glob("*.pt")] == [f"ckpt_{bad - 1}.pt"]
    trained(tmp_path, **CALM, grad_norm_limit=limit, on_bad_step="skip")
    assert differing(final_state(skipping), final_state(tmp_path)) == []


def test_two_processes_skip_the_same_steps(calm: Path, skipping: Path, tmp_path: Path) -> None:
    trained(tmp_path, processes=2, **CALM, grad_norm_limit=limit_of(calm), on_bad_step="skip")
    assert [(row["kind"], row["step"]) for row in metrics(tmp_path)] == [
        (row["kind"], row["step"]) for row in metrics(skipping)
    ]


def train_with_overflows(results: Path, **changes: str) -> tuple[str, list[str]]:
    """Each step has a finite loss, and a gradient that is not: what the run ends with, and the weights
    that it has changed.
    """
    args = parse_args(flags(results, **CALM, **changes))
    world, splits = (
        World(torch.device("cpu")),
        open_splits(args.dataset, args.data_dir, args.sequence_length, args.vocab_size),
    )
    trainer, experiment = (
        trainer_of(args, world, splits, results),
        Experiment(results, args.iterations),
    )
    before = copy.deepcopy(trainer.progress.network.state_dict())
    next(trainer.progress.network.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with Stopper(world, [], None, time.time()) as stopper, pytest.raises(UserError) as error:
        trainer.run(experiment, stopper)
    experiment.close()
    return str(error.value), differing(before, trainer.progress.network.state_dict())


def test_gradient_that_is_not_finite_stops_the_run_where_the_loss_is(tmp_path: Path) -> None:
    said, changed = train_with_overflows(tmp_path)
    assert re.match(r"step 1: the loss is \d+\.\d+, the gradient norm (inf|nan);", said) and changed == []


def test_overflows_of_float16_are_the_scalers_to_skip_until_they_do_not_end(tmp_path: Path) -> None:
    said, changed = train_with_overflows(tmp_path, dtype="float16")
    assert said.startswith(f"step {OVERFLOWS_IN_A_ROW}: the loss is ") and changed == []


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training in float16 whose steps 3 and 4 of 8 overflow."""
    results = tmp_path_factory.mktemp("overflowing")
    args = parse_args(flags(results, dtype="float16", iterations=8, log_freq=1, eval_freq=8))
    world, splits = (
        World(torch.device("cpu")),
        open_splits(args.dataset, args.data_dir, args.sequence_length, args.vocab_size),
    )
    trainer, experiment = (
        trainer_of(args, world, splits, results),
        Experiment(results, args.iterations),
    )
    next(trainer.progress.network.parameters()).register_hook(
        lambda gradient: gradient * (torch.inf if trainer.progress.step in (2, 3) else 1)
    )
    with Stopper(world, [], None, time.time()) as stopper:
        trainer.run(experiment, stopper)
    experiment.close()
    return results


def test_a_meter_that_earlier_code_let_overflow_begins_anew(overflowing: Path, tmp_path: Path) -> None:
    args = parse_args(flags(overflowing, dtype="float16", iterations=8, log_freq=1, eval_freq=8))
    state = load_checkpoint(overflowing / "ckpt.pt")
    state["gradient_meter"] |= {
        "largest": torch.tensor(torch.inf),
        "total": torch.tensor(torch.inf),
        "count": 5,
    }
    save_checkpoint(tmp_path / "ckpt.pt", state)
    splits = open_splits(args.dataset, args.data_dir, args.sequence_length, args.vocab_size)
    trainer = trainer_of(args, World(torch.device("cpu")), splits, tmp_path)
    trainer.progress.load(tmp_path / "ckpt.pt")
    assert trainer.progress.steps.meter.values() == {
        "grad_norm": 0.0,
        "max_grad_norm": 0.0,
        "mean_grad_norm": 0.0,
    }


def rows_of(results: Path, kind: str) -> list[dict[str, Any]]:
    lines = (results / "metrics.jsonl").read_text().splitlines()
    return [
        row for row in (json.loads(line, parse_constant=pytest.fail) for line in lines) if row["kind"] == kind
    ]


def test_a_step_that_overflowed_has_a_loss_and_no_norm(overflowing: Path) -> None:
    norms = {row["step"]: row["grad_norm"] for row in rows_of(overflowing, "train")}
    assert [step for step, norm in norms.items() if norm is None] == [3, 4]


def test_overflows_are_counted_and_leave_the_meters_alone(overflowing: Path) -> None:
    norms = [row["grad_norm"] for row in rows_of(overflowing, "train") if row["grad_norm"] is not None]
    (row,) = rows_of(overflowing, "eval")
    assert row["overflows"] == 2
    assert (row["grad_norm"], row["max_grad_norm"]) == (norms[-1], max(norms))
    assert row["mean_grad_norm"] == pytest.approx(sum(norms) / len(norms))


def test_skipped_steps_are_told_and_the_run_goes_on(skipping: Path) -> None:
    rows = metrics(skipping)
    skipped = [row["step"] for row in rows if row["kind"] == "skipped"]
    assert skipped
    assert [row["step"] for row in rows if row["kind"] == "train"] == [
        step for step in range(1, 31) if step not in skipped
    ]


def test_skipped_steps_change_no_weight(calm: Path, tmp_path: Path) -> None:
    assert (
        train(
            tmp_path,
            **CALM | {"iterations": 5, "save_checkpoint_freq": 1, "keep_checkpoints": 0},
            grad_norm_limit=1e-9,
            on_bad_step="skip",
        ).returncode
        == 0
    )
    weights = [
        torch.load(folder(tmp_path) / name, weights_only=True)["model"] for name in ("ckpt_1.pt", "ckpt.pt")
    ]
    assert differing(*weights) == []


def test_killed_run_that_skips_steps_ends_with_the_same_bits(
    calm: Path, skipping: Path, tmp_path: Path
) -> None:
    changes = {**CALM, "grad_norm_limit": limit_of(calm), "on_bad_step": "skip"}
    process = start(command(tmp_path, **changes))
    wait_for_step(tmp_path, 12, process)
    process.kill()
    process.communicate()
    assert train(tmp_path, **changes).returncode == 0
    assert differing(final_state(skipping), final_state(tmp_path)) == []
    assert metrics(tmp_path) == metrics(skipping)


def test_ten_bad_steps_in_a_row_stop_a_run_that_skips(tmp_path: Path) -> None:
    assert "step 11: " in one_error(train(tmp_path, **RUNAWAY, on_bad_step="skip"))
    assert (
        "9 steps before it were skipped"
        in json.loads((folder(tmp_path) / "status.json").read_text())["reason"]
    )


def test_settings_of_bad_steps_may_change_from_job_to_job(tmp_path: Path) -> None:
    """Who finds a run stopped by a bad step starts it again with another setting."""
    outcome = train(tmp_path, iterations=10, grad_norm_limit=1e-9)
    assert outcome.returncode == 2
    assert train(tmp_path, iterations=10).returncode == 0
