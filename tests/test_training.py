"""What main.py promises over a whole run, shown on real runs: exact resume, clean stops, files, refusals."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from optim.selftest import differing
from tests.programs import (
    STOPPED,
    command,
    final_state,
    folder,
    metrics,
    needs_compiler,
    run,
    start,
    status,
    train,
    trained,
    wait_for_step,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Trainings that nobody disturbed, by number of processes."""
    results = {processes: tmp_path_factory.mktemp(f"unbroken{processes}") for processes in (1, 2)}
    for processes, path in results.items():
        outcome = train(path, processes)
        assert outcome.returncode == 0, outcome.stderr
    return results


@pytest.mark.parametrize("model", ["adm", "lncot"])
def test_several_processes_train_without_a_warning_of_torch(tmp_path: Path, model: str) -> None:
    """With unused parameters and without; started anew, as torch reads at its start what to tell."""
    process = start(command(tmp_path, 2, model=model, iterations=2, eval_freq=0))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "Warning" not in errors, errors


def test_changing_the_number_of_processes_keeps_samples_and_batch(
    unbroken: dict[int, Path], tmp_path: Path
) -> None:
    for processes, stop_at in ((2, 18), (1, 39)):
        process = start(command(tmp_path, processes))
        wait_for_step(tmp_path, stop_at, process)
        (folder(tmp_path) / "stop").touch()
        process.communicate(timeout=120)
        (folder(tmp_path) / "stop").unlink()
    train(tmp_path, 2)
    assert status(tmp_path)["state"] == "finished"
    losses, reference = (
        [row.get("loss", row.get("val_loss")) for row in metrics(path)] for path in (tmp_path, unbroken[1])
    )
    assert losses == pytest.approx(reference, abs=1e-4)


