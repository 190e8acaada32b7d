"""iridis/mini-repro: its sweeps, the evaluation of cells, and the whole of it at a tiny size, killed and
started again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from config.sweep import Sweep, read_sweep
from iridis import evaluate_cells
from iridis.evaluate_cells import STAMP, WORKS, prepare
from optim.names import FINAL, step_of
from report.forecast import hours_by_label
from report.rows import ROWS, Row, is_architecture_of
from tests.command_lines import code_of
from tests.job_calls import call, is_one_line, job
from tests.programs import ROOT

PACKAGE = ROOT / "iridis" / "mini-repro"
SIZES = ["cpu", "cpu-rates", "gpu", "paper", "tiny"]
SAVED = 10  # steps between checkpoints


def sweep(size: str) -> Sweep:
    return read_sweep(PACKAGE / f"{size}.json")


@pytest.mark.parametrize("size", SIZES)
def test_every_cell_of_a_size_can_be_trained_on_one_text(size: str) -> None:
    assert [line for cell in sweep(size).cells for line in cell.resolved().problems] == []
    assert evaluate_cells.dataset_of(sweep(size))


@pytest.mark.parametrize("size", ["cpu", "gpu", "paper"])
def test_a_size_has_three_seeds_or_more(size: str) -> None:
    assert len(sweep(size).seeds) >= 3


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}-{row.label}")
def test_the_paper_size_has_every_row_of_the_tables(row: Row) -> None:
    args = [cell.resolved().args for cell in sweep("paper").cells]
    assert any(
        each is not None and is_architecture_of(row, each) and each.iterations == row.steps for each in args
    )


def test_the_paper_size_has_the_paper_s_setting() -> None:
    """As iridis/train.sh gives it; each cell's batch is the paper's."""
    setting = {"n_embd": 768, "n_head": 12, "sequence_length": 256, "warmup_percent": 0.2, "dataset": "owt2"}
    for cell in sweep("paper").cells:
        args = vars(cell.resolved().args)
        assert args["batch_size"] * args["acc_steps"] == 128 and setting.items() <= args.items()


def test_the_gpu_size_is_forecast_to_take_less_than_an_hour() -> None:
    assert sum(hours_by_label(sweep("gpu")).values()) < 1


@pytest.mark.parametrize("size", ["cpu", "gpu", "paper"])
def test_models_of_one_optimiser_have_one_rate(size: str) -> None:
    rates: dict[tuple[str, str], set[tuple[float, ...]]] = {}
    for cell in sweep(size).cells:
        args = cell.resolved().args
        rates.setdefault((args.opt, args.block), set()).add((args.lr, args.embedding_lr, args.scalar_lr))
    assert {len(found) for found in rates.values()} == {1}


# results of cells


def test_results_of_another_checkpoint_are_removed(tmp_path: Path) -> None:
    results = [name for work in WORKS.values() for name in work.results]
    (tmp_path / FINAL).write_bytes(b"weights")
    prepare(tmp_path, 64)
    for name in results:
        (tmp_path / name).touch()
    prepare(tmp_path, 64)
    assert all((tmp_path / name).exists() for name in results)
    (tmp_path / FINAL).write_bytes(b"other weights")
    prepare(tmp_path, 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([FINAL, STAMP])


def test_a_sweep_over_budgets_without_times_is_not_done(tmp_path: Path) -> None:
    work = WORKS["budgets"]
    assert not work.is_done(tmp_path)
    (tmp_path / work.results[-1]).write_text('{"timing": null}')
    assert not work.is_done(tmp_path)
    (tmp_path / work.results[-1]).write_text('{"timing": "least"}')
    assert work.is_done(tmp_path)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere.json"], "nowhere.json"),
        ([str(PACKAGE / "tiny.json"), "--at_once", "0"], "--at_once must be at least 1"),
        ([str(PACKAGE / "tiny.json"), "--sample_tokens", "-3"], "--sample_tokens must be at least 1"),
        ([str(PACKAGE / "tiny.json"), "--dataset", "x"], "unexpected argument 'x'"),
    ],
)
def test_a_wrong_call_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(evaluate_cells.main, words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and line in said


# the job


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--size", "huge"], "--size huge: there are cpu, gpu and paper"),
        (["--size"], "--size needs a value"),
        (["--max-running", "x"], "--max-running needs a number of models"),
        (["--", "--lr", "1"], "what is trained is said in"),
        (["--chain", "3"], "mini-repro has no --chain"),
        (["cpu"], "unknown word cpu"),
        (["--after", "5"], "mini-repro has no --after"),
    ],
)
def test_a_wrong_call_of_the_job_is_one_line(
    clone: Path, no_slurm: None, words: list[str], line: str
) -> None:
    done = call("bash", job(clone, "mini-repro"), *words)
    assert is_one_line(done) and line in done.stderr, done.stderr
    assert list((clone / "iridis" / "mini-repro").glob("run_*")) == []


@pytest.fixture
def small(tmp_path: Path) -> dict[str, str]:
    """The environment of a job whose sweep has two small models and text of 20,000 bytes."""
    folder = tmp_path / "text"
    folder.mkdir()
    for split, count in (("train", 20_000), ("val", 2_000)):
        np.random.default_rng(count).integers(0, 256, count).astype("<u2").tofile(folder / f"{split}.bin")
    (folder / "meta.json").write_text('{"tokenizer": "bytes"}')
    flags = {"dataset": str(folder), "vocab_size": 256, "n_embd": 8, "n_head": 1, "sequence_length": 16}
    flags |= {"batch_size": 2, "acc_steps": 1, "iterations": 600, "save_checkpoint_freq": SAVED}
    flags |= {"eval_freq": 300, "eval_batches": 1, "log_freq": 1, "device": "cpu", "n_layer": 1}
    entries = [
        {"label": "Standard 1", "model": "base"},
        {"label": "CoTFormer 1x2", "model": "cot", "n_repeat": 2},
    ]
    (tmp_path / "small.json").write_text(json.dumps({"flags": flags, "list": entries}))
    return {"SWEEP": str(tmp_path / "small.json"), "SCRATCH_DIR": str(tmp_path), "MAX_RUNNING": "2"}


def kill_after_a_save(clone: Path, small: dict[str, str]) -> dict[Path, int]:
    """Start the job, and kill all of it once both models have a checkpoint. Returns the newest of each."""
    environment = {**os.environ, "USE_CONDA": "no", **small}
    exps = Path(small["SCRATCH_DIR"]) / "exps"
    with subprocess.Popen(
        ["bash", str(job(clone, "mini-repro")), "--local"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as running:
        end = time.monotonic() + 90
        while len({path.parent for path in exps.glob("*/*/*/ckpt_*.pt")}) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGKILL)
    newest: dict[Path, int] = {}
    for path in exps.glob("*/*/*/ckpt_*.pt"):
        newest[path.parent] = max(newest.get(path.parent, 0), step_of(path) or 0)
    return newest


@pytest.mark.slow
def test_a_killed_job_loses_no_more_than_since_the_last_checkpoint(
    clone: Path, no_slurm: None, small: dict[str, str]
) -> None:
    newest = kill_after_a_save(clone, small)
    assert len(newest) == 2 and all(0 < step < 600 for step in newest.values())
    done = call("bash", job(clone, "mini-repro"), "--local", **small)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    for folder, saved in newest.items():
        segments = [json.loads(line) for line in (folder / "segments.jsonl").read_text().splitlines()]
        assert segments[-1]["start_step"] >= saved
        lost = segments[0].get("reached", saved) - segments[-1]["start_step"]
        assert lost <= SAVED
    run = max((clone / "iridis" / "mini-repro").glob("run_*"), key=lambda path: path.stat().st_mtime)
    assert {"claims.md", "claims.html", "text.json", "machine.txt"} <= {path.name for path in run.iterdir()}
