"""Several evaluations, each with a name: what status.py, its page, the reports and the model card show."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import config
from data.bins import TokenWindows, identity_of_tokens
from data.mixture import MixtureSource
from models import make_model_from_args
from monitor import draw
from optim.card import facts_of
from optim.evaluation import HeldOut, Measured
from optim.evaluations import Best
from optim.fit import fit
from optim.objectives import NextToken
from optim.reader import newest_rows
from optim.reporting import charts
from optim.tracked import HIGHER
from report.__main__ import main as report
from report.collect import collect
from tests.statuses import experiment, metric, page_of, said, seen
from tests.summaries import evaluation, write

pytestmark = pytest.mark.usefixtures("no_programs")

SOURCES = ("wiki", "roam", "primer")


def evaluated(step: int, *names: str, kind: str = "eval", **more: Any) -> list[dict[str, Any]]:
    """A row for each name, with the perplexities 20, 30, 40 and so on."""
    rows = []
    for number, name in enumerate(names):
        values = {"val_loss": 3.0 + number, "val_pp": 20.0 + 10 * number, **more}
        rows.append(metric(step, f"{kind}@{name}" if name else kind, **values))
    return rows


def scored(step: int) -> dict[str, Any]:
    return {"kind": "eval@script", "step": step, "score": 0.25, "time": {"unix": 1.0}}


def track(folder: Path, quantity: str, step: int, value: float = 3.0) -> Path:
    state = {"itr": step, "model": {}, "best": {"quantity": quantity, "value": value, "step": step}}
    torch.save(state, folder / "best.pt")
    return folder


def refused_report(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        report(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# the newest row of each


def newest(path: Path, rows: list[dict[str, Any]], is_over: bool = False) -> dict[str, int]:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return {name: row["step"] for name, row in newest_rows(path, [], is_over)[1].items()}


def test_an_evaluation_that_is_still_to_come_has_its_last_row(tmp_path: Path) -> None:
    rows = [*evaluated(10, *SOURCES), *evaluated(20, *SOURCES), metric(25), *evaluated(30, "wiki")]
    assert newest(tmp_path / "m", rows) == {"wiki": 30, "roam": 20, "primer": 20}


def test_names_keep_their_order_however_far_from_the_end(tmp_path: Path) -> None:
    rows = [*evaluated(1, *SOURCES), *evaluated(2, *SOURCES), *map(metric, range(3, 3000))]
    assert list(newest(tmp_path / "m", rows)) == list(SOURCES)


def test_an_evaluation_that_is_no_longer_made_is_left_out(tmp_path: Path) -> None:
    rows = [*evaluated(1, "old"), *(row for step in (2, 3, 4) for row in evaluated(step, "wiki"))]
    assert newest(tmp_path / "m", rows) == {"wiki": 4}


@pytest.mark.parametrize(("is_over", "found"), [(True, {"wiki": 3}), (False, {"old": 1, "wiki": 3})])
def test_the_last_evaluations_of_a_finished_training_are_all(
    tmp_path: Path, is_over: bool, found: dict[str, int]
) -> None:
    rows = [*evaluated(1, "old"), metric(2), *evaluated(3, "wiki", kind="final")]
    assert newest(tmp_path / "m", rows, is_over) == found


# the table


def cell(base: Path, capsys: pytest.CaptureFixture[str], header: str = "val ppl") -> str:
    """What stands in a column of the only experiment."""
    head, row = said([str(base)], capsys).splitlines()[:2]
    return row[: head.index(header) + len(header)].split("  ")[-1].strip()


@pytest.mark.parametrize(
    ("rows", "tracked", "text"),
    [
        (evaluated(40, ""), None, "20.00"),
        (evaluated(40, "wiki"), None, "wiki 20.00"),
        (evaluated(40, *SOURCES), None, "wiki 20.00"),
        (evaluated(40, *SOURCES), "val_loss@roam", "roam 30.00"),
        (evaluated(40, "", "wiki"), "val_loss", "20.00"),
        ([*evaluated(40, "wiki"), scored(40)], "score@script", "wiki 20.00"),
    ],
)
def test_the_table_shows_the_tracked_evaluation_or_the_first(tmp_path, capsys, rows, tracked, text):
    place = experiment(tmp_path, metrics=rows)
    if tracked:
        track(place, tracked, 40)
    assert cell(tmp_path, capsys) == text


def test_all_evaluations_are_told_below_the_table(tmp_path, capsys):
    track(experiment(tmp_path, metrics=evaluated(40, "wiki", "roam")), "val_loss@wiki", 40)
    assert said([str(tmp_path)], capsys).splitlines()[-1] == (
        "run: evaluations at step 40: wiki loss 3.0000, roam loss 4.0000; best.pt: val_loss@wiki 3 at step 40"
    )


def test_an_evaluation_without_a_perplexity_is_told_below_the_table(tmp_path, capsys):
    experiment(tmp_path, metrics=[scored(40)])
    assert said([str(tmp_path)], capsys).splitlines()[-1] == "run: evaluations at step 40: script score 0.25"


def test_bits_per_byte_have_a_column_where_they_are_measured(tmp_path, capsys):
    experiment(tmp_path, metrics=evaluated(40, "", val_bpb=1.234))
    assert cell(tmp_path, capsys, "bpb") == "1.234"
    experiment(tmp_path, metrics=evaluated(40, ""))
    assert "bpb" not in said([str(tmp_path)], capsys)


def test_json_has_every_evaluation(tmp_path, capsys):
    experiment(tmp_path, metrics=[*evaluated(40, "wiki"), scored(40)])
    row = seen(tmp_path, capsys)
    assert (row["evaluation"], row["val_perplexity"]) == ("wiki", 20.0)
    assert row["evaluations"] == {
        "wiki": {"step": 40, "is_final": False, "values": {"val_loss": 3.0, "val_pp": 20.0}},
        "script": {"step": 40, "is_final": False, "values": {"score": 0.25}},
    }


def test_a_summary_alone_tells_its_evaluations(tmp_path, capsys):
    summary = {"args": {"iterations": 60}, "itr": 60, "final_val_pp@wiki": 9.5, "final_val_pp@roam": 8.5}
    write(tmp_path / "run" / "summary.json", summary)
    row = seen(tmp_path, capsys)
    assert (row["evaluation"], row["val_perplexity"], len(row["evaluations"])) == ("wiki", 9.5, 2)


# the page


def drawing_of(*names: str, best: Best | None = None) -> str:
    rows = [metric(step) for step in range(0, 60, 2)]
    for step in range(10, 60, 10):
        rows += evaluated(step, *names)
    return draw.drawing(rows, [], best=best)


def test_each_evaluation_has_a_curve_of_its_own_colour(tmp_path):
    text = drawing_of(*SOURCES)
    styles = re.findall(r'<path class="(e\d+) m" d="M\d+ \d+l', text)
    colors = [re.search(rf"\.{style}, [^}}]*color: (#\w+)", draw.STYLE) for style in styles]
    assert len({match[1] for match in colors if match}) == 3


def test_the_legend_of_many_names_is_in_the_figure_and_none_overlaps_another():
    text = drawing_of(
        *(f"source number {number}" for number in range(12)), best=Best("val_loss", "", 3.0, 20)
    )
    places = re.findall(r'<text x="(\d+)" y="(\d+)">(source number \d+)<', text)
    assert len(places) == 12
    for (x, y, _), (next_x, next_y, _) in pairwise(places):
        assert next_y > y or int(next_x) - int(x) > 28 + 6 * len("source number 1")
    bottom = draw.ROWS[0] + draw.HEIGHT
    assert all(bottom < int(y) < draw.ROWS[1] - 36 and int(x) < draw.FIGURE_WIDTH for x, y, _ in places)


@pytest.mark.parametrize(("tracked", "loss"), [("val_loss@roam", 4.0), ("val_loss@wiki", 3.0)])
def test_the_point_of_the_best_checkpoint_is_marked(tracked, loss):
    quantity, _, name = tracked.partition("@")
    text = drawing_of("wiki", "roam", best=Best(quantity, name, loss, 20))
    match = re.search(
        rf'best.pt: {tracked} {loss:.0f} at step 20</title><path class="o" d="M(\d+) (\d+)a', text
    )
    assert match is not None
    (curve,) = re.findall(rf'<path class="e{int(name == "roam")} m" d="M(\d+) (\d+)l', text)
    assert int(match[2]) == int(curve[1])  # the curve is level
    assert int(match[1]) + draw.RING == pytest.approx(draw.COLUMNS[0] + 20 / 58 * draw.WIDTH, abs=1)


def test_what_the_user_measures_has_a_panel_of_its_own():
    rows = [{**scored(step), "score": step / 10} for step in range(0, 50, 10)]
    body = draw.drawing(rows, [], best=Best("score", "script", 3.0, 30))
    assert re.search(r'<text class="h" x="\d+" y="\d+">score</text>', body)
    assert "best.pt: score@script 3 at step 30" in body
    height = re.search(r"viewBox=\"0 0 1200 (\d+)", draw.figure("run", body, has_frame=False))
    assert height is not None and int(height[1]) > max(map(int, re.findall(r'y="(\d+)"', body)))


def test_an_evaluation_without_a_name_is_drawn_as_ever():
    text = drawing_of("")
    assert 'class="v m"' in text and "<title>" not in text and 'class="e' not in text


def test_names_from_files_are_escaped(tmp_path, capsys):
    experiment(tmp_path, metrics=evaluated(40, "<script>&\"'", "b"))
    assert "<script" not in page_of(tmp_path, capsys)


def test_the_page_has_a_row_for_each_evaluation(tmp_path, capsys):
    track(
        experiment(tmp_path, metrics=[*evaluated(40, *SOURCES, val_bpb=1.5), scored(40)]), "val_loss@wiki", 40
    )
    html = page_of(tmp_path, capsys)
    assert "<tr><th>evaluation<th>step<th>loss<th>perplexity<th>bits per byte<th>score" in html
    assert "<tr><td>roam<td>40<td>4.0000<td>30.00<td>1.5000<td>-" in html
    assert "<tr><td>script<td>40<td>-<td>-<td>-<td>0.25" in html
    assert "best.pt: val_loss@wiki 3 at step 40" in html


def test_the_page_tells_the_shares_of_a_mixture(tmp_path, capsys):
    place = experiment(tmp_path, metrics=evaluated(40, "wiki", "roam"))
    data = {"mixture": {"sampling": "epochs", "weights": {"wiki": 0.8, "roam": 0.2}, "sources": {}}}
    torch.save({"itr": 50, "data": data}, place / "ckpt_50.pt")
    assert "mixture: wiki 80%, roam 20%" in page_of(tmp_path, capsys)


# reports


def compared(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines of the section of losses, without their indentation."""
    assert report(["compare", str(a), str(b)]) == 0
    sections = [part.splitlines() for part in capsys.readouterr().out.strip().split("\n\n")]
    (section,) = (lines for lines in sections if lines[0].startswith("validation"))
    return [line.strip() for line in section[1:]]


