"""Fine-tuning with main.py: killed and resumed, on two processes, references that are not what they were, and
how such trainings are evaluated and shown.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from optim.checkpoint import load_checkpoint
from optim.selftest import differing
from tests.programs import (
    SMALL_DATA,
    command,
    final_state,
    folder,
    metrics,
    python,
    run,
    start,
    train,
    trained,
    wait_for_step,
)
from tests.tuned import SMALL, sums

pytestmark = pytest.mark.slow
# which draws how many tokens go on, and drops out
ROUTED = {**SMALL, "model": "adm", "n_layer": 3, "n_layer_begin": 1, "n_layer_end": 1, "n_repeat": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sums(tmp_path_factory.mktemp("sums"))


def settings(data: Path, objective: str, begin: Path | None = None, **changes: Any) -> dict[str, Any]:
    """begin: the weights to begin with."""
    form = {"sft": "chat", "dpo": "pairs"}[objective]
    own = {} if begin is None else {"init_from": begin}
    routed = {**ROUTED, "dropout": 0.1} if objective == "dpo" else ROUTED
    return {**routed, "data_dir": data, "dataset": form, "objective": objective, **own, **changes}


@pytest.fixture(scope="module")
def tuned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an sft, from which preferences begin."""
    return folder(trained(tmp_path_factory.mktemp("sft"), **settings(data, "sft")))


