"""Samples of text during a training: their rows, their traces, the prompts that are refused."""

from __future__ import annotations

import io
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import config
from data.tokenizer import open_tokenizer
from data.vocabulary import Vocabulary
from errors import UserError
from optim.fit import settings_of
from optim.reporting import _Console
from optim.samples import BUILT_IN, prepared, shown, tokenizer_of, wanted_prompts
from optim.selftest import differing
from tests.corpora import write_sources
from tests.programs import (
    STOPPED,
    command,
    final_state,
    folder,
    metrics,
    run,
    start,
    train,
    trained,
    wait_for_step,
)

SETTINGS = {
    "dataset": "wiki",
    "vocab_size": 256,
    "n_repeat": 2,
    "iterations": 12,
    "eval_freq": 6,
    "log_freq": 1,
    "save_checkpoint_freq": 5,
}
SAMPLED = {"sample_every": 4, "sample_tokens": 6, "sample_temperature": 0.8}
LONG = {"sample_every": 6, "sample_tokens": 400, "eval_seq_prefix": "The "}
SHORT = {"model": "base", "n_layer": 1, "n_layer_begin": 0, "n_layer_end": 0, "depth_embedding": None}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("datasets")
    write_sources(place, {"wiki": 5000}, "bytes")
    return place


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    return trained(tmp_path_factory.mktemp("sampled"), data_dir=data_dir, **SETTINGS, **SAMPLED)


def settings(**changes: Any) -> Any:
    return config.add_defaults({"vocab_size": 256, "sequence_length": 48, **changes})


def samples(results: Path) -> dict[int, list[dict[str, str]]]:
    return {row["step"]: row["samples"] for row in metrics(results) if row["kind"] == "sample"}


# rows


def test_every_prompt_is_continued_at_its_steps(sampled: Path) -> None:
    prompts = [["Once upon a time", *BUILT_IN]] * 3
    assert [[sample["prompt"] for sample in row] for row in samples(sampled).values()] == prompts
    assert list(samples(sampled)) == [4, 8, 12]


def test_the_log_has_a_line_for_each_sample(sampled: Path) -> None:
    log = (folder(sampled) / "train.log").read_text()
    assert sum("sample at step 8: " in line for line in log.splitlines()) == 4


def test_the_log_says_how_a_routed_model_is_sampled(sampled: Path) -> None:
    log = (folder(sampled) / "train.log").read_text()
    assert log.count("note: samples route by threshold") == 1


def test_prompts_of_a_file_are_continued(tmp_path: Path, data_dir: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text('["import os", "caf\\u00e9\\n"]')
    changes = {**SETTINGS, **SHORT, "data_dir": data_dir, "iterations": 1}
    found = trained(tmp_path, **changes, sample_every=1, sample_prompts=prompts)
    assert [sample["prompt"] for sample in samples(found)[1]] == ["import os", "café\n"]


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("\ufeffone\r\ntwo", ["one", "two"]),
        ("[INST] x", ["[INST] x"]),
        (' ["a\\nb", "c"]\n', ["a\nb", "c"]),
    ],
)
def test_a_file_holds_lines_or_a_list(tmp_path: Path, content: str, prompts: list[str]) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(content, encoding="utf-8", newline="")
    assert wanted_prompts(settings(sample_prompts=str(path))) == prompts


def test_a_log_line_is_short_and_one_line() -> None:
    assert shown("a\n\x1b" + 200 * "b", 10) == "'a\\n\\x1bbbbbbbb'..."


def test_a_terminal_may_know_fewer_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    _Console().emit(logging.LogRecord("x", logging.INFO, "", 0, "café", None, None))
    assert terminal.buffer.getvalue() == b"caf\\xe9\n"  # type: ignore[attr-defined]


@pytest.mark.slow
def test_wandb_has_a_table(tmp_path: Path, data_dir: Path) -> None:
    changes = {**SETTINGS, **SHORT, "data_dir": data_dir, "iterations": 2, "sample_every": 1}
    outcome = run([*command(tmp_path, **changes), "--wandb"], WANDB_DIR=str(tmp_path))
    assert outcome.returncode == 0, outcome.stderr
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/table/samples_*.json"))) == 2


# no trace


def test_samples_leave_no_trace(tmp_path: Path, data_dir: Path, sampled: Path) -> None:
    without = trained(tmp_path, data_dir=data_dir, **SETTINGS)
    assert differing(final_state(without), final_state(sampled)) == []
    assert metrics(without) == [row for row in metrics(sampled) if row["kind"] != "sample"]


@pytest.mark.slow
def test_samples_of_a_model_that_draws_leave_no_trace(tmp_path: Path, data_dir: Path) -> None:
    changes = {**SETTINGS, "data_dir": data_dir, "model": "pondernet"}
    without, with_samples = trained(tmp_path / "a", **changes), trained(tmp_path / "b", **changes, **SAMPLED)
    assert differing(final_state(without), final_state(with_samples)) == []


@pytest.mark.parametrize("step", [pytest.param(4, marks=pytest.mark.slow), 7])
def test_a_killed_run_has_the_rows_of_an_undisturbed_one(
    tmp_path: Path, data_dir: Path, sampled: Path, step: int
) -> None:
    changes = {**SETTINGS, **SAMPLED, "data_dir": data_dir}
    process = start(command(tmp_path, **changes))
    wait_for_step(tmp_path, step, process)
    process.kill()
    process.communicate()
    assert metrics(trained(tmp_path, **changes)) == metrics(sampled)