def test_losses_are_compared_evaluation_by_evaluation(tmp_path, capsys):
    first = experiment(tmp_path, "a", metrics=[*evaluated(10, "wiki", "roam"), scored(10)])
    second = experiment(
        tmp_path, "b", metrics=[*evaluated(10, "roam", "wiki"), scored(10), *evaluated(10, "x")]
    )
    assert compared(first, second, capsys) == [
        "wiki",
        "step         A         B     B - A",
        "10    3.0000    4.0000   +1.0000  the largest difference of 1 steps",
        "different from the first step in common",
        "roam",
        "step         A         B     B - A",
        "10    4.0000    3.0000   -1.0000  the largest difference of 1 steps",
        "different from the first step in common",
        "script",
        "step 10: score 0.25 | 0.25",
        "only B has x",
    ]


def test_a_mixture_beside_a_single_dataset_has_no_loss_in_common(tmp_path, capsys):
    first = experiment(tmp_path, "a", metrics=evaluated(10, ""))
    second = experiment(tmp_path, "b", metrics=evaluated(10, "wiki", "roam"))
    assert compared(first, second, capsys) == ["only A has validation", "only B has roam, wiki"]


def test_a_trajectory_has_every_evaluation(tmp_path, capsys):
    place = track(experiment(tmp_path, metrics=evaluated(40, *SOURCES)), "val_loss@roam", 40)
    assert report(["trajectory", str(place), "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "perplexity 30.00" in lines[0]
    assert lines[1:4] == [
        "these are of roam",
        "wiki: perplexity 20.00 at step 40",
        "primer: perplexity 40.00 at step 40",
    ]
    data = json.loads((tmp_path / "trajectory_run.json").read_text())
    assert (data["evaluation"], data["curve"], set(data["others"])) == (
        "roam",
        [[40, 30.0]],
        {"wiki", "primer"},
    )


def test_a_trajectory_needs_a_perplexity(tmp_path, capsys):
    line = refused_report(["trajectory", str(experiment(tmp_path, metrics=[scored(40)]))], capsys)
    assert "holds no perplexity during training, only script" in line


def test_the_card_states_the_perplexity_of_each(tmp_path):
    write(tmp_path / "summary.json", {"itr": 60, "final_val_pp@wiki": 9.5, "final_val_pp@roam": 8.25})
    facts = facts_of(tmp_path / "ckpt.pt", {"itr": 60}, config.add_defaults({}))
    assert facts["validation perplexity"] == "9.50 on wiki, 8.25 on roam (summary.json)"


def test_the_summary_of_a_mixture_has_the_perplexity_on_each_source(tmp_path, capsys):
    """As eval.py writes it: beside those of all sources together."""
    for name in ("a", "b"):
        path = evaluation(tmp_path / name, 27.0, model="cot", n_layer=12, dataset="wiki=0.8,roam=0.2")
        sources = {"wiki": {"val_perplexity": 20.5}, "roam": {"val_perplexity": 30.5}}
        write(path, {**json.loads(path.read_text()), "sources": sources})
    assert report(["compare", *(str(tmp_path / name / path.name) for name in ("a", "b"))]) == 0
    assert "     roam: perplexity 30.500" in capsys.readouterr().out.splitlines()
    found = collect([tmp_path])
    assert [one.sources for one in found.evaluations] == [{"wiki": 20.5, "roam": 30.5}] * 2


def test_charts_have_the_names_of_the_evaluations():
    row = {"kind": "eval@wiki", "step": 3, "val_loss": 2.0, "max_grad_norm": 0.5}
    assert charts(row) == {
        "eval/wiki/val_loss": 2.0,
        "val/loss/wiki": 2.0,
        "eval/wiki/max_grad_norm": 0.5,
        "train/max_grad_norm": 0.5,
    }


# a real training


class Score:
    """An evaluation of the user's own, which knows no loss."""

    name = "script"
    quantities: ClassVar = {"score": HIGHER}

    def run(self, whole: bool, should_stop: Any, advanced: Any) -> Measured | None:
        return Measured({"score": 0.5}, "score 0.5")

    def state(self) -> dict[str, Any]:
        return {}

    def take_up(self, state: Any, args: Any) -> None:
        pass

    def summary(self, rows: Any, step: int) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training on a mixture, that evaluates each of its sources."""
    folder = tmp_path_factory.mktemp("mix") / "run"
    shape = {"n_layer": 2, "n_embd": 16, "n_head": 2, "sequence_length": 8, "vocab_size": 32}
    tokens = {name: np.arange(2000, dtype=np.uint16) % (3 + 7 * n) for n, name in enumerate(SOURCES)}
    windows = {name: TokenWindows(each, 8, 32) for name, each in tokens.items()}
    identities = {name: {"train": identity_of_tokens(each)} for name, each in tokens.items()}
    source = MixtureSource(windows, {"wiki": 0.7, "roam": 0.2, "primer": 0.1}, 0, identities=identities)
    network = make_model_from_args(config.add_defaults({"model": "base", **shape}))
    settings = {"batch_size": 4, "eval_batches": 2, "dtype": "float32"}
    args = config.add_defaults({"model": "base", **shape, **settings})

    def evaluations(world: Any) -> list[Any]:
        held = {name: TokenWindows(each[:200], 8, 32) for name, each in tokens.items()}
        own = [HeldOut(args, world, network, held[name], folder, identities[name], name) for name in SOURCES]
        return [*own, Score()]

    fit(
        NextToken(network),
        source,
        steps=12,
        lr=1e-2,
        batch_size=4,
        device="cpu",
        folder=folder,
        evaluations=evaluations,
        eval_freq=4,
        log_freq=4,
        track="val_loss@roam",
    )
    return folder


@pytest.mark.slow
def test_the_page_of_a_real_mixture(real, tmp_path, capsys):
    said(["--html", str(tmp_path / "page.html"), str(real)], capsys)
    html = (tmp_path / "page.html").read_text()
    assert "mixture: primer 10%, roam 20%, wiki 70%" in html
    assert re.findall(r"<title>(\w+): [\d.]+ at step 12, lowest", html) == list(SOURCES)
    summary = json.loads((real / "summary.json").read_text())
    least = min(summary["val_loss@roam"])
    step = summary["steps"]["eval@roam"][summary["val_loss@roam"].index(least)]
    assert f"<title>best.pt: val_loss@roam {least:.6g} at step {step}</title>" in html


@pytest.mark.slow
def test_a_real_mixture_does_not_differ_from_itself(real, capsys):
    lines = compared(real, real, capsys)
    assert [line for line in lines if "equal" in line] == ["equal at all 3 steps in common, 4 to 12"] * 3
    assert lines[-1] == "step 12: score 0.5 | 0.5"
