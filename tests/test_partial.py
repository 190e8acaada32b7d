"""An evaluation that takes longer than a job goes on where the one before it was cut short, and gives the
very same numbers.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import TokenWindows
from distributed.world import World
from optim.evaluate import evaluate
from optim.partial import PartialSums, facts_of
from tests.helpers import tiny_args, tiny_model
from tests.history import SMALL, stopped_after
from tests.programs import folder, metrics, python, run, train

WORLD = World(torch.device("cpu"))
BATCHES = 9
# the last batch is partial
WINDOWS = TokenWindows(
    np.random.RandomState(0).randint(0, 64, 16 * (3 * BATCHES - 1) + 1).astype(np.uint16), 16
)


class Cut:
    """Evaluations of one model whose sums are kept in one file, each up to a number of batches."""

    def __init__(self, folder: Path, seed: int = 5, **settings: Any) -> None:
        self.model, self.said = tiny_model("adm", seed=seed), list[str]()
        args = tiny_args("adm", **settings)
        facts = facts_of(args, 3, None, WORLD.device)
        self.kept = PartialSums(
            folder, "ckpt", self.model, facts, self.said.append, lambda: self.advances.append(True)
        )
        self.advances = list[bool]()

    def run(self, batches: int = BATCHES + 1) -> tuple[dict[str, Any] | None, int]:
        """What it gives, and how many batches this call computed."""
        calls: list[object] = []
        hook = self.model.register_forward_pre_hook(lambda *unused: calls.append(None))
        result = evaluate(
            self.model,
            WINDOWS,
            3,
            WORLD,
            nullcontext,
            should_stop=lambda: len(calls) >= batches,
            kept=self.kept,
        )
        hook.remove()
        return result, len(calls)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where four batches of nine are kept."""
    assert Cut(tmp_path).run(4) == (None, 4)
    return tmp_path


def test_the_rest_gives_the_numbers_of_an_unbroken_evaluation(place: Path, tmp_path: Path) -> None:
    whole, _ = Cut(tmp_path / "other").run()
    rest, computed = Cut(place).run()
    assert whole is not None and rest is not None and computed == BATCHES - 4
    for name in ("window_losses", "window_accuracies", "window_texts"):
        assert torch.equal(whole.pop(name), rest.pop(name))
    assert rest == whole


@pytest.mark.parametrize(
    "changes",
    [{"seed": 6}, {"eval_length_factor": [0.5, 0.5]}, {"n_repeat": 2}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_another_evaluation_begins_anew(place: Path, changes: dict[str, Any]) -> None:
    assert Cut(place, **changes).run(2)[1] == 2
    assert Cut(place, **changes).run()[1] == BATCHES - 2


def test_another_evaluation_of_the_checkpoint_leaves_the_first_ones_sums(place: Path) -> None:
    other = Cut(place, eval_length_factor=[0.5, 0.5])
    other.run(2)
    other.run()
    other.kept.remove()
    assert Cut(place).run()[1] == BATCHES - 4


def test_a_damaged_file_is_told_and_begins_anew(place: Path) -> None:
    cut = Cut(place)
    cut.kept.path.write_bytes(cut.kept.path.read_bytes()[:300])
    assert cut.run()[1] == BATCHES
    assert "cannot be read" in cut.said[0] and "begins anew" in cut.said[0]


def test_a_place_that_cannot_be_written_is_told_and_the_evaluation_goes_on(tmp_path: Path) -> None:
    cut = Cut(tmp_path / "gone")
    assert cut.run(4) == (None, 4)
    assert "cannot be written" in cut.said[0]


def test_only_what_goes_on_counts_as_progress(place: Path) -> None:
    first, second = Cut(place, seed=6), Cut(place, seed=6)
    first.run(2)
    second.run(2)
    assert (first.advances, second.advances) == ([], [True])


@pytest.mark.slow
def test_a_training_that_is_stopped_in_its_last_evaluation_goes_on_within_it(tmp_path: Path) -> None:
    assert train(tmp_path / "whole", **SMALL).returncode == 0
    assert stopped_after(tmp_path / "cut", 40, iterations=40) == 40
    (kept,) = folder(tmp_path / "cut").glob("eval_partial_training_*.npz")
    outcome = train(tmp_path / "cut", **SMALL)
    assert "the evaluation goes on after" in outcome.stdout and not kept.exists()
    whole, cut = (metrics(tmp_path / name)[-1] for name in ("whole", "cut"))
    assert cut["kind"] == "final" and {**cut, "time": None} == {**whole, "time": None}


@pytest.mark.slow
def test_eval_goes_on_after_a_kill(tmp_path: Path) -> None:
    """As after a time limit: no signal is handled, so what counts is what was kept on the way."""
    assert train(tmp_path, **SMALL).returncode == 0
    words = [*python(), "eval.py", "--checkpoint", str(folder(tmp_path)), "--device", "cpu"]
    whole = json.loads(
        run([*words, "--output_dir", str(tmp_path / "whole")])
        and (tmp_path / "whole" / "eval_summary_ckpt.json").read_text()
    )
    code = (
        "import sys, optim.evaluate as e; e.KEEP_SECONDS = 0; import os, optim.partial as p\nsave ="
        " p.PartialSums.save\np.PartialSums.save = lambda *a: (save(*a), a[1] < 3 or os.kill(os.getpid(),"
        " 9))\nimport eval; eval.main(sys.argv[1:])"
    )
    assert run([*python(), "-c", code, *words[-4:]]).returncode == -9
    outcome = run([*words, "--output_dir", str(tmp_path / "cut")])
    assert "the evaluation goes on after 3 of" in outcome.stderr
    cut = json.loads((tmp_path / "cut" / "eval_summary_ckpt.json").read_text())
    assert {**cut, "tokens_per_second": None} == {**whole, "tokens_per_second": None}
    assert not list(folder(tmp_path).glob("eval_partial*"))