@pytest.fixture(scope="module")
def preferred(data: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a dpo that nobody disturbed."""
    results = tmp_path_factory.mktemp("dpo")
    return trained(results, **settings(data, "dpo", tuned, track="val_margin@pairs", early_stop="9:0"))


def test_a_killed_dpo_ends_with_the_same_bits(
    data: Path, tuned: Path, preferred: Path, tmp_path: Path
) -> None:
    words = command(tmp_path, **settings(data, "dpo", tuned, track="val_margin@pairs", early_stop="9:0"))
    process = start(words)
    wait_for_step(tmp_path, 7, process)
    process.kill()
    process.communicate(timeout=60)
    assert run(words).returncode == 0
    assert differing(final_state(preferred), final_state(tmp_path)) == []
    assert metrics(preferred) == metrics(tmp_path)


def test_two_processes_train_as_one(data: Path, tuned: Path, preferred: Path, tmp_path: Path) -> None:
    flags = settings(data, "dpo", tuned, track="val_margin@pairs", early_stop="9:0")
    trained(tmp_path, 2, **flags)
    one, two = metrics(preferred), metrics(tmp_path)
    assert [row["kind"] for row in one] == [row["kind"] for row in two]
    for mine, others in zip(one, two, strict=True):
        for name in mine.keys() & {"loss", "val_loss", "val_margin", "val_acc", "val_policy_acc"}:
            assert mine[name] == pytest.approx(others[name], abs=1e-5)


def test_sft_is_the_same_however_a_step_is_cut(data: Path, tuned: Path, tmp_path: Path) -> None:
    """On two processes, and with answers of unequal length."""
    trained(tmp_path, 2, **settings(data, "sft", batch_size=1, acc_steps=8, training_length_factor=1))
    other = trained(tmp_path / "one", **settings(data, "sft", training_length_factor=1))
    losses = []
    for results in (tmp_path / "chat", other / "chat"):
        rows = metrics(results.parent)
        losses.append([row["loss"] for row in rows if row["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_dpo_begins_with_no_margin_and_ends_with_one(preferred: Path) -> None:
    rows = metrics(preferred)
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[0] == pytest.approx(0.6931, abs=0.02)  # of a network that drops out
    final = next(row for row in rows if row["kind"] == "final@pairs")
    assert final["n_pairs"] == 14 and final["val_margin"] != 0
    summary = json.loads((folder(preferred) / "summary.json").read_text())
    assert summary["final_val_acc@pairs"] == final["val_acc"]
    assert summary["best"]["quantity"] == "val_margin@pairs" and (folder(preferred) / "best.pt").is_file()


def test_a_checkpoint_names_its_reference_by_path_and_content(preferred: Path, tuned: Path) -> None:
    frozen = load_checkpoint(folder(preferred) / "ckpt.pt")["frozen"]["reference"]
    assert frozen["file"] == str(tuned / "ckpt.pt") and len(frozen["sha256"]) == 64


@pytest.fixture
def begun(data: Path, preferred: Path, tuned: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A training that is not finished, and the folder that it began from."""
    own = shutil.copytree(tuned, tmp_path / "tuned")
    results = tmp_path / "results"
    shutil.copytree(preferred, results)
    (folder(results) / "summary.json").unlink()
    for name in ("ckpt.pt", "ckpt_15.pt"):
        (folder(results) / name).unlink()
    return results, own


def refusal(results: Path, **flags: Any) -> str:
    """The only line of a refused command."""
    outcome = train(results, **flags)
    assert outcome.returncode == 2 and "Traceback" not in outcome.stderr
    lines = [line for line in outcome.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


def test_a_reference_that_is_not_what_it_was_is_refused(data: Path, begun: tuple[Path, Path]) -> None:
    results, own = begun
    flags = settings(data, "dpo", own, track="val_margin@pairs", early_stop="9:0")
    state = torch.load(own / "ckpt.pt", weights_only=True)
    next(iter(state["model"].values()))[0, 0] += 1
    torch.save(state, own / "ckpt.pt")
    said = refusal(results, **{**flags, "init_from": own / "ckpt.pt"})
    assert "began with other weights" in said or "not what the training began with" in said


def test_a_reference_that_was_moved_is_known_by_its_content(
    data: Path, preferred: Path, begun: tuple[Path, Path]
) -> None:
    results, own = begun
    outcome = train(results, **settings(data, "dpo", own, track="val_margin@pairs", early_stop="9:0"))
    assert outcome.returncode == 0, outcome.stderr
    assert differing(final_state(preferred), final_state(results)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference": "/nowhere/ckpt.pt"}, "--reference /nowhere/ckpt.pt: no such file or folder"),
        ({"reference": Path(__file__)}, "is not a valid checkpoint"),
        ({"dataset": "chat"}, "holds examples of the format 'chat', and"),
        ({"dataset": "prompts"}, "holds examples of the format 'prompts', and"),
        ({"dataset": "pairs", "objective": "next_token", "init_from": None}, "for fine-tuning"),
        ({"dataset": "missing"}, "dataset 'missing' is not prepared"),
        ({"sequence_length": 5}, "none of its"),
        ({"n_repeat": 3, "init_from": None}, "routers and --n_repeat 3"),
        ({"model": "base", "n_repeat": 1, "init_from": None, "vocab_size": 300}, "a vocabulary of 256"),
    ],
)
def test_what_cannot_be_preferred_is_refused(
    data: Path, tuned: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    flags = {**settings(data, "dpo", tuned), **changes}
    if "init_from" in changes and flags["objective"] == "dpo":
        flags["reference"] = tuned
    assert said in refusal(tmp_path, **flags)


def evaluated(checkpoint: Path, output: Path, *flags: str) -> tuple[str, dict[str, Any]]:
    """What eval.py prints and writes."""
    words = [*python(), "eval.py", "--checkpoint", str(checkpoint), "--output_dir", str(output), *flags]
    outcome = run([*words, "--device", "cpu"])
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout, json.loads((output / "eval_summary_ckpt.json").read_text())


def test_eval_measures_what_the_training_did(preferred: Path, tuned: Path, tmp_path: Path) -> None:
    for results, kind, names in (
        (preferred, "final@pairs", ("val_loss", "val_margin", "val_acc", "val_policy_acc")),
        (tuned.parents[2], "final", ("val_loss", "val_acc", "n_tokens")),
    ):
        final = next(row for row in metrics(results) if row["kind"] == kind)
        printed, summary = evaluated(folder(results) / "ckpt.pt", tmp_path)
        assert {name: summary[name] for name in names} == pytest.approx({name: final[name] for name in names})
        assert "95% interval" in printed


def test_eval_measures_a_tuned_network_on_text_too(preferred: Path, tmp_path: Path) -> None:
    text = ("--objective", "next_token", "--dataset", "openwebtext2", "--data_dir", str(SMALL_DATA))
    printed, summary = evaluated(folder(preferred) / "ckpt.pt", tmp_path, *text)
    assert summary["val_perplexity"] > 1 and "tokens/s" in printed


def test_eval_needs_the_reference(begun: tuple[Path, Path], preferred: Path, tuned: Path) -> None:
    place = begun[0] / "alone"
    shutil.copytree(folder(preferred), place)
    state = torch.load(place / "ckpt.pt", weights_only=True)
    state["frozen"]["reference"]["sha256"] = "0" * 64
    torch.save(state, place / "ckpt.pt")
    words = [*python(), "eval.py", "--checkpoint", str(place / "ckpt.pt"), "--device", "cpu"]
    outcome = run(words)
    assert outcome.returncode == 2 and "not what the training began with" in outcome.stderr
    assert run([*words, "--reference", str(tuned)]).returncode == 0


def test_the_status_page_and_the_report_say_what_was_measured(
    preferred: Path, tuned: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    shutil.copytree(preferred, results)
    shutil.copytree(tuned.parents[1], results / "chat")
    for place in results.glob("*/*/run"):
        evaluated(place / "ckpt.pt", place)
    outcome = run([*python(), "status.py", str(results), "--html", str(tmp_path / "page.html")])
    assert outcome.returncode == 0, outcome.stderr
    table = run([*python(), "status.py", str(results)]).stdout
    assert "chosen likelier" in table and "margin" in table
    page = (tmp_path / "page.html").read_text()
    assert "val_margin" in page and "chosen likelier" in page
    reported = run([*python(), "-m", "report", str(results), "--output", str(tmp_path)])
    assert reported.returncode == 0 and "is of pairs, which have no perplexity" in reported.stderr
