"""Folders and checkpoints that revision 55eead3 wrote go on, under the names that it built, to the weights
that it would have reached.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from optim.selftest import leaves
from tests.helpers import DATA
from tests.programs import PEER, ROOT, python, run

pytestmark = pytest.mark.slow

THEN = DATA / "revision_55eead3"
MODEL = "adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final"
NAME = (
    "lr0.002_bs2x2_seqlen16_vocab_size=256_n_layer=3_n_embd=16_n_head=2_dropout=0.1_"
    "n_repeat=3_n_layer_begin=1_n_layer_end=1_depth_embedding=linear_learned_seed2"
)
SETTINGS = {
    "dataset": "openwebtext2",
    "data_dir": PEER / "datasets",
    "vocab_size": 256,
    "model": "adm",
    "n_layer": 3,
    "n_layer_begin": 1,
    "n_layer_end": 1,
    "n_repeat": 3,
    "n_embd": 16,
    "n_head": 2,
    "sequence_length": 16,
    "batch_size": 2,
    "acc_steps": 2,
    "dropout": 0.1,
    "depth_embedding": "linear_learned",
    "device": "cpu",
    "lr": 2e-3,
    "iterations": 24,
    "eval_freq": 6,
    "eval_batches": 3,
    "log_freq": 3,
    "save_checkpoint_freq": 12,
}


def place(results: Path, which: str) -> Path:
    """A copy of a folder of then, where a user's results are now."""
    return Path(shutil.copytree(THEN / which, results / "openwebtext2" / MODEL / NAME))


def train(results: Path, **changes: Any) -> Any:
    settings = {**SETTINGS, "results_base_folder": results, **changes}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return run([*python(), "main.py", *words])


def rows(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in found]


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("then")
    folder = place(results, "stopped")
    outcome = train(results)
    assert outcome.returncode == 0 and "resumed from" in outcome.stdout, outcome.stdout + outcome.stderr
    return folder


@pytest.mark.essential
def test_a_stopped_training_goes_on_under_its_name_to_the_same_weights(gone_on: Path) -> None:
    """To 1e-6, for another processor may round otherwise than the one of then; on that one the bits are
    the same.
    """
    then, now = (torch.load(folder / "ckpt.pt", weights_only=True) for folder in (THEN / "finished", gone_on))
    for part in ("model", "optimizer"):
        before, after = leaves(then[part]), leaves(now[part])
        assert before.keys() == after.keys()
        for name, value in before.items():
            if isinstance(value, torch.Tensor):
                assert torch.allclose(value, after[name], rtol=1e-4, atol=1e-6), name


def test_the_metrics_of_a_stopped_training_go_on(gone_on: Path) -> None:
    then, now = rows(THEN / "finished" / "metrics.jsonl"), rows(gone_on / "metrics.jsonl")
    assert [(row["kind"], row["step"]) for row in now] == [(row["kind"], row["step"]) for row in then]
    losses = [[row.get("loss", row.get("val_loss")) for row in each] for each in (then, now)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_a_finished_training_is_finished(tmp_path: Path) -> None:
    place(tmp_path, "finished")
    outcome = train(tmp_path)
    assert outcome.returncode == 0 and "finished already" in outcome.stdout


def test_a_finished_training_can_be_extended(tmp_path: Path) -> None:
    folder = place(tmp_path, "finished")
    assert train(tmp_path, extend="continue", iterations=30).returncode == 0
    assert sorted(path.name for path in folder.glob("ckpt*")) == ["ckpt.pt", "ckpt_24.pt"]


def test_other_data_of_another_size_are_refused(tmp_path: Path) -> None:
    """Checkpoints of then know the number of training tokens alone."""
    place(tmp_path, "stopped")
    data = tmp_path / "data" / "openwebtext2"
    shutil.copytree(PEER / "datasets" / "openwebtext2", data)
    raw = (data / "train.bin").read_bytes()
    (data / "train.bin").write_bytes(raw[:-2])
    outcome = train(tmp_path, data_dir=data.parent)
    assert outcome.returncode == 2 and "training data" in outcome.stderr


def test_status_reads_them(tmp_path: Path) -> None:
    place(tmp_path, "stopped")
    answer = run([*python(), str(ROOT / "status.py"), "--json", str(tmp_path)])
    (row,) = json.loads(answer.stdout)
    assert (row["state"], row["step"], row["iterations"]) == ("stopped", 14, 24)
