"""Memory by formula is what is measured, and the program that tells it takes bad input in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.common import flags
from bench.scale import GRID, row
from distributed.world import World
from models import make_model_from_args
from models.footprint import Training, checkpoint_bytes, footprint, largest_micro_batch
from models.settings import ModelSettings
from optim import fits
from optim.optimizers import make_optimizer
from tests.helpers import TINY as WORDS
from tests.programs import ROOT, python, run

TINY = {"n_embd": 64, "n_head": 2, "batch_size": 2, "sequence_length": 64, "vocab_size": 512}
LNCOT = ["--model", "lncot", *WORDS]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name",
    ["base", "but", "lncot", "lncot, checkpointing by pass", "adm, a half and a quarter go on", "gpt"],
)
def test_formula_agrees_with_measured_bytes(name: str, dtype: str) -> None:
    ratio = row(flags(**{**TINY, **GRID[name]}), World(torch.device("cpu")), dtype)["formula_over_measured"]
    exact = {ratio[what] for what in ("weights", "gradients", "states")}
    assert exact == {1.0}
    assert ratio["kept"] == pytest.approx(1, abs=0.1)
    assert ratio["peak"] == pytest.approx(1, abs=0.15)


def test_checkpoint_is_as_large_as_the_formula_says(tmp_path: Path) -> None:
    args = flags(n_embd=128, n_head=4, n_layer=4, sequence_length=32, vocab_size=512)
    model = make_model_from_args(args)
    optimizer = make_optimizer(model, args)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "file")
    size = checkpoint_bytes(ModelSettings.from_args(args), "adamw")
    tied = 4 * model.embedding.weight.numel()
    assert (tmp_path / "file").stat().st_size == pytest.approx(size, rel=0.03, abs=tied)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["optimizer", "full"])
def test_formula_agrees_with_measured_bytes_of_shards(shard: str) -> None:
    small = ["--n_embd", "64", "--n_head", "2", "--batch_size", "2", "--sequence_length", "64"]
    outcome = run([*python(2), "bench/scale.py", "--device", "cpu", "--shard", shard, *small])
    assert outcome.returncode == 0, outcome.stderr
    worst = json.loads(outcome.stdout.splitlines()[-1])["largest_error"]
    assert (worst["weights"], worst["states"], worst["peak"]) == (
        pytest.approx(0, abs=0.01),
        pytest.approx(0, abs=0.01),
        pytest.approx(0, abs=0.15),
    )


def test_largest_micro_batch_is_the_last_that_fits() -> None:
    settings, training = ModelSettings.from_args(flags(**TINY)), Training(1)
    size = largest_micro_batch(settings, training, 10**9)
    peaks = [footprint(settings, Training(count)).peak for count in (size, size + 1)]
    assert peaks[0] <= 10**9 < peaks[1]


def test_shards_hold_their_share() -> None:
    settings = ModelSettings.from_args(flags(**TINY))
    whole, part, least = (
        footprint(settings, Training(1, processes=4, shard=shard)) for shard in ("none", "optimizer", "full")
    )
    assert part.weights == whole.weights
    assert whole.states // 4 <= part.states < whole.states // 3  # of whole tensors
    assert (least.states, least.weights) == (whole.states // 4, whole.weights // 4)


@pytest.mark.parametrize(("processes", "most"), [(2, 9_838_592), (4, 7_479_296)])
def test_the_largest_part_of_a_sharded_optimiser_is_what_was_measured(processes: int, most: int) -> None:
    shape = {"n_embd": 128, "n_head": 4, "vocab_size": 5000, "n_layer": 6, "n_repeat": 3}
    settings = ModelSettings.from_args(flags(**shape, n_layer_begin=1, n_layer_end=1))
    assert footprint(settings, Training(1, processes=processes, shard="optimizer")).states == most


@pytest.mark.parametrize("shard", ["optimizer", "full"])
def test_one_process_has_no_shards(shard: str) -> None:
    settings = ModelSettings.from_args(flags(**TINY))
    assert footprint(settings, Training(1, shard=shard)) == footprint(settings, Training(1))


def test_program_tells_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert fits.main(["--cards", "24", "--processes", "2", "--", *LNCOT]) == 0
    text = capsys.readouterr().out
    assert "24 GB: fits" in text
    assert "--activation_checkpointing block --shard full" in text


@pytest.mark.parametrize(
    "words",
    [
        ["--", "--model", "pondernet"],
        ["--cards", "0", "--", *LNCOT],
        ["--processes", "3", "--", *LNCOT],
        ["--cards", "inf", "--", *LNCOT],
        ["--", "coalescence"],
        ["--", "--modl", "lncot"],
        [*LNCOT],
    ],
)
def test_bad_input_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        fits.main(words)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def plan(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "bench/plan.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_tables_of_the_docs_are_those_of_the_plan() -> None:
    rows = [line for line in plan().stdout.splitlines() if line.startswith("|")]
    told = (ROOT / "docs/scale.md").read_text().splitlines()
    assert len(rows) > 100
    assert not [row for row in rows if row not in told]


@pytest.mark.parametrize("words", [["--disk_gbs", "0"], ["--alone", "2"], ["--nvlink_gbs", "nan"]])
def test_rates_that_cannot_be_are_refused(words: list[str]) -> None:
    done = plan(*words)
    assert done.returncode == 2
    assert f"error: {words[0]}" in done.stderr
