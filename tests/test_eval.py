"""eval.py on the authors' checkpoints and on our own."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optim.window_losses import read_windows
from tests.programs import PEER, SMALL_DATA, folder, in_read_only, metrics, python, run, trained

pytestmark = pytest.mark.slow

# checkpoint, flags, loss, accuracy, depth: tests/data/peer was evaluated by the authors' program
PUBLISHED = [
    ("official_cot_res/ckpt.pt", [], 2.8797529, 0.3322316, 8.0),
    ("official_cot_res/ckpt.pt", ["--eval_seq_length", "24"], 2.8823464, 0.3308532, 8.0),
    ("official_cot_res/ckpt_75.pt", [], 3.1359391, 0.3054888, 8.0),
    ("official_adm/ckpt.pt", [], 2.7259412, 0.3726963, 8.0),
    pytest.param(
        "official_adm/ckpt.pt",
        ["--eval_length_factor", "0.6", "0.3"],
        2.7264333,
        0.3725963,
        5.75,
        marks=pytest.mark.essential,
    ),
    ("official_adm/ckpt.pt", ["--eval_seq_length", "24"], 2.7284825, 0.3713790, 8.0),
    ("official_adm/ckpt_75.pt", [], 3.0803759, 0.3102464, 8.0),
]

ADM = next(PEER.glob("exps/*/*/official_adm/ckpt.pt"))
SAMPLE = ("--eval_sample_size", "1000")


def evaluate(checkpoint: Path, output: Path, *words: str, processes: int = 1) -> dict[str, Any]:
    outcome = run(
        [
            *python(processes),
            "eval.py",
            "--checkpoint",
            str(checkpoint),
            "--data_dir",
            str(PEER / "datasets"),
            "--device",
            "cpu",
            "--output_dir",
            str(output),
            *words,
        ]
    )
    assert outcome.returncode == 0, outcome.stderr
    return json.loads(next(output.glob("eval_summary_*.json")).read_text())


Evaluated = Callable[..., tuple[dict[str, Any], Path]]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """Evaluates a checkpoint of the authors, once for each choice of flags: the summary and its folder."""
    made: dict[tuple[Path, ...], tuple[dict[str, Any], Path]] = {}

    def give(checkpoint: Path, *words: str) -> tuple[dict[str, Any], Path]:
        if (checkpoint, *words) not in made:
            place = tmp_path_factory.mktemp("evaluated")
            made[checkpoint, *words] = evaluate(checkpoint, place, *words), place
        return made[checkpoint, *words]

    return give


@pytest.mark.parametrize(("name", "words", "loss", "accuracy", "depth"), PUBLISHED)
def test_authors_checkpoint_gives_the_authors_numbers(
    evaluated: Evaluated, name: str, words: list[str], loss: float, accuracy: float, depth: float
) -> None:
    summary, _ = evaluated(next(PEER.glob(f"exps/*/*/{name}")), *words)
    # theirs are means over batches; ours, token-weighted, is the same where no batch is partial
    assert summary["val_loss_batch_mean"] == pytest.approx(loss, abs=1e-5)
    assert summary["val_acc_batch_mean"] == pytest.approx(accuracy, abs=1e-6)
    assert summary["average_depth"] == pytest.approx(depth)
    if "--eval_seq_length" not in words:
        assert summary["val_loss"] == pytest.approx(loss, abs=1e-5)


def test_perplexity_is_the_exponential_of_the_token_weighted_mean(evaluated: Evaluated) -> None:
    summary, _ = evaluated(ADM, "--eval_seq_length", "24")
    assert summary["val_perplexity"] == math.exp(summary["val_loss"])
    low, high = summary["val_loss_ci95"]
    assert summary["val_perplexity_ci95"] == [math.exp(low), math.exp(high)]


def test_two_processes_give_the_very_same_numbers(evaluated: Evaluated, tmp_path: Path) -> None:
    one, two = evaluated(ADM)[0], evaluate(ADM, tmp_path, processes=2)
    assert [one[key] for key in ("val_loss", "val_acc", "val_loss_std")] == [
        two[key] for key in ("val_loss", "val_acc", "val_loss_std")
    ]


def test_our_checkpoint_gives_the_loss_that_the_training_reported(tmp_path: Path) -> None:
    trained(tmp_path, iterations=4, eval_freq=0)
    summary = evaluate(folder(tmp_path), tmp_path / "out", "--data_dir", str(SMALL_DATA))
    assert summary["val_loss"] == pytest.approx(metrics(tmp_path)[-1]["val_loss"], abs=1e-6)
    assert summary["checkpoint"].endswith("ckpt.pt")


def test_sample_size_limits_the_tokens(evaluated: Evaluated) -> None:
    assert evaluated(ADM, *SAMPLE)[0]["n_tokens"] == 3 * 8 * 48


def test_a_sample_is_spread_over_the_split_and_its_losses_are_kept_by_window(evaluated: Evaluated) -> None:
    (whole, every_in), (part, some_in) = evaluated(ADM), evaluated(ADM, *SAMPLE)
    every, some = (read_windows(place / "eval_summary_ckpt.npz") for place in (every_in, some_in))
    assert (some.windows[0], some.windows[-1]) == (0, every.windows[-1])
    assert np.allclose(some.losses, every.losses[some.windows], atol=1e-6)
    assert every.losses.mean() == pytest.approx(whole["val_loss"], abs=1e-9)
    assert every.accuracies.mean() == pytest.approx(whole["val_acc"], abs=1e-9)
    assert {name: part["interval"][name] for name in ("clusters", "n_clusters", "n_windows")} == {
        "clusters": "blocks",
        "n_clusters": 8,
        "n_windows": 24,
    }


def test_documents_of_windows_are_kept_where_meta_tells_their_end(tmp_path: Path) -> None:
    data = Path(shutil.copytree(PEER / "datasets" / "openwebtext2", tmp_path / "openwebtext2"))
    (data / "meta.json").write_text(json.dumps({"end_of_text": 10}))  # the line ends of this text
    evaluate(ADM, tmp_path / "out", "--data_dir", str(tmp_path))
    documents = read_windows(tmp_path / "out" / "eval_summary_ckpt.npz").documents
    assert documents is not None and np.unique(documents).size > 100


FEW = [
    "--data_dir",
    str(PEER / "datasets"),
    "--device",
    "cpu",
    "--eval_sample_size",
    "48",
    "--batch_size",
    "1",
]


@pytest.fixture(scope="module")
def one_window(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[str]]:
    """What eval.py said of a single window, in a folder that it may only read, and what lies there
    afterwards.
    """
    place = Path(shutil.copytree(ADM.parent, tmp_path_factory.mktemp("read_only") / "run"))
    before = sorted(path.name for path in place.iterdir())
    outcome = run(in_read_only(place, [*python(), "eval.py", "--checkpoint", str(place / "ckpt.pt"), *FEW]))
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout + outcome.stderr, place, before


def test_numbers_of_a_folder_that_one_may_only_read_are_printed(
    one_window: tuple[str, Path, list[str]],
) -> None:
    said, place, before = one_window
    assert "perplexity   " in said and "the results are printed only, --output_dir keeps them" in said
    assert sorted(path.name for path in place.iterdir()) == before


def test_one_window_has_no_interval(one_window: tuple[str, Path, list[str]]) -> None:
    assert "(one window: no interval)" in one_window[0]


@pytest.mark.parametrize("door", ["eval.py", "get_ppl_per_mac.py", "get_router_weights.py"])
def test_a_place_that_cannot_be_written_ends_it_before_the_work(tmp_path: Path, door: str) -> None:
    (tmp_path / "file").touch()
    outcome = run(
        [
            *python(),
            door,
            "--checkpoint",
            str(ADM),
            "--output_dir",
            str(tmp_path / "file" / "out"),
            "--data_dir",
            str(tmp_path),
        ]
    )
    (line,) = outcome.stderr.splitlines()
    assert (
        outcome.returncode == 2 and "cannot write to" in line and line.endswith("give another --output_dir")
    )
