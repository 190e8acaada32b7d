"""Names that lead out of the results folder: refused in one line, and nothing lands there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import data.inspect
import data.tokenize
import main as training
from tests.chaos.attacks import QUICK, tree, works_or_is_refused
from tests.programs import flags

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left")]
AWAY = {
    "above": "../../x",
    "absolute": "/x-away",
    "later": "a/../../../../x",
    "up": "..",
    "here": ".",
    "nothing": "",
    "slash": "/",
    "end": "a/..",
    "slashes": "a//b",
    "nul": "a\0b",
    "nul above": "../\0",
    "long": "x" * 5000,
    "deep": "a/" * 2499 + "b",
    "surrogate": "\udc80",
    "space": " ",
}


@pytest.mark.parametrize("by_config", [False, True], ids=["flag", "config"])
@pytest.mark.parametrize("kind", AWAY)
@pytest.mark.parametrize("flag", ["exp_name", "run_prefix", "dataset"])
def test_no_name_leads_out_of_the_results_folder(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch, flag: str, kind: str, by_config: bool
) -> None:
    here, results = tmp_path / "a" / "b" / "here", tmp_path / "a" / "b" / "results"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)  # so that a relative way out is within the test's folder
    config = tmp_path / "config.json"
    config.write_text(json.dumps({flag: AWAY[kind]}))
    given = ["--config", str(config)] if by_config else [f"--{flag}={AWAY[kind]}"]
    changes = {"exp_name": None if flag == "run_prefix" else "run", flag: None}
    before = tree(tmp_path), set(os.listdir("/"))
    outcome = call(training.main, *flags(results, **changes, **QUICK), *given)
    works_or_is_refused(outcome)
    assert (tree(tmp_path, without=results), set(os.listdir("/"))) == before


@pytest.mark.parametrize("kind", AWAY)
def test_no_name_of_a_dataset_ends_the_tokeniser_in_a_traceback(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind in ("absolute", "slash") or "\0" in AWAY[kind]:
        pytest.skip("a path is taken as it is, and no argument holds a NUL")
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b" / "c")
    Path("good.txt").write_text("some text\n" * 20)
    works_or_is_refused(
        call(
            data.tokenize.main,
            f"--name={AWAY[kind]}",
            "--input",
            "good.txt",
            "--data_dir",
            "data",
            "--tokenizer",
            "char",
        )
    )
