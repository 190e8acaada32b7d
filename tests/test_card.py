"""The model card: the figures of this checkpoint, and of no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import config
from optim.card import facts_of


def card_of(
    folder: Path, summary: dict[str, Any] | None = None, steps: int = 20, **evaluated: Any
) -> dict[str, str]:
    """Facts of a ckpt.pt of `steps` steps beside which an evaluation stands that was made with some
    settings changed.
    """
    trained = config.add_defaults({"model": "adm", "n_repeat": 3, "dataset": "owt2"})
    itr, data = (
        evaluated.pop("itr", 20),
        {
            "tokens": evaluated.pop("tokens", 500),
            "blocks": "a" * 64,
            "sha256": None,
        },
    )
    (folder / "eval_summary_ckpt.json").write_text(
        json.dumps(
            {"val_perplexity": 64.11, "itr": itr, "args": {**vars(trained), **evaluated}, "data": data}
        )
    )
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return facts_of(folder / "ckpt.pt", {"itr": steps, "data": {"val": {**data, "tokens": 500}}}, trained)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dataset": "/copy/openwebtext2"},
        {"batch_size": 64},
        {"device": "cuda"},
        {"iterations": 7},
        {"eval_length_factor": [1.0, 1.0]},
    ],
)
def test_card_states_the_perplexity_of_an_evaluation(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert card_of(tmp_path, **changes)["validation perplexity"] == "64.11 (eval_summary_ckpt.json)"


@pytest.mark.parametrize(
    "changes",
    [
        {"itr": 10},
        {"eval_sample_size": 32},
        {"eval_length_factor": [0.5, 0.1]},
        {"routing": "threshold"},
        {"attention_window_length": 8},
        {"sequence_length": 128},
        {"disable_ln_mid": True},
        {"dataset": "stdlib"},
        {"model": "unheard-of"},
        {"tokens": 499},
    ],
)
def test_card_does_not_state_the_perplexity_of_something_else(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert "validation perplexity" not in card_of(tmp_path, **changes)


@pytest.mark.parametrize(("name", "stated"), [("ckpt.pt", True), ("ckpt_20.pt", False)])
def test_a_summary_that_tells_no_step_is_that_of_the_final_checkpoint(
    tmp_path: Path, name: str, stated: bool
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"final_val_pp": 64.43}))
    assert (
        "validation perplexity"
        in facts_of(tmp_path / name, {"itr": 20}, config.add_defaults({"model": "adm"}))
    ) == stated


def test_card_of_an_extended_training_states_what_it_ended_with(tmp_path: Path) -> None:
    """The evaluation of the ckpt.pt that it had before stays in the folder."""
    facts = card_of(tmp_path, {"itr": 60, "final_val_pp": 64.43}, steps=60)
    assert (facts["validation perplexity"], facts["steps"]) == ("64.43 (summary.json)", "60 of 128 sequences")


def test_card_does_not_state_the_end_of_a_training_for_an_earlier_step(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"itr": 60, "final_val_pp": 64.43}')
    assert "validation perplexity" not in facts_of(
        tmp_path / "ckpt_20.pt", {"itr": 20}, config.add_defaults({})
    )
