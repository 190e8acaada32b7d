"""python -m report trajectory: a training beside the paper's values and the re-run's, and the line of
status.py on that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import status
from report.__main__ import main
from report.paper import paper
from report.rows import ROWS
from report.trajectory import flags_of, remark, yardstick_of
from tests.programs import ROOT
from tests.summaries import DEEP, flags, write

COT: dict[str, Any] = {"model": "cot", "n_layer": 12, "n_repeat": 2}


def evaluated(step: int, perplexity: float, kind: str = "eval") -> dict[str, Any]:
    return {"kind": kind, "step": step, "val_pp": perplexity, "val_loss": 3.0, "n_tokens": 49152}


def experiment(folder: Path, *rows: dict[str, Any], **args: Any) -> Path:
    """A training in progress, whose flags only a checkpoint tells."""
    write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    step = rows[-1]["step"]
    recorded = flags(**{**COT, **args})
    write(
        folder / "status.json",
        {"state": "stopped", "itr": step, "iterations": recorded["iterations"], "reason": "time limit"},
    )
    torch.save(
        {"model": {"weight": torch.zeros(2)}, "itr": step, "args": recorded}, folder / f"ckpt_{step}.pt"
    )
    return folder


def told(capsys: pytest.CaptureFixture[str], folder: Path) -> list[str]:
    assert main(["trajectory", str(folder), "--output", str(folder / "out")]) == 0
    return capsys.readouterr().out.splitlines()


def test_each_trajectory_is_of_a_row_and_ends_near_its_final_value() -> None:
    kept = paper()["rerun_on_l4"]
    keys = set(kept["trajectories"]) - {"n_tokens", "steps"}
    assert keys and keys <= {row.rerun for row in ROWS}
    for key in keys:
        assert kept["trajectories"][key][-1] == pytest.approx(kept[key]["perplexity"], abs=0.2)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table} {row.label}")
def test_every_model_of_the_paper_has_its_lines_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any
) -> None:
    """Also those of which the paper or the re-run tells no value."""
    shape = {name: value for name, value in vars(row.args()).items() if value is not None}
    assert any(
        "step 900" in line
        for line in told(capsys, experiment(tmp_path / "run", evaluated(900, 60.0), **shape))
    )


@pytest.mark.parametrize(
    ("step", "perplexity"),
    [
        (5999, None),
        (6000, 55.8),
        (14142, pytest.approx((43.7 * 34.9) ** 0.5, abs=0.01)),
        (40000, 27.4),
        (40001, None),
    ],
)
def test_between_two_points_the_re_run_is_on_a_power_law(step: int, perplexity: float | None) -> None:
    args = flags_of(flags(**COT))
    assert args is not None
    yardstick = yardstick_of(args)
    assert yardstick is not None and yardstick.at(step) == perplexity


def test_it_is_told_where_the_re_run_was_at_each_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(
        capsys,
        experiment(tmp_path / "run", evaluated(6000, 60.0), evaluated(10000, 45.0), evaluated(14000, 38.9)),
    )
    assert lines[0].endswith("run: CoTFormer 12x2, step 14,000 of 40,000")
    assert (
        lines[1]
        == "the paper's model had 27.55 +- 0.02 after 40,000 steps; a re-run had 27.53 [26.87, 28.20]"
    )
    assert [line for line in lines if line.startswith("at step")] == [
        "at step  6,000 you are at 60.00, the re-run of this model was at 55.80 there",
        "at step 10,000 you are at 45.00, the re-run of this model was at 43.70 there",
        "at step 14,000 you are at 38.90, the re-run of this model was at about 39.18 there",
    ]


def test_the_numbers_behind_the_picture_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(
        capsys,
        experiment(
            tmp_path / "run", evaluated(6000, 60.0), evaluated(40000, 28.0), evaluated(40000, 27.9, "final")
        ),
    )
    data = json.loads((tmp_path / "run" / "out" / "trajectory_run.json").read_text())
    assert (data["curve"], data["final"], data["paper"]) == (
        [[6000, 60.0], [40000, 28.0]],
        [[40000, 27.9]],
        27.55,
    )
    assert (tmp_path / "run" / "out" / "trajectory_run.png").stat().st_size > 10000


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"iterations": 60000}, "not comparable on the way: steps 60000 instead of 40000"),
        ({"dataset": "mine"}, "not comparable on the way: data mine instead of openwebtext2"),
        ({"n_layer": 7}, "the paper has no model of this architecture"),
        ({"n_repeat": 5}, "no re-run's values on the way are known"),
    ],
)
def test_what_cannot_be_compared_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: dict[str, Any], said: str
) -> None:
    assert said in "\n".join(told(capsys, experiment(tmp_path / "run", evaluated(6000, 60.0), **args)))


def test_of_two_rows_the_one_with_the_same_depth_embedding_counts() -> None:
    found = {}
    for embedding in (None, "linear_learned"):
        args = flags_of(flags(model="lncot", depth_embedding=embedding, **DEEP))
        assert args is not None
        yardstick = yardstick_of(args)
        assert yardstick is not None
        found[embedding] = yardstick.paper.perplexity
    assert found == {None: 24.11, "linear_learned": 24.17}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"kind": "train", "step": 6000, "loss": 3.0}], "holds no evaluation yet"),
        (None, "no such file or folder"),
    ],
)
def test_what_has_no_curve_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]] | None, said: str
) -> None:
    if rows is not None:
        experiment(tmp_path / "run", *rows)
    with pytest.raises(SystemExit) as stop:
        main(["trajectory", str(tmp_path / "run")])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and said in line


def test_an_experiment_is_found_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    experiment(tmp_path / "owt2" / "cot" / "mine", evaluated(6000, 60.0))
    assert main(["trajectory", "mine", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "trajectory_mine.png").is_file()


# status.py


def noted(capsys: pytest.CaptureFixture[str], folder: Path) -> str | None:
    assert status.main(["--json", str(folder)]) == 0
    return json.loads(capsys.readouterr().out)[0]["yardstick"]


def test_the_status_of_a_training_in_progress_tells_where_the_re_run_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment(tmp_path / "run", evaluated(10000, 45.0))
    line = (
        "CoTFormer 12x2: validation perplexity 45.00 at step 10,000; the re-run had 43.70 there, the paper"
        " 27.55 at the end"
    )
    assert noted(capsys, tmp_path) == line
    assert status.main([str(tmp_path)]) == 0
    assert f"run: {line}" in capsys.readouterr().out.splitlines()
    assert status.main(["--html", str(tmp_path / "page.html"), str(tmp_path)]) == 0
    assert line in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    "args", [{"iterations": 60000}, {"n_layer": 7}, {"n_repeat": 5}, {"dataset": "mine"}, {"batch_size": 4}]
)
def test_status_says_nothing_where_nothing_comparable_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: dict[str, Any]
) -> None:
    experiment(tmp_path / "run", evaluated(10000, 45.0), **args)
    assert noted(capsys, tmp_path) is None


def test_status_says_nothing_of_a_training_whose_checkpoint_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (experiment(tmp_path / "run", evaluated(10000, 45.0)) / "ckpt_10000.pt").write_bytes(b"torn")
    assert noted(capsys, tmp_path) is None


@pytest.mark.parametrize(
    "changed", [{"model": "unknown"}, {"n_layer": "x"}, {"n_repeat": []}, {"acc_steps": None}, {"dataset": 3}]
)
def test_flags_of_another_version_are_no_fault(changed: dict[str, Any]) -> None:
    assert remark({**flags(**COT), **changed}, 10000, 45.0) is None


def test_status_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, status; print(*sorted({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        == "\n"
    )
