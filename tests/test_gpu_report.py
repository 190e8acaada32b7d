"""`python -m report gpu`: runs of bench/gpu.sh side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.rows import row
from report.__main__ import main
from report.gpu import cell


def run_file(path: Path, name: str, *rows: dict[str, Any], **changes: Any) -> Path:
    machine = {"name": name, "torch": "2.13.0"}
    content = {
        "format": 1,
        "machine": machine,
        "rows": [{"part": "checks", **each} for each in rows],
        **changes,
    }
    path.write_text(json.dumps(content))
    return path


SPEED = {"unit": "tokens/s", "target": "at least 3"}


def test_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_file(
        tmp_path / "a.json", "H100", row("equal", "PASS"), row("speed", "PASS", 12345.6, **SPEED)
    )
    second = run_file(
        tmp_path / "b.json", "L4", row("equal", "FAIL", note="off by 2"), row("nccl", "SKIPPED", note="1 GPU")
    )
    assert main(["gpu", str(first), f"small={second}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| part | row | target | a.json: H100, torch 2.13.0 | small: L4, torch 2.13.0 |"
    assert lines[2:5] == [
        "| checks | equal |  | PASS | FAIL, off by 2 |",
        "| checks | speed | at least 3 | PASS, 12,346 tokens/s | not tried |",
        "| checks | nccl |  | not tried | SKIPPED, 1 GPU |",
    ]
    assert lines[-1] == "small: 1 FAIL, 1 SKIPPED"


def test_a_judged_figure_is_told_with_its_value_and_note() -> None:
    judged = row("share", "FAIL", 0.412, "of the rate", "at least 0.45", "compiled")
    assert cell(judged) == "FAIL, 0.412 of the rate, compiled"


def test_a_verdict_without_a_figure_is_told_alone() -> None:
    assert cell(row("equal", "PASS", 0.01, note="off by 0.01")) == "PASS"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ('{"format": 2, "machine": {}, "rows": []}', "is no file of bench/gpu.sh"),
        ('{"format": 1, "machine": {}, "rows": [{"part": "a"}]}', "is damaged"),
    ],
)
def test_other_files_are_refused_in_a_line(
    tmp_path: Path, content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(SystemExit) as ended:
        main(["gpu", str(tmp_path / "bad.json")])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in told and told.count("\n") == 1


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["gpu", str(tmp_path / "none.json")])
    assert ended.value.code == 2
