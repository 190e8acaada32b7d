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
from tests.programs import PEER, ROOT, SMALL_DATA, python, run

pytestmark = pytest.mark.slow

THEN = DATA / "revision_55eead3"
MODEL = "adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final"
LNCOT = "cotformer_full_depth_lnmid_depthemb"
NAME = (
    "lr0.002_bs2x{acc_steps}_seqlen16_vocab_size=256_n_layer=3_n_embd={n_embd}_n_head=2_dropout=0.1_"
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
SMALLER = {"n_embd": 8, "acc_steps": 4}
# training -> its processes, and what of its settings differs
TRAININGS: dict[str, tuple[int, dict[str, Any]]] = {
    "adaptive_one": (1, {}),
    "adaptive_two": (2, SMALLER),
    "lncot_one": (1, {**SMALLER, "model": LNCOT}),
    "lncot_two": (2, {**SMALLER, "model": LNCOT}),
}


def place(results: Path, which: str, training: str = "adaptive_one") -> Path:
    """A copy of a folder of then, where a user's results are now."""
    settings = {**SETTINGS, **TRAININGS[training][1]}
    model = MODEL if settings["model"] == "adm" else settings["model"]
    folder = results / "openwebtext2" / model / NAME.format_map(settings)
    return Path(shutil.copytree(THEN / training / which, folder))


def train(results: Path, training: str = "adaptive_one", **changes: Any) -> Any:
    processes, differing = TRAININGS[training]
    settings = {**SETTINGS, **differing, "results_base_folder": results, **changes}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return run([*python(processes), "main.py", *words])


def rows(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in found]


ESSENTIAL, *OTHERS = TRAININGS


@pytest.fixture(scope="module", params=[pytest.param(ESSENTIAL, marks=pytest.mark.essential), *OTHERS])
def resumed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a training that was never stopped, and of the same one, stopped then and resumed now."""
    results = tmp_path_factory.mktemp("then")
    folder = place(results, "stopped", request.param)
    # one of them evaluates the whole split at its end, the others a tenth of it
    data = PEER / "datasets" if request.param == ESSENTIAL else SMALL_DATA
    outcome = train(results, request.param, data_dir=data)
    assert outcome.returncode == 0 and "resumed from" in outcome.stdout, outcome.stdout + outcome.stderr
    return THEN / request.param / "finished", folder


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_stopped_training_goes_on_under_its_name_to_the_same_weights(
    resumed: tuple[Path, Path], part: str
) -> None:
    """To 1e-6, for another processor may round otherwise than the one of then; on that one the bits are
    the same.
    """
    before, after = (leaves(torch.load(path / "ckpt.pt", weights_only=True)[part]) for path in resumed)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(value, after[name], rtol=1e-4, atol=1e-6), name


def test_the_metrics_of_a_stopped_training_go_on(resumed: tuple[Path, Path]) -> None:
    then, now = (rows(path / "metrics.jsonl") for path in resumed)
    if then[-1]["n_tokens"] != now[-1]["n_tokens"]:
        assert then.pop()["kind"] == now.pop()["kind"] == "final"
    assert [(row["kind"], row["step"]) for row in now] == [(row["kind"], row["step"]) for row in then]
    losses = [[row.get("loss", row.get("val_loss")) for row in each] for each in (then, now)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_a_finished_training_is_finished(tmp_path: Path) -> None:
    place(tmp_path, "finished")
    outcome = train(tmp_path)
    assert outcome.returncode == 0 and "finished already" in outcome.stdout


def test_a_finished_training_can_be_extended(tmp_path: Path) -> None:
    folder = place(tmp_path, "finished")
    assert train(tmp_path, extend="continue", iterations=30, data_dir=SMALL_DATA).returncode == 0
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
