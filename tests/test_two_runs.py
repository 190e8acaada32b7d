"""python -m report compare: what differs between two trainings, on folders that real ones left, and
between two evaluations.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from report.__main__ import main
from tests.programs import ROOT
from tests.summaries import evaluation

FINISHED = ROOT / "tests" / "data" / "revision_55eead3" / "adaptive_one" / "finished"
STOPPED = ROOT / "tests" / "data" / "revision_55eead3" / "adaptive_one" / "stopped"
Compare = Callable[[Path, Path], dict[str, list[str]]]


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Compare:
    """Lines of each section, by the first word of its heading."""

    def run(a: Path, b: Path) -> dict[str, list[str]]:
        assert main(["compare", str(a), str(b)]) == 0
        sections = [section.splitlines() for section in capsys.readouterr().out.strip().split("\n\n")]
        return {section[0].split()[0]: section for section in sections}

    return run


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A copy of the finished training, to be changed."""
    return Path(shutil.copytree(FINISHED, tmp_path / "other"))


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite its final checkpoint."""
    state = torch.load(folder / "ckpt.pt", weights_only=True)
    edit(state)
    torch.save(state, folder / "ckpt.pt")


def change_metrics(folder: Path, edit: Callable[[dict[str, Any]], None], *more: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        edit(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*rows, *more)))


def test_a_training_does_not_differ_from_its_copy(compare: Compare, other: Path) -> None:
    said = compare(FINISHED, other)
    assert said["flags"] == ["flags that differ (A | B): none"]
    assert said["weights"][1:] == [
        "  step 24: ckpt.pt | ckpt.pt",
        "    all 26 tensors that both have are equal",
    ]
    assert said["validation"][1:] == ["  equal at all 4 steps in common, 6 to 24"]


def test_flags_stand_under_what_they_change(compare: Compare, other: Path) -> None:
    def edit(state: dict[str, Any]) -> None:
        state["args"] |= {"lr": 5e-4, "eval_batches": 7, "log_freq": 99}

    change(other, edit)
    headings = {line.strip(): n for n, line in enumerate(compare(FINISHED, other)["flags"])}
    assert headings["--lr: 0.002 | 0.0005"] == headings["what is trained:"] + 1
    assert headings["--eval_batches: 3 | 7"] > headings["how it is evaluated:"] > headings["what is trained:"]


def test_a_batch_that_is_cut_otherwise_is_the_same_training(compare: Compare, other: Path) -> None:
    change(other, lambda state: state["args"].update(batch_size=4, acc_steps=1))
    assert (
        compare(FINISHED, other)["flags"][-1]
        == "  the batch is cut otherwise, which this model's training does not depend on"
    )


def test_weights_are_compared_by_relative_norm(compare: Compare, other: Path) -> None:
    def edit(state: dict[str, Any]) -> None:
        for tensor in state["model"].values():
            tensor *= 1.25

    change(other, edit)
    lines = compare(FINISHED, other)["weights"]
    assert "    |A - B| / |A| = 0.25 over 26 tensors, 0 of them equal" in lines


def test_names_shapes_and_numbers_that_are_not_finite_are_told(compare: Compare, other: Path) -> None:
    def edit(state: dict[str, Any]) -> None:
        model = state["model"]
        model["h_extra.weight"] = model.pop("transformer.ln_f.weight")
        model["transformer.wte.weight"] = model["transformer.wte.weight"][:100].clone()
        model["lm_head.weight"][0, 0] = float("nan")

    change(other, edit)
    lines = compare(FINISHED, other)["weights"]
    assert {
        "    only A has transformer.ln_f.weight",
        "    only B has h_extra.weight",
        "    transformer.wte.weight: (256, 16) | (100, 16)",
        "    lm_head.weight: 1 numbers of B are not finite",
    } <= set(lines)


def test_wrappers_of_ddp_and_compile_are_no_difference(compare: Compare, other: Path) -> None:
    change(
        other,
        lambda state: state.update(
            model={f"module._orig_mod.{name}": value for name, value in state["model"].items()}
        ),
    )
    assert compare(FINISHED, other)["weights"][-1] == "    all 26 tensors that both have are equal"


def test_without_a_step_in_common_the_newest_are_compared(compare: Compare) -> None:
    lines = compare(FINISHED, STOPPED)["weights"]
    assert lines[1:3] == ["  no step in common: the newest of each", "  steps 24 | 14: ckpt.pt | ckpt_14.pt"]


def test_a_damaged_checkpoint_is_one_line(compare: Compare, other: Path) -> None:
    raw = bytearray((other / "ckpt.pt").read_bytes())
    raw[len(raw) // 2] ^= 255
    (other / "ckpt.pt").write_bytes(raw)
    (other / "ckpt_12.pt").write_bytes(b"torn")
    lines = compare(FINISHED, other)["weights"]
    assert lines[1:3] == [
        "  B: ckpt_12.pt is damaged, or does not tell its step",
        "  step 24: ckpt.pt | ckpt.pt",
    ]
    assert len(lines) == 4 and "is not a valid checkpoint" in lines[3]


def test_a_folder_without_checkpoints_is_one_line(compare: Compare, other: Path) -> None:
    (other / "ckpt.pt").unlink()
    assert compare(FINISHED, other)["weights"] == ["weights", f"  B: no checkpoint in {other}"]


def test_losses_are_set_beside_each_other_from_where_they_part(compare: Compare, other: Path) -> None:
    def edit(row: dict[str, Any]) -> None:
        if row["kind"] == "eval" and row["step"] >= 18:
            row["val_loss"] += 0.5 if row["step"] == 18 else 0.25

    change_metrics(other, edit)
    lines = compare(FINISHED, other)["validation"]
    assert [line.split()[0] for line in lines[2:-1]] == ["6", "12", "18", "24"]
    assert lines[4].endswith("  +0.5000  the largest difference of 4 steps")
    assert lines[-1] == "  equal up to step 12"


def test_jobs_and_skipped_steps_are_told(compare: Compare, other: Path) -> None:
    change_metrics(other, lambda row: None, {"kind": "skipped", "step": 7, "reason": "loss is nan"})
    jobs = compare(STOPPED, other)["jobs"]
    assert jobs[1:] == [
        "  A: 1 job",
        "     0: steps 0 to 14, ? processes, revision unknown: SIGTERM",
        "     steps passed over: 0",
        "  B: 0 jobs",
        "     steps passed over: 1 (7)",
    ]


def test_a_damaged_summary_stops_nothing(compare: Compare, other: Path) -> None:
    (other / "summary.json").write_text("{")
    assert "summary.json" in compare(FINISHED, other)["flags"][1]


def test_two_evaluations_are_compared_by_flags_and_result(compare: Compare, tmp_path: Path) -> None:
    cot: dict[str, Any] = {"model": "cot", "n_layer": 12, "n_repeat": 3}
    said = compare(
        evaluation(tmp_path / "a", 27.0, **cot), evaluation(tmp_path / "b", 26.5, **{**cot, "lr": 5e-4})
    )
    assert list(said) == ["A:", "flags", "evaluation", "in"]
    assert "    --lr: 0.001 | 0.0005" in said["flags"]
    assert [line.split(",")[0] for line in said["evaluation"][1:]] == [
        "  A: perplexity 27.000",
        "  B: perplexity 26.500",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["compare"],
        ["compare", str(FINISHED)],
        ["compare", str(FINISHED), "nowhere"],
        ["compare", str(FINISHED), str(FINISHED / "ckpt.pt")],
        ["compare", *[str(FINISHED)] * 3],
    ],
)
def test_anything_else_than_two_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    shown = capsys.readouterr()
    assert (stop.value.code, shown.out, len(shown.err.splitlines())) == (2, "", 1)


def test_a_flag_of_other_commands_is_not_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "a", "b", "--output", "c"])
    assert capsys.readouterr().err == "python -m report compare: error: unknown flag --output\n"