@pytest.mark.slow
def test_a_stop_cuts_a_sample_short_and_the_next_run_has_it(tmp_path: Path, data_dir: Path) -> None:
    changes = {**SETTINGS, **SHORT, **LONG, "iterations": 6, "data_dir": data_dir}
    process = start(command(tmp_path / "a", **changes))
    wait_for_step(tmp_path / "a", 6, process)  # the row before the sample
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert (process.returncode, samples(tmp_path / "a")) == (STOPPED, {})
    stopped, undisturbed = trained(tmp_path / "a", **changes), trained(tmp_path / "b", **changes)
    assert metrics(stopped) == metrics(undisturbed)


@pytest.mark.slow
def test_two_processes_write_the_same_samples(tmp_path: Path, data_dir: Path, sampled: Path) -> None:
    found = trained(tmp_path, processes=2, **SETTINGS, **SAMPLED, data_dir=data_dir)
    assert samples(found) == samples(sampled)


def test_weights_that_are_not_finite_end_the_training_as_without_samples(
    tmp_path: Path, data_dir: Path
) -> None:
    outcome = train(tmp_path, data_dir=data_dir, **{**SETTINGS, **SHORT}, sample_every=1, lr=1e30)
    assert outcome.returncode == 2
    assert "warning: no samples at step 1" in outcome.stdout
    assert "the gradient norm" in outcome.stderr


# refused prompts


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("gone.txt", None, "No such file or directory"),
        ("empty.txt", b"", "there are no prompts in it"),
        ("empty.json", b"[]", "there are no prompts in it"),
        ("gap.txt", b"one\n\ntwo\n", "prompt 2 is empty"),
        ("gap.json", b'["one", ""]', "prompt 2 is empty"),
        ("latin.txt", b"caf\xe9\n", "it is no text in UTF-8"),
        ("broken.json", b'["one",', "it is no JSON list of strings"),
        ("numbers.json", b"[1, 2]", "it is no JSON list of strings"),
    ],
)
def test_a_file_without_prompts_is_refused(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        wanted_prompts(settings(sample_prompts=str(path)))
    assert str(refusal.value) == f"--sample_prompts {path}: {reason}"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("half.json", '["\\ud800"]', "surrogates not allowed"),
        ("long.txt", 49 * "x", "has 49 tokens; there must be 1 to --sequence_length 48"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_one_line(
    tmp_path: Path, data_dir: Path, name: str, content: str, reason: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    outcome = train(tmp_path / "exps", data_dir=data_dir, **SETTINGS, **SAMPLED, sample_prompts=path)
    (line,) = outcome.stderr.splitlines()
    assert (outcome.returncode, "step 1" in outcome.stdout) == (2, False)
    assert line.startswith(f"main.py: error: --sample_prompts {path}: ") and reason in line


def test_a_folder_of_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is a directory"):
        wanted_prompts(settings(sample_prompts=str(tmp_path)))


def test_prompts_are_read_before_data_are_prepared(tmp_path: Path) -> None:
    results = tmp_path / "exps"
    outcome = train(results, data_dir=tmp_path, dataset="stdlib", sample_every=1, sample_prompts="gone")
    assert outcome.stderr == "main.py: error: --sample_prompts gone: No such file or directory\n"
    assert not (tmp_path / "stdlib").exists()


def test_a_dataset_of_unknown_tokens_cannot_be_sampled() -> None:
    with pytest.raises(UserError, match="does not say by which tokenizer"):
        tokenizer_of({}, "mine")


def test_a_python_training_has_no_samples() -> None:
    with pytest.raises(UserError, match="unknown setting 'sample_every'"):
        settings_of({"sample_every": 1})


def test_prompts_without_samples_are_noted() -> None:
    args = config.parse_args(["--sample_tokens", "5"])
    assert "--sample_tokens has no effect: --sample_every is 0" in config.unused_settings(args)


# built-in prompts


@pytest.mark.parametrize(
    ("meta", "dataset", "size"), [({}, "stdlib", 50304), ({"tokenizer": "bytes"}, "x", 256)]
)
def test_every_built_in_prompt_has_tokens(meta: dict[str, Any], dataset: str, size: int) -> None:
    args = settings(vocab_size=size)
    prompts, problems = prepared(wanted_prompts(args), tokenizer_of(meta, dataset), args)
    assert ([prompt.text for prompt in prompts], problems) == (["Once upon a time", *BUILT_IN], [])


def test_built_in_prompts_of_other_letters_are_left_out() -> None:
    tokenizer = open_tokenizer(Vocabulary("char", characters="Ode f"))
    assert tokenizer is not None
    prompts, problems = prepared(BUILT_IN, tokenizer, settings())
    assert [prompt.text for prompt in prompts] == ["def "]
    assert problems[0] == "'The ': the training data have no 'T'"


def test_a_run_whose_letters_are_in_no_built_in_prompt_is_refused(tmp_path: Path, data_dir: Path) -> None:
    place = tmp_path / "wiki"
    write_sources(tmp_path, {"wiki": 5000})
    (place / "meta.json").write_text('{"tokenizer": "char", "characters": "0123"}')
    outcome = train(tmp_path / "exps", data_dir=tmp_path, **SETTINGS, **SAMPLED)
    (line,) = outcome.stderr.splitlines()
    assert "the training data have no" in line and line.endswith("; give --sample_prompts")
