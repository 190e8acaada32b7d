"""One reader says what an experiment's folder tells: finished, newest checkpoint, speed; and no other
module reads these files to decide.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from errors import UserError
from iridis import preflight
from optim.checkpoint import save_checkpoint
from optim.peek import peek, step_in
from optim.reader import TAILS, Record, advanced, newest_rows, printed
from tests.programs import ROOT, run

# read to show or to plot what stands there, or written; whoever decides something asks optim/reader.py
MAY_NAME_THEM = {"optim/names.py", "optim/reader.py", "optim/experiment.py"}
FILES = ("summary.json", "status.json", "segments.jsonl")


def summary(folder: Path, **values: Any) -> Record:
    (folder / "summary.json").write_text(json.dumps({"args": {"iterations": 40}, "itr": 40, **values}))
    return Record(folder)


@pytest.mark.parametrize(("wanted", "answer"), [(None, True), (40, True), (30, True), (60, False)])
def test_finished_is_for_the_steps_that_are_asked_for(
    tmp_path: Path, wanted: int | None, answer: bool
) -> None:
    assert summary(tmp_path).finished(wanted) is answer


@pytest.mark.parametrize("args", [None, [], {}, {"iterations": "40"}, {"iterations": True}])
def test_a_summary_without_its_steps_is_not_finished(tmp_path: Path, args: Any) -> None:
    assert not summary(tmp_path, args=args).finished()


def test_an_empty_folder_is_a_training_that_has_not_begun(tmp_path: Path) -> None:
    record = Record(tmp_path)
    assert (
        record.finished(),
        record.saved_step,
        record.iterations,
        record.steps_per_hour(),
        record.outcome,
    ) == (False, 0, None, None, None)


@pytest.mark.parametrize(
    ("files", "step"),
    [
        ({"ckpt.pt": 20}, 20),
        ({"ckpt.pt": 20, "ckpt_10.pt": 10}, 20),
        ({"ckpt_30.pt": 30, "ckpt_4.pt": 4}, 30),
        ({"other.pt": 50}, 0),
    ],
)
def test_the_newest_checkpoint_is_known_whatever_its_name(
    tmp_path: Path, files: dict[str, int], step: int
) -> None:
    for name, held in files.items():
        save_checkpoint(tmp_path / name, {"itr": held, "model": {}})
    assert Record(tmp_path).saved_step == step


def test_the_status_remembers_a_checkpoint_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"checkpoint": 30}')
    assert Record(tmp_path).saved_step == 30


def test_steps_an_hour_leave_out_what_a_kill_lost(tmp_path: Path) -> None:
    rows = [
        {"start_step": 0, "end_step": 100, "reached": 100, "seconds": 1800},
        {"start_step": 100, "end_step": 100, "reached": 190, "seconds": 900},
    ]
    (tmp_path / "segments.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Record(tmp_path).steps_per_hour() == 200


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"start_step": 1, "end_step": 2}, True),
        ({"start_step": 2, "end_step": 2}, False),
        ({}, False),
        ({"start_step": "1", "end_step": None}, False),
    ],
)
def test_a_job_has_advanced_if_its_checkpoint_has(row: dict[str, Any], answer: bool) -> None:
    assert advanced(row) is answer


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"half')
    record = Record(tmp_path)
    with pytest.raises(UserError, match=re.escape(name)):
        _ = record.status, record.summary, record.segments


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_noted_where_damage_is_tolerated(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"half\n')
    problems: list[str] = []
    record = Record(tmp_path, problems)
    _ = record.status, record.summary, record.segments
    assert len(problems) == 1 and problems[0].startswith(f"{name}: ")


def test_the_summary_of_a_checkpoint_is_the_one_that_it_had(tmp_path: Path) -> None:
    summary(tmp_path, itr=60)
    (tmp_path / "summary_40.json").write_text('{"itr": 40}')
    record = Record(tmp_path)
    assert [(record.summary_of(name) or {})["itr"] for name in ("ckpt_40.pt", "ckpt_50.pt", "ckpt.pt")] == [
        40,
        60,
        60,
    ]


# what a checkpoint tells without torch


class Hostile:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("trace"),)


def test_a_look_into_a_checkpoint_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "ckpt.pt", {"itr": 3, "model": {}, "x": Hostile()})
    assert step_in(tmp_path / "ckpt.pt") == 3
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("content", [b"", b"text", bytes(1000), b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_checkpoint_tells_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ckpt.pt").write_bytes(content)
    assert peek(tmp_path / "ckpt.pt") is None


def test_a_file_that_is_not_there_tells_nothing(tmp_path: Path) -> None:
    assert step_in(tmp_path / "ckpt.pt") is None


# between Python and shell


def test_values_are_printed_by_name() -> None:
    assert printed({"A": "x = y", "B": None, "C": 3}) == "A=x = y\nB=\nC=3"


def test_a_value_of_more_than_a_line_is_refused() -> None:
    with pytest.raises(UserError, match="line break"):
        printed({"A": "x\nB=y"})


def read_values(names: str, text: str) -> str:
    """What the job library's read_values makes of lines, as `name=value;` for each name."""
    show = "".join(f'printf "{name}=%s;" "${{{name}-unset}}"; ' for name in names.split())
    done = run(["bash", "-c", f'source iridis/lib.sh; read_values {names} <<<"$1"; {show}', "job.sh", text])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_job_library_reads_values_in_any_order_and_passes_over_others() -> None:
    assert (
        read_values("EXPERIMENT STATE", "STATE=finished\nPATH=/evil\nnoise\nEXPERIMENT=/a b/$(touch x)='c'")
        == "EXPERIMENT=/a b/$(touch x)='c';STATE=finished;"
    )


