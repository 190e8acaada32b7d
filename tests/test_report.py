"""python -m report: verdicts, what differs from the paper, what is written, damaged files."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from report import render, rows
from report.__main__ import main
from report.compare import differences, verdict
from tests import summaries
from tests.programs import PEER, ROOT, run
from tests.reports import cot, filled, refused, report_on, row_of
from tests.summaries import DEEP, evaluation, point, training, write

# verdicts and differences


@pytest.mark.parametrize(
    ("value", "interval", "expected"),
    [
        (27.07, (26.8, 27.2), "inside the interval"),
        (27.2, (26.8, 27.2), "inside the interval"),
        (26.8, (26.8, 27.2), "inside the interval"),
        (27.07, (27.5, 28.0), "outside by 0.43"),
        (27.07, (26.0, 26.5), "outside by 0.57"),
    ],
)
def test_verdict(value: float, interval: tuple[float, float], expected: str) -> None:
    assert verdict(value, interval) == expected


def test_verdict_and_difference_of_a_row(tmp_path: Path) -> None:
    cot(tmp_path, 28.0, half=0.5)  # paper: 27.07
    result = row_of(tmp_path)
    assert result.verdict == "outside by 0.43"
    assert result.difference == pytest.approx(0.93)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iterations": 30000}, "steps 30,000 instead of 40,000"),
        ({"dataset": "stdlib"}, "data stdlib instead of openwebtext2"),
        ({"sequence_length": 128}, "evaluated sequence length 128 instead of 256"),
    ],
)
def test_other_steps_data_or_lengths_are_not_comparable(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    cot(tmp_path, 27.07, **change)
    assert row_of(tmp_path).verdict == "not comparable"
    assert words in row_of(tmp_path).decisive


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"acc_steps": 8}, "effective batch 64 instead of 128"),
        ({"lr": 5e-4}, "peak learning rate 0.0005 instead of 0.001"),
        ({"warmup_percent": 0.05}, "warm-up steps 2000 instead of 8000"),
        ({}, "seeds 1 instead of 3"),
        ({"opt": "sgd"}, "optimiser sgd instead of adamw"),
        ({"dropout": 0.1}, "dropout 0.1 instead of the default 0.0"),
        ({"extend": "continue"}, "the schedule was extended (continue) from a shorter training"),
    ],
)
def test_other_settings_are_told(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    cot(tmp_path, **change)
    assert words in row_of(tmp_path).differs


def test_the_papers_own_setting_differs_in_the_seeds_alone(tmp_path: Path) -> None:
    cot(tmp_path)
    assert row_of(tmp_path).differs == ("seeds 1 instead of 3",)


@pytest.mark.parametrize(
    ("label", "change", "told"),
    [
        ("PonderNet", {"ponder_kl_div_loss_weight": 0.01}, "ponder_kl_div_loss_weight 0.01 instead of 0.2"),
        ("Mixture of Repeats", {"disable_ln_mid": False}, "disable_ln_mid False instead of True"),
        ("Stick breaking", {"batch_size": 8, "acc_steps": 16}, "acc_steps 16 instead of the default 4"),
        (
            "Stick breaking",
            {"depth_predictor_loss_coef": 1.0},
            "depth_predictor_loss_coef 1.0 instead of the default None",
        ),
    ],
)
def test_what_table_5_was_trained_with_is_its_setting(
    tmp_path: Path, label: str, change: dict[str, Any], told: str
) -> None:
    row = next(row for row in rows.ROWS if (row.table, row.label) == ("Table 5", label))
    args = {
        name: value
        for name, value in vars(row.args()).items()
        if name not in ("dataset", "iterations", "lr", "warmup_percent")
    }
    evaluation(tmp_path / "as published", 35.0, **args, iterations=10000)
    assert filled(tmp_path)["Table 5", label].differs == ("seeds 1 instead of 3",)
    evaluation(tmp_path / "changed", 30.0, **{**args, **change}, iterations=10000)
    (other,) = report_on(tmp_path).others
    assert (
        told in differences(row, other.group) and filled(tmp_path)["Table 5", label].group.perplexity == 35.0
    )  # type: ignore[union-attr]


def test_the_reruns_remarks_and_batches_stand_beside_its_values(tmp_path: Path) -> None:
    cot(tmp_path / "failed once", n_repeat=5)
    cot(tmp_path / "large batches", n_layer=24, n_repeat=2)
    text = render.markdown(report_on(tmp_path)).partition("<details>")[0]
    assert "- CoTFormer 12x5, re-run: a retraining: the first training of this model ended at 30.48" in text
    assert "| 24.68 to 25.90 (batches of 32) |" in text and "accuracy 0.4000; the re-run's is 0.4071" in text


def test_training_settings_come_from_the_trainings_summary(tmp_path: Path) -> None:
    """An evaluation with --batch_size 64 says nothing about the batch of the training; results may have
    been copied from elsewhere.
    """
    training(tmp_path / "exps" / "owt2" / "cot" / "run", model="cot", n_layer=12, n_repeat=3)
    cot(tmp_path / "evaluations", batch_size=64, checkpoint="/scratch/someone/exps/owt2/cot/run/ckpt.pt")
    assert row_of(tmp_path).differs == ("seeds 1 instead of 3",)
    assert any("2 processes" in line for line in row_of(tmp_path).remarks)


def test_depth_embedding_is_told_beside_table_2(tmp_path: Path) -> None:
    evaluation(tmp_path, 24.2, model="lncot", depth_embedding="linear_learned", **DEEP)
    found = filled(tmp_path)
    assert (
        "depth embedding linear_learned instead of none"
        in found["Table 2", "+ layer norm (LN-CoTFormer)"].differs
    )
    assert ("Table 4", "LN-CoTFormer, depth embedding") in found and (
        "Table 4",
        "LN-CoTFormer, no depth embedding",
    ) not in found


def test_routing_by_capacity_is_told_where_a_model_routes(tmp_path: Path) -> None:
    cot(tmp_path / "cot")
    evaluation(tmp_path / "adm", 24.0, model="adm", iterations=60000, **DEEP)
    told = {
        label: any("later tokens" in line for line in result.remarks)
        for (_, label), result in filled(tmp_path).items()
    }
    assert told == {"CoTFormer 12x3": False, "Adaptive, full compute, 60k steps": True}


# what is written


def test_markdown_latex_and_json_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cot(tmp_path / "in", 27.123)
    assert main([str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--name", "fidelity"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "fidelity.md",
        "fidelity.tex",
        "fidelity.json",
    }
    assert (tmp_path / "out" / "fidelity.md").read_text() == capsys.readouterr().out.removesuffix("\n")
    rows_written = json.loads((tmp_path / "out" / "fidelity.json").read_text())["rows"]
    assert [row["ours"]["perplexity"] for row in rows_written if row["ours"]] == [27.123]


def test_rows_without_an_evaluation_say_so(tmp_path: Path) -> None:
    cot(tmp_path)
    lines = render.markdown(report_on(tmp_path)).splitlines()
    assert sum("not evaluated" in line for line in lines) == len(rows.ROWS) - 1


def test_report_opens_with_the_models_that_were_evaluated(tmp_path: Path) -> None:
    cot(tmp_path / "row")
    cot(tmp_path / "other", n_embd=384)
    text = render.markdown(report_on(tmp_path))
    places = [
        text.index(part) for part in ("CoTFormer 12x3", "width 384", "## How to read this", "not evaluated")
    ]
    assert places == sorted(places) and places[0] < 700
    assert text.startswith("# Fidelity report\n\n## Models of the paper\n\n### Table 1\n\n| model | ours |")


@pytest.mark.parametrize("changes", [{"n_embd": 384}, {}])
def test_rows_that_were_not_evaluated_are_folded(tmp_path: Path, changes: dict[str, Any]) -> None:
    cot(tmp_path, **changes)
    before, _, folded = render.markdown(report_on(tmp_path)).partition("<details>")
    assert "not evaluated" not in before and folded.count("not evaluated") == len(rows.ROWS) - (not changes)
    assert folded.rstrip().endswith("</details>") and folded.count("</details>") == 1


def test_report_of_sweeps_alone_opens_with_them(tmp_path: Path) -> None:
    summaries.curve(tmp_path / "ppl_per_mac.json", "adm", [point(50_000_000_000, 29.5, threshold=0.9)], [])
    assert render.markdown(report_on(tmp_path)).startswith(
        "# Fidelity report\n\n## Perplexity against compute"
    )


def test_markdown_rows_have_as_many_cells_as_their_head(tmp_path: Path) -> None:
    cot(tmp_path / "a|b")
    cot(tmp_path / "x|y", n_embd=384)
    for table in re.findall(r"(?:^\|.*\n)+", render.markdown(report_on(tmp_path)), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_points_at_each_compute_budget_are_listed(tmp_path: Path) -> None:
    summaries.curve(
        tmp_path / "ppl_per_mac.json",
        "adm",
        [point(50_000_000_000, 29.5, threshold=0.9)],
        [point(45_940_000_000, 30.9, passes=1)],
    )
    text = render.markdown(report_on(tmp_path))
    assert "| router, scores of 0.9 and more | 50.00 | 29.50 | 29.20 to 29.80 |" in text
    assert "| fixed depth, 1 pass | 45.94 | 30.90 |" in text


def test_points_of_a_small_model_have_their_work_and_their_interval_against_full_depth(
    tmp_path: Path,
) -> None:
    summaries.curve(
        tmp_path / "ppl_per_mac.json", "adm", [], [point(4_500_000, 15.0, paired=0.001, passes=1)]
    )
    assert "| fixed depth, 1 pass | 0.0045 | 15.00 | 14.70 to 15.30 | 14.985 to 15.015 |" in render.markdown(
        report_on(tmp_path)
    )


def test_latex_specials_are_escaped() -> None:
    assert (
        render.escape_latex("a_b 5% $x$ #1 & {c} ~ ^ \\")
        == r"a\_b 5\% \$x\$ \#1 \& \{c\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )


def test_latex_table_is_well_formed(tmp_path: Path) -> None:
    cot(tmp_path)
    text = render.latex(report_on(tmp_path))
    assert text.count("{") == text.count("}")
    spec = re.search(r"\\begin\{tabular\}\{([lrc]+)\}", text)
    assert spec is not None
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(body) == len(rows.ROWS) + 1
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body} == {len(spec[1])}


# bad input


def test_nothing_to_report_on_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused([str(tmp_path)], capsys) == [
        f"python -m report: error: no eval_summary_*.json and no ppl_per_mac.json below {tmp_path}"
    ]


@pytest.mark.parametrize(
    "words",
    [[], ["/nowhere"], [str(Path(__file__))], [".", "--nam", "x"], [".", "--output"], [".", "--name", "a/b"]],
)
def test_bad_command_lines_are_refused_in_a_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(refused(words, capsys)) == 1


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{oh", "cannot be read"),
        ("[]", "does not hold a JSON object"),
        ("{}", "args is missing"),
        ('{"args": {"model": "bert"}}', "args.model"),
        ('{"args": {"n_layer_begin": 99}}', "n_layer_begin"),
        ("[" * 100000, "cannot be read"),
    ],
)
def test_a_damaged_file_alone_is_named_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, part: str
) -> None:
    path = write(tmp_path / "eval_summary_x.json", content)
    (line,) = refused([str(tmp_path)], capsys)
    assert str(path) in line and part in line


@pytest.mark.parametrize("name", ["val_perplexity", "val_perplexity_ci95", "checkpoint", "n_tokens"])
def test_a_summary_that_lacks_a_number_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = cot(tmp_path, missing=(name,))
    assert refused([str(tmp_path)], capsys)[0].startswith(
        f"python -m report: error: {path}: {name} is missing"
    )


def test_a_number_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = cot(tmp_path)
    path.write_text(path.read_text().replace('"val_perplexity": 27.0', '"val_perplexity": NaN'))
    assert "val_perplexity is nan" in refused([str(tmp_path)], capsys)[0]


def test_a_damaged_file_beside_good_ones_becomes_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cot(tmp_path / "good")
    bad = write(tmp_path / "bad" / "ppl_per_mac.json", "{}")
    assert main([str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines()[0].startswith(f"warning: {bad}:")
    assert (
        "Files that could not be used" in shown.out
        and len(json.loads((tmp_path / "out" / "report.json").read_text())["problems"]) == 1
    )


def test_a_damaged_training_summary_becomes_a_note(tmp_path: Path) -> None:
    cot(tmp_path, checkpoint=str(tmp_path / "ckpt.pt"))
    write(tmp_path / "summary.json", "{")
    assert row_of(tmp_path).group is not None
    assert len(report_on(tmp_path).problems) == 1


def test_help_needs_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys\nfrom report.__main__ import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n   "
        " print(*sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "RESULTS_FOLDER" in shown and shown.splitlines()[-1] == ""


@pytest.mark.slow
def test_a_real_evaluation_is_reported_with_its_own_numbers(tmp_path: Path) -> None:
    """eval.py on two of the authors' checkpoints, then the report as a program."""
    for name in ("official_cot_res", "official_adm"):
        checkpoint = next(PEER.glob(f"exps/*/*/{name}/ckpt.pt"))
        done = run(
            [
                sys.executable,
                "eval.py",
                "--checkpoint",
                str(checkpoint),
                "--data_dir",
                str(PEER / "datasets"),
                "--device",
                "cpu",
                "--output_dir",
                str(tmp_path / "in" / name),
            ]
        )
        assert done.returncode == 0, done.stderr
    done = run([sys.executable, "-m", "report", str(tmp_path / "in"), "--output", str(tmp_path / "out")])
    assert done.returncode == 0, done.stderr
    others = json.loads((tmp_path / "out" / "report.json").read_text())["other_models"]
    losses = {other["model"]: other["evaluations"][0]["loss"] for other in others}
    assert losses == {
        "CoTFormer, 1+2x3+1 layers, width 32": pytest.approx(2.8797529, abs=1e-5),
        "Adaptive LN-CoTFormer, 1+2x3+1 layers, width 32": pytest.approx(2.7259412, abs=1e-5),
    }
    assert f"{math.exp(2.8797529):.2f}" in done.stdout and f"{math.exp(2.7259412):.2f}" in done.stdout


def test_an_evaluation_of_one_window_has_no_interval(tmp_path: Path) -> None:
    path = cot(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"val_perplexity_ci95": None}))
    assert "none: one window" in render.markdown(report_on(tmp_path))


def test_two_trainings_of_one_seed_are_both_in_the_report(tmp_path: Path) -> None:
    cot(tmp_path / "v1", 24.07, age=60, checkpoint="/exps/owt2/cot/v1/ckpt.pt")
    cot(tmp_path / "v2", 24.06, checkpoint="/exps/owt2/cot/v2/ckpt.pt")
    report = report_on(tmp_path)
    (other,) = report.others
    assert other.group.first.perplexity == 24.07 and "the same seed was evaluated later" in other.reason


def test_of_one_checkpoint_the_newest_evaluation_alone_counts(tmp_path: Path) -> None:
    cot(tmp_path / "first", 24.07, age=60, checkpoint="/exps/owt2/cot/v1/ckpt.pt")
    cot(tmp_path / "again", 24.06, checkpoint="/exps/owt2/cot/v1/ckpt.pt")
    assert report_on(tmp_path).others == []
