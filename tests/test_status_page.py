"""status.py --html: the page and its figures, also of real trainings."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor import draw, read
from tests import programs
from tests.programs import command, folder, train
from tests.statuses import drawn, experiment, metric, page_of, refused, said, segment

pytestmark = pytest.mark.usefixtures("no_programs")


# the page


def test_html_says_what_it_wrote(tmp_path, capsys):
    experiment(tmp_path)
    text = said(["--html", str(tmp_path / "page.html"), str(tmp_path)], capsys)
    assert re.fullmatch(rf"wrote {re.escape(str(tmp_path / 'page.html'))}: 1 experiment, [\d.]+ kB\n", text)


def test_the_page_fetches_nothing(tmp_path, capsys):
    experiment(tmp_path)
    assert not re.search(
        r'<(script|link|img|iframe)|(src|href)="(?!#)|url\((?!#)|@import', page_of(tmp_path, capsys)
    )


def test_the_page_escapes_what_comes_from_files(tmp_path, capsys):
    bad = "<script>&\"'"
    experiment(
        tmp_path,
        "x<script>y$z$",
        state=bad,
        reason=bad,
        job_id=bad,
        segments=[segment(0, 0, 50, reason=bad, job_id=bad)],
    )
    assert "<script" not in page_of(tmp_path, capsys)


def test_the_figure_names_experiment_axes_units_and_curves(tmp_path, capsys):
    experiment(
        tmp_path,
        segments=[segment(0, 0, 20), segment(1, 20, 50)],
        metrics=[metric(10), metric(20), metric(20, "eval"), metric(50)],
    )
    words = {
        "".join(element.itertext()).strip()
        for element in drawn(page_of(tmp_path, capsys)).iter("{http://www.w3.org/2000/svg}text")
    }
    assert words >= {
        "run",
        "loss",
        "nats per token",
        "learning rate",
        "gradient norm",
        "throughput",
        "tokens/s (windows/s, samples/s)",
        "optimiser step",
        "training",
        "validation",
        "next segment",
    }


def test_the_page_lists_the_segments(tmp_path, capsys):
    experiment(
        tmp_path,
        state="stopped",
        segments=[segment(0, 0, 20, reason="wall time"), segment(1, 20, 50, reason="stop file")],
    )
    assert re.search("wall time.*stop file", page_of(tmp_path, capsys), re.DOTALL)


def samples(step: int, *texts: Any) -> dict[str, Any]:
    return {"kind": "sample", "step": step, "samples": [{"prompt": "The ", "text": text} for text in texts]}


def test_the_page_shows_the_last_samples_escaped(tmp_path, capsys):
    experiment(tmp_path, metrics=[metric(10), samples(10, "old"), metric(20), samples(20, "<b>new\n")])
    html = page_of(tmp_path, capsys)
    assert "sample at step 20" in html and r"&lt;b&gt;new\n" in html and "old" not in html


def test_of_many_and_long_samples_the_page_shows_a_few_short_ones(tmp_path, capsys):
    experiment(tmp_path, metrics=[metric(10), samples(10, *["x" * 10_000] * 100)])
    html = page_of(tmp_path, capsys)
    assert "96 more in metrics.jsonl" in html and html.count("xxx") < 4 * 60


def test_samples_of_any_values_are_passed_over(tmp_path, capsys):
    rows = [samples(10, 5, None), samples(20, "kept"), {"kind": "sample", "samples": 3}, {"kind": "sample"}]
    experiment(tmp_path, metrics=[metric(10), *rows, {"kind": "sample", "step": 30, "samples": ["a", 1, {}]}])
    assert "kept" in page_of(tmp_path, capsys)


def test_an_experiment_without_metrics_has_a_chapter(tmp_path, capsys):
    (experiment(tmp_path) / "metrics.jsonl").unlink()
    assert "no metrics.jsonl" in page_of(tmp_path, capsys)


def test_the_newest_row_of_a_step_wins():
    rows = [metric(1, loss=5.0), metric(2, loss=4.0), metric(3, loss=3.0), metric(2, loss=2.0, extension=1)]
    assert draw.curves(rows, ["loss"])["loss"] == draw.Curve([1, 2, 3], [5.0, 2.0, 3.0])


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20_000), st.integers(0, 19_999))
@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.large_base_example, HealthCheck.data_too_large, HealthCheck.too_slow],
)
def test_a_long_curve_is_thinned_and_keeps_its_spikes(values, spike):
    values += [0.0] * (20_000 - len(values))
    values[spike] = 1e6
    thinned = draw.thin(draw.Curve([*range(20_000)], values))
    assert len(thinned) <= draw.POINTS
    assert (spike, 1e6) in zip(thinned.steps, thinned.values, strict=True)
    assert thinned.steps == sorted(thinned.steps)


def test_a_page_must_be_a_file_in_a_folder(tmp_path, capsys):
    experiment(tmp_path)
    assert "must be a file in a folder that is there" in refused(
        ["--html", str(tmp_path / "no" / "page.html"), str(tmp_path)], capsys
    )


# long and real runs


def test_a_long_run_is_looked_at_quickly(tmp_path):
    experiment(tmp_path, metrics=[metric(step) for step in range(60_000)] + [metric(60_000, "eval")])
    begin = time.perf_counter()
    read.survey([tmp_path])
    assert time.perf_counter() - begin < 0.5


@pytest.fixture(scope="module")
def stopped_and_resumed(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """What status.py says of a real training after a stop and after its end, and its results folder."""
    base = tmp_path_factory.mktemp("real")
    process = programs.start(command(base))
    while not list(base.glob("*/*/run/metrics.jsonl")):  # its first row
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate()
    stopped = read.progress_of(folder(base), "run", read.Queue(None), time.time())
    outcome = train(base)
    assert outcome.returncode == 0, outcome.stderr
    return vars(stopped), vars(read.progress_of(folder(base), "run", read.Queue(None), time.time())), base


@pytest.mark.slow
def test_a_real_training_that_was_stopped(stopped_and_resumed):
    row = stopped_and_resumed[0]
    assert row["state"] == "stopped"
    assert 0 < row["step"] < row["iterations"] == 60


@pytest.mark.slow
def test_a_real_training_that_finished(stopped_and_resumed):
    row, summary = (
        stopped_and_resumed[1],
        json.loads((folder(stopped_and_resumed[2]) / "summary.json").read_text()),
    )
    assert (row["state"], row["percent"], row["segments"]) == ("finished", 100, 2)
    assert (row["loss"], row["val_perplexity"]) == (summary["train_loss"][-1], summary["final_val_pp"])


@pytest.mark.slow
def test_the_page_of_a_real_training(stopped_and_resumed, tmp_path, capsys):
    said(["--html", str(tmp_path / "page.html"), str(stopped_and_resumed[2])], capsys)
    assert "next segment" in "".join(drawn((tmp_path / "page.html").read_text()).itertext())
