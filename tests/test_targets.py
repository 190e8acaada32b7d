"""Which checkpoints an evaluation reads, under which labels, and where their data are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from errors import UserError
from iridis import targets
from tests.programs import PEER, ROOT


def checkpoint(path: Path, step: int, **args: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"itr": step, "args": args}, path)
    return path


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """A training that ended at step 60 and was told to keep step 40."""
    for step in (40, 50):
        checkpoint(tmp_path / "run" / f"ckpt_{step}.pt", step, keep_steps=None)
    checkpoint(tmp_path / "run" / "ckpt.pt", 60, keep_steps=[40, 60, 1000])
    return tmp_path / "run"


def chosen(capsys: pytest.CaptureFixture[str], *words: object) -> list[tuple[str, str, str, str]]:
    """(number, step, file, place of the data) of each file."""
    assert targets.run([str(word) for word in words]) == 0
    fields = capsys.readouterr().out.split("\0")[:-1]
    return [
        (fields[n], fields[n + 1], Path(fields[n + 2]).name, fields[n + 3]) for n in range(0, len(fields), 4)
    ]


def test_milestones_that_are_there_and_the_final_one_are_evaluated(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen(capsys, "--", experiment) == [("0", "40", "ckpt_40.pt", ""), ("0", "60", "ckpt.pt", "")]


def test_of_a_training_without_milestones_only_the_newest_is_evaluated(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(experiment / "ckpt.pt", 60)
    assert chosen(capsys, "--quick", "--", experiment) == [("0", "60", "ckpt.pt", "")]


def test_steps_are_those_of_each_experiment_and_of_its_final_file(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "other" / "ckpt_60.pt", 60)
    checkpoint(tmp_path / "other" / "ckpt_40.pt", 40)
    found = chosen(capsys, "--steps", 60, 40, "--", experiment, tmp_path / "other")
    assert [(number, name) for number, _, name, _ in found] == [
        ("0", "ckpt.pt"),
        ("0", "ckpt_40.pt"),
        ("1", "ckpt_60.pt"),
        ("1", "ckpt_40.pt"),
    ]


def test_a_step_that_is_missing_is_named_with_those_that_are_there(experiment: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "iridis.targets", "--steps", "40", "45", "--", str(experiment)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"iridis.targets: error: --steps 45: {experiment} has no checkpoint of that step; there are 40,"
        " 50, 60\n"
    )


def test_steps_of_a_single_file_are_refused(experiment: Path) -> None:
    with pytest.raises(UserError, match="is one checkpoint; give the folder of its experiment"):
        targets.run(["--steps", "10", "--", str(next(experiment.glob("ckpt_*.pt")))])


def test_steps_of_a_training_that_goes_on_may_be_named_before_they_are_there(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [
        name for _, _, name, _ in chosen(capsys, "--quick", "--later", "--steps", 40, 70, "--", experiment)
    ] == ["ckpt_40.pt", "ckpt_70.pt"]


@pytest.mark.parametrize(
    ("recorded", "words", "problem"),
    [
        ({"model": "cotformer_full_depth"}, ["--routed"], "cotformer_full_depth routes no tokens"),
        (
            {"dataset": "owt2", "data_dir": "/gone"},
            ["--need_data", "--data_dir", "/neither"],
            (
                r"its dataset owt2 is neither in /gone/openwebtext2, where it was trained, nor in"
                r" /neither/openwebtext2 \(DATA_DIR\)"
            ),
        ),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_it_is_queued(
    tmp_path: Path, recorded: dict[str, str], words: list[str], problem: str
) -> None:
    path = checkpoint(tmp_path / "ckpt.pt", 60, **recorded)
    with pytest.raises(UserError, match=problem):
        targets.run([*words, "--", str(path)])


def test_a_damaged_final_file_is_passed_over(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (experiment / "ckpt.pt").write_bytes(b"torn")
    assert chosen(capsys, "--", experiment) == [("0", "50", "ckpt_50.pt", "")]


@pytest.mark.parametrize(
    ("recorded", "expected"), [("/gone", True), (None, True), (str(PEER / "datasets"), False)]
)
def test_data_that_are_not_where_they_were_are_read_below_data_dir(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recorded: str | None, expected: bool
) -> None:
    path = checkpoint(tmp_path / "ckpt_5.pt", 5, dataset="openwebtext2", data_dir=recorded)
    (row,) = chosen(capsys, "--data_dir", PEER / "datasets", "--", path)
    assert row[3] == (str(PEER / "datasets") if expected else "")


def test_an_authors_checkpoint_has_its_data_named_in_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"itr": 5}, tmp_path / "ckpt_5.pt")
    (tmp_path / "summary.json").write_text(json.dumps({"args": {"dataset": "owt2"}}))
    assert targets.run(["--data_dir", str(PEER / "datasets"), "--", str(tmp_path / "ckpt_5.pt")]) == 0
    said = capsys.readouterr()
    assert (
        said.out.endswith(f"{PEER / 'datasets'}\0")
        and said.err.startswith("note: ")
        and "below DATA_DIR" in said.err
    )


# the words of a job script


def parsed(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Labels, checkpoints, steps, words and flags of a call, and the words that a job gets."""
    script = (
        f'source {ROOT}/iridis/lib.sh; parse_options "$@"; RUN_DIR=/r; segment_words\nprintf "%s|"'
        ' "${LABELS[*]}" "${CHECKPOINTS[*]}" "${STEPS[*]}" "${WORDS[*]}" "${FLAGS[*]}"; echo;'
        ' printf "%s " "${SEGMENT[@]:4}"'
    )
    return subprocess.run(
        ["bash", "-c", script, "bash", *words], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "words",
    [["--checkpoint", "v1=/a/b=c", "v-2.x=/d"], ["--checkpoint", "v1=/a/b=c", "--checkpoint", "v-2.x=/d"]],
)
def test_checkpoints_have_labels(tmp_path: Path, words: list[str]) -> None:
    said = parsed(*words, "word", "--steps", "40", "60", "--", "--flag", cwd=tmp_path).stdout.splitlines()
    assert said == [
        "v1 v-2.x|/a/b=c /d|40 60|word|--flag|",
        "--checkpoint v1=/a/b=c --checkpoint v-2.x=/d --steps 40 60 word -- --flag ",
    ]


def test_what_is_there_by_the_whole_word_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "lr=0.1").mkdir()
    assert parsed("--checkpoint", "lr=0.1", f"{tmp_path}/b", cwd=tmp_path).stdout.startswith(
        f" |{tmp_path}/lr=0.1 {tmp_path}/b|"
    )


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--checkpoint", "a=/x", "--checkpoint", "a=/y"], "the label of another"),
        (["--checkpoint", "a=/x", "/y"], "label every checkpoint or none"),
        (["--checkpoint", "done=/x"], "take another label"),
        (["--steps", "many"], "--steps many"),
        (["--steps"], "--steps needs a value"),
    ],
)
def test_labels_and_steps_that_cannot_be_are_a_line(tmp_path: Path, words: list[str], part: str) -> None:
    done = parsed(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and part in done.stderr
