"""Curricula: what each step reads, what is refused, and trainings that are killed."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import config
from data.bins import TokenWindows
from data.curriculum import (
    DifficultyTurns,
    LengthCurriculum,
    ShiftedOrder,
    difficulty_curriculum,
    hard_counts,
    length_curriculum,
)
from errors import UserError
from models.macs import training_flops_per_token
from models.settings import ModelSettings
from optim.selftest import differing
from tests.command_lines import refused
from tests.corpora import write_documents
from tests.programs import (
    ONE_LAYER,
    command,
    final_state,
    folder,
    metrics,
    start,
    train,
    trained,
    wait_for_step,
)

TOKENS = np.arange(4000, dtype=np.uint16)
WEIGHTS = {"a": 0.4, "b": 0.2, "c": 0.3, "d": 0.1}
BATCH, STEPS = 10, 50


def growing(tokens: Any = TOKENS, batch: int = BATCH, **changes: Any) -> LengthCurriculum:
    given = {"min_seq_len": 8, "max_seq_len": 40, "n_stages": 5, "batches_per_stage": 9, **changes}
    return length_curriculum(tokens, batch, **given)


def turns() -> DifficultyTurns:
    return DifficultyTurns(WEIGHTS, ["d", "b"], BATCH, hard_counts(BATCH, STEPS, 0.7))


def first_tokens(source: Any, step: int, first: int, count: int) -> list[int]:
    return [int(row[0]) for row in source.samples(step, first, count)["inputs"]]


# lengths


def test_a_step_does_not_depend_on_its_cut() -> None:
    source = growing()
    whole = first_tokens(source, 20, 200, 10)
    assert whole == [first_tokens(source, 20, 200 + number, 1)[0] for number in range(10)]


def test_windows_of_an_epoch_do_not_overlap() -> None:
    order = ShiftedOrder(TokenWindows(TOKENS, 24), seed=3)
    starts = order.starts(166, 166).reshape(1, -1)
    assert set(np.diff(np.sort(starts))[0]) == {24}


def test_targets_follow_the_inputs() -> None:
    batch = growing().samples(44, 440, 10)
    assert batch.count == growing().items(44, 440, 10) == 10 * 40
    assert (batch["targets"] == batch["inputs"] + 1).all()


def test_stages_of_one_length_are_one() -> None:
    source = growing(min_seq_len=8, max_seq_len=9, n_stages=3, batches_per_stage=2)
    assert [(stage.length, stage.first, stage.steps) for stage in source.stages] == [(8, 0, 4), (9, 4, 2)]


def test_stages_have_equal_shares_of_any_number_of_steps() -> None:
    windows = {"": TokenWindows(TOKENS, 8)}
    source = LengthCurriculum(windows, {"": 1.0}, 0, [8, 16, 24], BATCH, steps=10)
    assert [stage.steps for stage in source.stages] == [3, 3, 4]


def test_another_seed_reads_other_windows() -> None:
    assert first_tokens(growing(), 0, 0, 10) != first_tokens(growing(data_seed=1), 0, 0, 10)


def test_a_mixture_grows_with_its_shares() -> None:
    windows = {"a": TokenWindows(TOKENS, 8), "b": TokenWindows(TOKENS + 10_000, 8)}
    source = LengthCurriculum(windows, {"a": 0.75, "b": 0.25}, 0, [8, 16], 8, steps=4)
    found = [first_tokens(source, step, 8 * step, 8) for step in range(4)]
    assert [sum(token >= 10_000 for token in step) for step in found] == [2, 2, 2, 2]


def test_no_stage_left_is_refused() -> None:
    with pytest.raises(UserError, match="every stage of the length curriculum is skipped"):
        growing(tokens=TOKENS[:50])


@pytest.mark.parametrize(
    ("step", "first", "words"), [(45, 450, "is of 45 steps"), (10, 50, "has 10 samples a step")]
)
def test_a_run_of_another_shape_is_refused(step: int, first: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        growing().samples(step, first, 5)


def test_another_curriculum_is_another_identity() -> None:
    identities = [growing(**more).identity() for more in ({}, {"batches_per_stage": 8}, {"min_seq_len": 9})]
    assert len({json.dumps(identity) for identity in identities}) == 3


def test_operations_of_a_token_are_those_of_the_stage() -> None:
    settings = ModelSettings.from_args(config.parse_args(["--sequence_length", "64"]))
    shorter = training_flops_per_token(replace(settings, sequence_length=16))
    assert training_flops_per_token(settings, 16) == shorter


# difficulty


def test_each_side_is_read_in_its_order() -> None:
    sources, ranks = turns().locate(0, BATCH * STEPS)
    for number in range(len(WEIGHTS)):
        mine = ranks[sources == number]
        assert mine.tolist() == list(range(mine.size)) and mine.size


def test_turns_can_be_sought() -> None:
    whole = turns().locate(0, BATCH * STEPS)
    for first in (37, 118, 340, 495):
        parts = turns().locate(first, 5)
        assert [part.tolist() for part in parts] == [each[first : first + 5].tolist() for each in whole]


@pytest.mark.parametrize("samples", [0, 7, 123, 238, 499, 500])
def test_samples_of_each_source_are_counted(samples: int) -> None:
    sources, _ = turns().locate(0, samples)
    assert turns().counts(samples).tolist() == np.bincount(sources, minlength=4).tolist()


def test_sources_of_a_side_keep_their_weights() -> None:
    a, b, c, d = turns().counts(BATCH * STEPS)
    assert abs(a / (a + c) - 4 / 7) < 0.01 and abs(b / (b + d) - 2 / 3) < 0.01


def test_a_side_without_weight_is_refused() -> None:
    with pytest.raises(UserError, match="no hard source"):
        DifficultyTurns({"a": 1.0, "b": 0.0}, ["b"], BATCH, hard_counts(BATCH, STEPS, 0.5))


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="the hard data have 8 tokens, too few for one of 8"):
        difficulty_curriculum(TOKENS, TOKENS[:8], 4, 8)


# command lines

LENGTH = ("--curriculum", "length")
DIFFICULTY = ("--curriculum", "difficulty", "--dataset", "a=0.5,b=0.5")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((*LENGTH, "--extend", "rejoin"), "--extend: a curriculum is spread over the steps"),
        ((*LENGTH, "--packing", "best_fit"), "--packing best_fit fills rows of one length"),
        ((*LENGTH, "--curriculum_min_length", "513"), "--curriculum_min_length 513 is more than"),
        ((*LENGTH, "--curriculum_stages", "1"), "--curriculum_stages 1 would be the shortest one"),
        ((*LENGTH, "--curriculum_stages", "9", "--iterations", "8"), "--curriculum_stages 9: there are only"),
        ((*LENGTH, "--dataset", "a=0.5,b=0.5", "--sampling", "random"), "--curriculum length reads sources"),
        (("--curriculum", "difficulty"), "--curriculum difficulty needs a mixture"),
        (DIFFICULTY, "--curriculum difficulty: say which sources are hard"),
        ((*DIFFICULTY, "--curriculum_hard", "c"), "--curriculum_hard c: the mixture has no such source"),
        ((*DIFFICULTY, "--curriculum_hard", "a", "b"), "--curriculum difficulty: no source of the mixture"),
        ((*DIFFICULTY, "--curriculum_hard", "b", "--curriculum_warmup", "-1"), "--curriculum_warmup"),
        (("--curriculum", "lengths"), "--curriculum"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], line: str
) -> None:
    (said,) = [each for each in refused(capsys, *words) if "error: " in each]
    assert said.partition("error: ")[2].startswith(line)


def test_a_horizon_of_tokens_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --num-iterations" in "".join(refused(capsys, "gpt", "--depth", "4", *LENGTH))


def test_settings_of_another_curriculum_are_noted() -> None:
    args = config.parse_args([*LENGTH, "--curriculum_warmup", "0.2"])
    assert "--curriculum_warmup has no effect: --curriculum is length" in config.unused_settings(args)


# trainings

SETTINGS = {
    **ONE_LAYER,
    "iterations": 40,
    "eval_freq": 0,
    "log_freq": 1,
    "save_checkpoint_freq": 3,
    "dataset": "a=0.5,b=0.5",
}
KINDS: dict[str, dict[str, Any]] = {
    "length": {"curriculum": "length", "curriculum_min_length": 12},
    "difficulty": {"curriculum": "difficulty", "curriculum_hard": "b"},
    "packed": {"curriculum": "difficulty", "curriculum_hard": "b", "packing": "best_fit"},
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("datasets")
    write_documents(place, {"a": 200, "b": 150})
    return place


def losses(results: Path) -> list[float]:
    return [row["loss"] for row in metrics(results) if row["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_alone_or_by_two_processes(data_dir: Path, tmp_path: Path, kind: str) -> None:
    settings = {**SETTINGS, "iterations": 24, "data_dir": data_dir, **KINDS[kind]}
    calm, killed = trained(tmp_path / "calm", **settings), tmp_path / "killed"
    process = start(command(killed, **settings))
    wait_for_step(killed, 11, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    trained(killed, **settings)
    assert differing(final_state(calm), final_state(killed)) == []
    if kind == "length":
        trained(tmp_path / "two", 2, **{**settings, "batch_size": 2, "acc_steps": 4})
        assert losses(tmp_path / "two") == pytest.approx(losses(calm), rel=1e-5)


@pytest.mark.slow
def test_tokens_a_second_and_first_lines_are_those_of_the_stage(data_dir: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "data_dir": data_dir, **KINDS["length"], "log_freq": 5, "dataset": "a"}
    place = folder(trained(tmp_path, **settings))
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    times = [row["time"] for row in rows if row["kind"] == "train"]
    per_step = [round(time["tokens_per_second"] * time["seconds_per_step"]) for time in times]
    assert per_step == [8 * length for length in (12, 12, 24, 24, 36, 36, 48, 48)]
    assert "curriculum: 24 tokens in steps 11 to 20, " in (place / "train.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"curriculum_min_length": 16}, {"curriculum": "none"}, {"iterations": 80}], ids=str
)
def test_another_curriculum_does_not_go_on(data_dir: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = {**SETTINGS, "data_dir": data_dir, **KINDS["length"], "iterations": 8, "dataset": "a"}
    trained(tmp_path, **settings, max_runtime_minutes=60)
    outcome = train(tmp_path, **{**settings, **changes})
    assert outcome.returncode == 2 and "Traceback" not in outcome.stderr


@pytest.mark.slow
def test_too_short_a_dataset_is_refused_in_one_line(tmp_path: Path) -> None:
    write_documents(tmp_path / "data", {"few": 30})
    changes = {**KINDS["length"], "curriculum_min_length": 48, "batch_size": 64, "acc_steps": 4}
    outcome = train(
        tmp_path / "out", **{**SETTINGS, "dataset": "few", "data_dir": tmp_path / "data", **changes}
    )
    (line,) = outcome.stderr.splitlines()
    assert outcome.returncode == 2 and "every stage of the length curriculum is skipped" in line