def test_one_and_two_processes_train_alike(unbroken: dict[int, Path]) -> None:
    one, two = ([row.get("loss", row.get("val_loss")) for row in metrics(unbroken[n])] for n in (1, 2))
    assert one == pytest.approx(two, abs=1e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_stops_cleanly_and_the_run_goes_on_exactly(
    unbroken: dict[int, Path], tmp_path: Path, number: signal.Signals
) -> None:
    process = start(command(tmp_path))
    wait_for_step(tmp_path, 21, process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == STOPPED
    stopped = status(tmp_path)
    assert (stopped["state"], stopped["reason"]) == ("stopped", number.name)
    assert (folder(tmp_path) / f"ckpt_{stopped['itr']}.pt").is_file()
    assert train(tmp_path).returncode == 0
    assert differing(final_state(unbroken[1]), final_state(tmp_path)) == []
    assert metrics(unbroken[1]) == metrics(tmp_path)


def test_stop_under_torchrun_exits_0_and_says_stopped(tmp_path: Path) -> None:
    process = start(command(tmp_path, 2))
    wait_for_step(tmp_path, 12, process)
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(pid), signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert status(tmp_path)["state"] == "stopped"


def test_stop_file_stops_the_run_and_keeps_it_stopped(tmp_path: Path) -> None:
    stop_file = tmp_path / "halt"
    process = start(command(tmp_path, stop_file=stop_file))
    wait_for_step(tmp_path, 9, process)
    stop_file.touch()
    process.communicate(timeout=60)
    step = status(tmp_path)["itr"]
    assert (process.returncode, status(tmp_path)["reason"]) == (STOPPED, "stop file")
    assert train(tmp_path, stop_file=stop_file).returncode == STOPPED
    assert status(tmp_path)["itr"] == step


def test_run_time_stops_the_run(tmp_path: Path) -> None:
    outcome = train(tmp_path, iterations=100000, max_runtime_minutes=0.05)
    assert outcome.returncode == STOPPED
    assert status(tmp_path)["reason"] == "max_runtime_minutes"


def test_finished_experiment_is_skipped_with_code_0(unbroken: dict[int, Path]) -> None:
    before = (folder(unbroken[1]) / "ckpt.pt").stat().st_mtime_ns
    outcome = train(unbroken[1])
    assert outcome.returncode == 0
    assert "finished already" in outcome.stdout
    assert (folder(unbroken[1]) / "ckpt.pt").stat().st_mtime_ns == before


def test_summary_holds_the_curves(unbroken: dict[int, Path]) -> None:
    summary = json.loads((folder(unbroken[1]) / "summary.json").read_text())
    assert [len(summary[name]) for name in ("train_loss", "val_loss", "val_pp", "val_acc")] == [20, 6, 6, 6]
    assert summary["val_loss"][-1] < summary["val_loss"][0]
    assert summary["args"]["iterations"] == 60


def test_final_evaluation_is_over_the_whole_split(unbroken: dict[int, Path]) -> None:
    final = metrics(unbroken[1])[-1]
    assert (final["kind"], final["n_tokens"]) == ("final", 41 * 48)
    assert final["val_pp"] == pytest.approx(math.exp(final["val_loss"]))


def test_segments_record_each_job(unbroken: dict[int, Path]) -> None:
    rows = [json.loads(line) for line in (folder(unbroken[1]) / "segments.jsonl").read_text().splitlines()]
    assert [(row["start_step"], row["end_step"], row["reason"]) for row in rows] == [
        (0, 60, "all iterations done")
    ]


def test_old_checkpoints_are_pruned_to_the_number_asked_for(unbroken: dict[int, Path]) -> None:
    assert sorted(path.name for path in folder(unbroken[1]).glob("*.pt")) == [
        "ckpt.pt",
        "ckpt_49.pt",
        "ckpt_56.pt",
    ]


@pytest.fixture(scope="module")
def short_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("short"), iterations=20, eval_freq=0)


@pytest.fixture
def short(short_once: Path, tmp_path: Path) -> Path:
    """A finished run of 20 steps."""
    return shutil.copytree(short_once, tmp_path / "short")


def test_more_iterations_on_a_finished_run_are_refused(short: Path) -> None:
    outcome = train(short, iterations=30, eval_freq=0)
    assert outcome.returncode == 2
    assert "--extend continue" in outcome.stderr
    assert (folder(short) / "summary.json").is_file()


@pytest.mark.parametrize("how", ["continue", "restart"])
def test_extension_trains_on_and_prints_the_rates(short: Path, how: str) -> None:
    outcome = train(short, iterations=30, eval_freq=0, extend=how)
    assert outcome.returncode == 0, outcome.stderr
    assert "extended from 20 to 30 steps" in outcome.stdout
    assert status(short)["state"] == "finished"
    rates = [row["lr"] for row in metrics(short) if row["kind"] == "train" and row["step"] > 20]
    assert rates == sorted(rates, reverse=True) if how == "continue" else max(rates) > 1e-3


def test_a_training_that_goes_on_under_another_torch_says_so(short: Path) -> None:
    ledger = folder(short) / "segments.jsonl"
    rows = ledger.read_text()
    ledger.write_text(rows.replace(f'"torch": "{torch.__version__}"', '"torch": "2.0.0"'))
    assert ledger.read_text() != rows
    told = train(short, iterations=24, eval_freq=0, extend="continue").stdout
    assert "warning: torch has changed since the last job: 2.0.0 then," in told


def test_extended_run_goes_on_from_its_own_checkpoints(short: Path) -> None:
    (folder(short) / "summary.json").unlink()
    changes = {"iterations": 100000, "eval_freq": 0, "extend": "continue"}
    steps = []
    for step in (27, 42):
        process = start(command(short, **changes))
        wait_for_step(short, step, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        steps.append(status(short)["itr"])
    segments = [json.loads(line) for line in (folder(short) / "segments.jsonl").read_text().splitlines()]
    assert [segments[1]["start_step"], segments[2]["start_step"]] == [20, steps[0]]


def test_finished_run_with_other_settings_is_refused(short: Path) -> None:
    outcome = train(short, iterations=20, eval_freq=0, n_embd=64)
    assert outcome.returncode == 2
    assert "--n_embd: the checkpoint has 32, this run 64" in outcome.stderr


def test_refused_extension_leaves_the_experiment_finished(short: Path) -> None:
    assert train(short, iterations=40, eval_freq=0, extend="continue", lr=0.5).returncode == 2
    assert (folder(short) / "summary.json").is_file() and (folder(short) / "ckpt.pt").is_file()


def test_final_checkpoint_of_before_an_extension_is_never_pruned(short: Path) -> None:
    assert train(short, iterations=40, eval_freq=0, extend="continue", keep_checkpoints=1).returncode == 0
    assert sorted(path.name for path in folder(short).glob("*.pt")) == ["ckpt.pt", "ckpt_20.pt", "ckpt_35.pt"]


def test_wandb_segments_are_one_offline_run(tmp_path: Path) -> None:
    offline = tmp_path / "wandb"
    offline.mkdir()
    process = start([*command(tmp_path, iterations=20), "--wandb"], WANDB_DIR=str(offline))
    wait_for_step(tmp_path, 9, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    assert process.returncode == STOPPED
    outcome = run([*command(tmp_path, iterations=20), "--wandb"], WANDB_DIR=str(offline))
    assert outcome.returncode == 0, outcome.stderr
    outcome = run([*command(tmp_path, iterations=24, extend="continue"), "--wandb"], WANDB_DIR="")
    assert outcome.returncode == 0, outcome.stderr
    assert len(list(folder(tmp_path).glob("wandb/offline-run-*"))) == 1
    names = [path.name for path in offline.glob("wandb/offline-run-*")]
    assert len(names) == 2
    assert len({name.rsplit("-", 1)[1] for name in names}) == 1


def test_wandb_needs_no_home(tmp_path: Path) -> None:
    """As in a container: no HOME, and a user that the system does not know."""
    nobody = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*nobody, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no user namespaces here")
    outcome = run([*nobody, "env", "-u", "HOME", *command(tmp_path, iterations=2, eval_freq=0), "--wandb"])
    assert outcome.returncode == 0, outcome.stderr
    assert len(list(folder(tmp_path).glob("wandb/offline-run-*"))) == 1


def test_half_the_batch_and_twice_the_steps_goes_on_where_it_stopped_and_says_so(tmp_path: Path) -> None:
    first = {
        "exp_name": None,
        "iterations": 4,
        "model": "cot",
        "depth_embedding": None,
        "dropout": 0.0,
        "n_repeat": 2,
    }
    assert train(tmp_path, batch_size=8, acc_steps=2, max_runtime_minutes=0, **first).returncode == STOPPED
    outcome = train(tmp_path, batch_size=4, acc_steps=4, **first)
    assert outcome.returncode == 0 and "note: going on with lr0.002_bs8x2_" in outcome.stdout
    assert len(list(tmp_path.glob("*/*/*"))) == 1


def test_sample_order_does_not_depend_on_how_the_batch_is_cut(tmp_path: Path) -> None:
    losses = []
    for name, batch, acc in (("a", 4, 2), ("b", 8, 1)):
        assert (
            train(
                tmp_path / name, batch_size=batch, acc_steps=acc, iterations=6, model="lncot", dropout=0.0
            ).returncode
            == 0
        )
        losses.append([row["loss"] for row in metrics(tmp_path / name) if row["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"opt": "sgd", "lr": 0.1},
        {"opt": "adafactor"},
        {"scheduler": "wsd"},
        {"scheduler": "none"},
        {"dtype": "bfloat16"},
        {"grad_clip": 0.5},
        {"model": "pondernet"},
        {"model": "but_halting"},
    ],
    ids=str,
)
def test_setting_trains_and_the_loss_falls(tmp_path: Path, changes: dict[str, object]) -> None:
    outcome = train(tmp_path, iterations=30, **changes)
    assert outcome.returncode == 0, outcome.stderr
    losses = [row["val_loss"] for row in metrics(tmp_path) if row["kind"] == "eval"]
    assert losses[-1] < losses[0]


@needs_compiler
def test_a_compiled_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path) -> None:
    changes = {"model": "lncot", "dropout": 0.0, "compile": True, "iterations": 24}
    assert train(tmp_path / "unbroken", **changes).returncode == 0
    process = start(command(tmp_path / "stopped", **changes))
    wait_for_step(tmp_path / "stopped", 9, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == STOPPED
    assert train(tmp_path / "stopped", **changes).returncode == 0
    assert differing(final_state(tmp_path / "unbroken"), final_state(tmp_path / "stopped")) == []


def test_compile_without_a_compiler_is_told_in_one_line(tmp_path: Path) -> None:
    outcome = run(command(tmp_path, compile=True), PATH=str(tmp_path), CXX="")
    assert (
        outcome.returncode == 2
        and "--compile needs a compiler" in outcome.stderr
        and "Traceback" not in outcome.stderr
    )