def test_the_preflight_answers_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--model",
        "base",
        "--results_base_folder",
        str(tmp_path),
        "--exp_name",
        "run",
        "--device",
        "cpu",
    ]
    assert preflight.main(["--where", "--", *flags]) == 0
    answers = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert answers["STATE"] == "unfinished" and answers["EXPERIMENT"] == str(
        tmp_path / "slimpajama" / "base" / "run"
    )


def test_the_reader_answers_a_shell_without_torch(tmp_path: Path) -> None:
    summary(tmp_path)
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['reader', sys.argv[1]]\n"
        "import optim.reader; sys.exit(optim.reader.main(sys.argv[1:]))"
    )
    done = run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == 0 and "FINISHED=1\n" in done.stdout, done.stderr


@pytest.mark.parametrize("words", [[], ["missing"]])
def test_the_reader_of_no_folder_says_so_to_a_shell(tmp_path: Path, words: list[str]) -> None:
    done = run([sys.executable, "-m", "optim.reader", *(str(tmp_path / word) for word in words)])
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


# the one home


def test_no_other_module_opens_the_files_that_decide() -> None:
    """A path to one of them is made in three modules; docstrings, comments and messages name them freely."""
    python = (
        r"""/ (?:["'](?:summary|status)\.json["']|["']segments\.jsonl["']|STATUS\b|SEGMENTS\b)"""
        r"""|(?:read_json|load_json|read_text|open)\(.*\b(?:SUMMARY|STATUS|SEGMENTS)\b"""
    )
    shell = r"""(?:\$\w+|\})"?/(?:summary\.json|status\.json|segments\.jsonl)"""
    tracked = run(["git", "ls-files", "-co", "--exclude-standard", "*.py", "*.sh"]).stdout.split()
    ours = [name for name in tracked if not name.startswith(("tests/", "bench/"))]
    assert len(ours) > 80
    found = set()
    for name in ours:
        for line in (ROOT / name).read_text().splitlines():
            if re.search(f"{python}|{shell}", line) and "printf" not in line:
                found.add(name)
    assert found <= MAY_NAME_THEM


# the newest rows of metrics.jsonl


def newest(path: Path, *lines: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The newest training row and the newest evaluation in these lines, and the problems."""
    problems: list[str] = []
    path.write_text("".join(lines))
    train, evaluated = newest_rows(path, problems)
    return [train, evaluated.get("", {})], problems


def line_of(kind: str, step: int, **more: Any) -> str:
    return json.dumps({"kind": kind, "step": step, **more}) + "\n"


@pytest.mark.parametrize("size", [0, *TAILS[:3]])
def test_the_newest_rows_are_found_behind_any_number_of_others(tmp_path: Path, size: int) -> None:
    found, problems = newest(
        tmp_path / "m",
        line_of("eval", 1),
        line_of("train", 2),
        *[line_of("skipped", 3, reason='an "eval"')] * (size // 50),
    )
    assert ([row["step"] for row in found], problems) == ([2, 1], [])


def test_kinds_that_are_not_there_are_empty(tmp_path: Path) -> None:
    assert newest(tmp_path / "m", line_of("train", 1)) == ([{"kind": "train", "step": 1}, {}], [])


def test_a_line_that_is_cut_short_at_the_end_is_passed_over(tmp_path: Path) -> None:
    found, problems = newest(tmp_path / "m", line_of("train", 1), line_of("train", 2)[:-4])
    assert (found[0]["step"], problems) == (1, [])


@pytest.mark.parametrize("damage", ["{]\n", "train\n", '["train"]\n', '{"kind": "train", "step"}\n'])
def test_damage_before_the_end_is_told_and_passed_over(tmp_path: Path, damage: str) -> None:
    found, problems = newest(tmp_path / "m", line_of("train", 1), damage, line_of("eval", 2))
    assert (found[0]["step"], problems) == (1, ["m: 1 of 3 lines are no JSON objects"])
