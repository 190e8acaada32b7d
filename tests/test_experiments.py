"""docs/experiments.md: the committed page is what its generator makes, and each of its commands trains the
model of its line.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

import config
from report import experiments
from report.paper import paper
from report.rows import ROWS, Row, rows_of
from tests.programs import PEER, ROOT
from tests.summaries import evaluation

# of base-train, whose words are checked in test_graph.py, one of each form
COMMANDS = {
    row.command: row
    for row in reversed(ROWS)
    if row.package != "base-train" or row.job.endswith((" 12", " 12x6", " cot 12x15"))
}


def test_the_page_is_what_its_generator_makes() -> None:
    assert (ROOT / "docs" / "experiments.md").read_text() == experiments.markdown(), (
        "python -m report.experiments --output docs/experiments.md"
    )


def test_each_row_has_a_line_with_its_command() -> None:
    lines = [
        line for line in experiments.markdown().splitlines() if line.startswith("| ") and "job.sh" in line
    ]
    assert [line.split("`")[1] for line in lines] == [row.command for row in ROWS]


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(row, id=command) for command, row in COMMANDS.items()])
def test_the_command_trains_the_model_of_its_line(row: Row, quick_venv: Path, tmp_path: Path) -> None:
    env = {
        **os.environ,
        "VENV_DIR": str(quick_venv),
        "USE_CONDA": "no",
        "WANDB": "0",
        "SCRATCH_DIR": str(tmp_path),
        "DATASET": "openwebtext2",
        "DATA_DIR": str(PEER / "datasets"),
    }
    done = subprocess.run(
        ["bash", "-c", f"{row.command} --local --dry-run"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (words,) = [
        shlex.split(line)[2:] for line in done.stdout.splitlines() if line.startswith("python main.py ")
    ]
    args = config.parse_args(words)
    shown = experiments.flag_words(row).split()
    assert config.parse_args(words + shown) == args  # the line's flags are the command's
    assert row in rows_of(args, args.iterations) and args.iterations == row.steps
    assert args.batch_size * args.acc_steps == 128


def test_stick_breaking_is_trained_in_the_published_cut_of_a_batch() -> None:
    """Its loss depends on the cut."""
    row = next(row for row in ROWS if row.label == "Stick breaking")
    text = (ROOT / "iridis" / "ablation-train" / "job.sh").read_text()
    assert f'"${{BATCH_SIZE:={row.args().batch_size}}}" "${{ACC_STEPS:={row.args().acc_steps}}}"' in text


@pytest.mark.parametrize(
    ("label", "key"),
    [
        ("+ layer norm (LN-CoTFormer)", "ln_cotformer_40k"),
        ("Adaptive, full compute, 60k steps", "adaptive_60k"),
    ],
)
def test_the_forecast_of_a_timed_training_is_its_time(label: str, key: str) -> None:
    row = next(row for row in ROWS if row.label == label)
    assert experiments.gpu_hours(row) == pytest.approx(2 * paper()["rerun_on_l4"]["wall_hours_2xL4"][key])


def test_our_values_stand_in_their_lines_and_others_are_not_taken_for_them(tmp_path: Path) -> None:
    evaluation(tmp_path / "a", 27.5, model="cot", n_layer=12, n_repeat=3)
    evaluation(tmp_path / "b", 90.0, model="base", n_layer=12, iterations=10)
    lines = {
        line.split(" | ")[0]: line
        for line in experiments.markdown([tmp_path]).splitlines()
        if line.startswith("| ")
    }
    assert lines["| CoTFormer 12x3"].endswith("| 27.50 | 27.10 to 27.90 |")
    assert lines["| Standard 12"].endswith(
        "| 90.00 | 89.60 to 90.40 (not comparable: steps 10 instead of 40,000) |"
    )


def test_the_page_is_written_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiments.main(["--output", str(tmp_path / "page.md")]) == 0
    assert experiments.main([]) == 0
    assert (tmp_path / "page.md").read_text() == capsys.readouterr().out


def test_a_folder_without_evaluations_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        experiments.main([str(tmp_path), "--output", str(tmp_path / "page.md")])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "page.md").exists()
