"""Figures 2, 3 and 5, and what holds for all figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plot_fig2
import plot_fig3
import plot_fig4
import plot_fig5
from report.paper import paper
from tests.figures import draw, figure_inputs, refused
from tests.programs import ROOT
from tests.summaries import evaluation, weights, write

pytestmark = pytest.mark.slow  # a second for each picture
PROGRAMS = {2: plot_fig2, 3: plot_fig3, 4: plot_fig4, 5: plot_fig5}
COUNTED = {
    row["name"]: row["macs"]
    for row in json.loads((ROOT / "tests" / "data" / "reference" / "macs.json").read_text())
    if row["T"] == 256
}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[int, list[Path]]:
    return figure_inputs(tmp_path)


# all figures


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no backend"])
def test_settings_of_a_notebook_change_nothing(tmp_path: Path, backend: str) -> None:
    (tmp_path / "matplotlibrc").write_text(
        "text.usetex: True\nbackend: TkAgg\nsavefig.bbox: tight\nfigure.facecolor: red\naxes.grid: False\n"
    )
    outcome = subprocess.run(
        [sys.executable, str(ROOT / "plot_fig3.py"), "--output_dir", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MPLBACKEND": backend},
    )
    assert outcome.returncode == 0, outcome.stderr
    draw(plot_fig3, [], tmp_path / "plain")
    assert (tmp_path / "out" / "fig3.png").read_bytes() == (tmp_path / "plain" / "fig3.png").read_bytes()


@dataclass
class Drawn:
    number: int
    words: list[Path]
    folder: Path
    data: dict[str, Any]  # what stands beside the picture

    def figure(self) -> Any:
        return PROGRAMS[self.number].draw(self.data)


@pytest.fixture(scope="module", params=PROGRAMS)
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """Each figure, drawn once."""
    base = tmp_path_factory.mktemp("drawn")
    words = figure_inputs(base)[request.param]
    return Drawn(request.param, words, base / "out", draw(PROGRAMS[request.param], words, base / "out"))


@pytest.mark.essential
def test_picture_vector_and_data_are_saved(drawn: Drawn) -> None:
    png, pdf = ((drawn.folder / f"fig{drawn.number}.{suffix}").read_bytes() for suffix in ("png", "pdf"))
    assert png.startswith(b"\x89PNG") and len(png) > 20_000
    assert pdf.startswith(b"%PDF") and pdf.rstrip().endswith(b"%%EOF") and len(pdf) > 8_000


def test_the_width_is_that_of_a_paper(drawn: Drawn) -> None:
    header = (drawn.folder / f"fig{drawn.number}.png").read_bytes()[16:24]
    assert int.from_bytes(header[:4], "big") in (990, 2025)  # 3.3 or 6.75 inches at 300 dots an inch


def test_drawing_again_replaces_the_files_with_the_same_bytes(drawn: Drawn) -> None:
    before = {path.name: path.read_bytes() for path in drawn.folder.iterdir()}
    draw(PROGRAMS[drawn.number], drawn.words, drawn.folder)
    assert {path.name: path.read_bytes() for path in drawn.folder.iterdir()} == before
    assert len(before) == 3


def test_axes_are_labelled_and_the_figure_has_a_title_and_a_legend(drawn: Drawn) -> None:
    figure = drawn.figure()
    assert figure.get_suptitle() and figure.legends
    for axis in figure.axes:
        spec = axis.get_subplotspec()
        assert axis.get_xlabel() or not spec.is_last_row()
        assert axis.get_ylabel() or not spec.is_first_col()


def test_no_letter_is_smaller_than_eight_points(drawn: Drawn) -> None:
    from matplotlib.text import Text

    assert min(text.get_fontsize() for text in drawn.figure().findobj(Text) if text.get_text()) >= 8


@pytest.mark.parametrize("number", PROGRAMS)
def test_an_output_folder_that_cannot_be_made_is_a_line(
    tmp_path: Path, inputs: dict[int, list[Path]], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = write(tmp_path / "a_file", "x")
    assert str(blocked) in refused(PROGRAMS[number], [*inputs[number], "--output_dir", blocked], capsys)


@pytest.mark.parametrize("number", PROGRAMS)
def test_help_needs_no_matplotlib(number: int) -> None:
    code = (
        f"import sys, plot_fig{number}\ntry:\n    plot_fig{number}.main(['--help'])\n"
        "except SystemExit:\n    print('loaded:', *sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert shown.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (2, ["/nowhere"]),
        (3, ["pyproject.toml"]),
        (4, []),
        (4, ["/nowhere"]),
        (5, []),
        (5, ["/nowhere"]),
        (4, ["report"]),
        (5, ["report"]),
        (3, ["--output"]),
    ],
)
def test_missing_input_and_unknown_flags_are_a_line(
    number: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(PROGRAMS[number], words, capsys).startswith(f"plot_fig{number}.py")


# figure 2


def test_figure_2_shows_table_1_and_more_repeats_over_the_counted_work(tmp_path: Path) -> None:
    drawn = {(point["family"], point["size"]): point for point in draw(plot_fig2, [], tmp_path)["paper"]}
    assert len(drawn) == 17
    assert drawn["Block Universal", "12x15"]["perplexity"] == 26.85
    for family, size, name in (
        ("Standard", "24", "base_24"),
        ("Block Universal", "12x5", "but_12x5"),
        ("CoTFormer", "12x3", "cot_12x3"),
    ):
        assert drawn[family, size]["macs"] == COUNTED[name]
    assert drawn["CoTFormer", "12x3"]["perplexity"] == paper()["table1"]["cotformer"]["12x3"][0]


def test_figure_2_puts_our_evaluations_on_top(tmp_path: Path, inputs: dict[int, list[Path]]) -> None:
    (ours,) = draw(plot_fig2, inputs[2], tmp_path / "out")["ours"]
    assert (ours["family"], ours["size"], ours["perplexity"], ours["interval_over_windows"]) == (
        "CoTFormer",
        "12x3",
        27.0,
        [26.6, 27.4],
    )
    assert ours["macs"] == COUNTED["cot_12x3"]


def test_figure_2_leaves_out_what_cannot_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation(tmp_path / "in", 60.0, model="cot", n_layer=12, n_repeat=3, iterations=100)
    assert draw(plot_fig2, [tmp_path / "in"], tmp_path / "out")["ours"] == []
    assert "left out: CoTFormer 12x3, steps 100 instead of 40,000" in capsys.readouterr().out


def test_figure_2_refuses_folders_without_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no eval_summary_*.json" in refused(plot_fig2, [tmp_path], capsys)


# figure 3


def test_figure_3_counts_are_those_of_the_authors_models(tmp_path: Path) -> None:
    data = draw(plot_fig3, [], tmp_path)
    at_256 = {one["label"]: one["macs"][data["lengths"].index(256)] for one in data["curves"]}
    assert (at_256["Standard 24"], at_256["Block Universal 12x5"], at_256["CoTFormer 12x3"]) == (
        COUNTED["base_24"],
        COUNTED["but_12x5"],
        COUNTED["cot_12x3"],
    )
    assert (data["lengths"][0], data["lengths"][-1]) == (256, 12288)


# figure 5


def test_figure_5_counts_are_numpys(tmp_path: Path) -> None:
    values = np.random.default_rng(1).beta(2, 5, (5000, 4)).astype(np.float32)
    data = draw(plot_fig5, [weights(tmp_path / "router_weights_ckpt.npz", values)], tmp_path / "out")
    (drawn,) = data["rows"][0]["files"]
    for repeat in range(4):
        assert drawn["counts"][repeat] == np.histogram(values[:, repeat], bins=50, range=(0, 1))[0].tolist()
    assert [sum(counts) for counts in drawn["counts"]] == [5000] * 4


def test_figure_5_draws_the_shares_of_the_counts(tmp_path: Path) -> None:
    from matplotlib.patches import StepPatch

    data = draw(
        plot_fig5,
        [weights(tmp_path / "router_weights_ckpt.npz", [[0.1], [0.1], [0.1], [0.9]])],
        tmp_path / "out",
    )
    shares = plot_fig5.draw(data).axes[0].findobj(StepPatch)[0].get_data().values
    assert sorted(shares)[-2:] == [25.0, 75.0] and sum(shares) == 100


def test_figure_5_has_a_row_for_each_cascade_and_says_which_is_right(tmp_path: Path) -> None:
    files = [
        weights(tmp_path / f"router_weights_ckpt_{name}.npz", np.full((10, 2), 0.5), name)
        for name in ("token", "raw", "position", "device")
    ]
    data = draw(plot_fig5, files, tmp_path / "out")
    assert [row["cascade"] for row in data["rows"]] == ["raw", "device", "position", "token"]
    labels = [axis.get_ylabel() for axis in plot_fig5.draw(data).axes[::2]]
    assert (
        "the authors' code here" in labels[1] and "top-k sorted" in labels[2] and "the right one" in labels[3]
    )


@pytest.mark.parametrize(("scale", "same"), [("all", True), ("row", False)])
def test_figure_5_has_one_scale_in_all_panels_unless_told_otherwise(
    tmp_path: Path, scale: str, same: bool
) -> None:
    files = [
        weights(tmp_path / "router_weights_raw.npz", np.linspace(0.0, 1, 100)[:, None], "raw"),
        weights(tmp_path / "router_weights_token.npz", np.full((100, 1), 0.5), "token"),
    ]
    first, second = plot_fig5.draw(draw(plot_fig5, files, tmp_path / "out"), scale).axes
    assert (first.get_ylim() == second.get_ylim()) is same


def test_figure_5_has_labels_and_steps_in_its_legend(tmp_path: Path) -> None:
    files = [
        weights(tmp_path / name / f"router_weights_{itr}.npz", np.full((10, 2), 0.5), itr=itr)
        for name in "ab"
        for itr in (40000, 60000)
    ]
    words = [f"v{number}={path}" for number, path in zip((1, 1, 2, 2), files, strict=True)]
    figure = plot_fig5.draw(draw(plot_fig5, words, tmp_path / "out"))
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["v1, 40,000 steps", "v1, 60,000 steps", "v2, 40,000 steps", "v2, 60,000 steps"]


def test_figure_5_tells_a_position_cascade_of_an_earlier_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = weights(tmp_path / "router_weights_position.npz", [[0.5]], "position")
    new = weights(tmp_path / "new" / "router_weights_position.npz", [[0.5]], "position", device="cpu")
    draw(plot_fig5, [old, new], tmp_path / "out")
    (line,) = capsys.readouterr().err.splitlines()
    assert str(old) in line and "earlier version" in line


def test_figure_5_has_one_scale_in_a_row(tmp_path: Path) -> None:
    values = np.stack([np.linspace(0.0, 1, 100), np.full(100, 0.5)], axis=1)
    data = draw(plot_fig5, [weights(tmp_path / "router_weights_ckpt.npz", values)], tmp_path / "out")
    first, second = plot_fig5.draw(data).axes
    assert first.get_ylim() == second.get_ylim() and first.get_ylim()[1] >= 100


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.43, 0.61), (0.7, 0.7), (0.5, 0.503), (1.0, 1.0), (0.0, 0.0)]
)
def test_figure_5_axes_start_and_end_at_the_scores(tmp_path: Path, low: float, high: float) -> None:
    data = draw(
        plot_fig5,
        [weights(tmp_path / "router_weights_ckpt.npz", np.linspace(low, high, 1000)[:, None])],
        tmp_path / "out",
    )
    left, right = plot_fig5.draw(data).axes[0].get_xlim()
    width = data["edges"][1]
    assert left <= low + 1e-6 and left > low - 1.001 * width and high - 1e-6 <= right < high + 1.001 * width
    assert sum(data["rows"][0]["files"][0]["counts"][0]) == 1000


def test_figure_5_shows_the_shape_of_scores_that_lie_close_together(tmp_path: Path) -> None:
    data = draw(
        plot_fig5,
        [weights(tmp_path / "router_weights_ckpt.npz", np.linspace(0.45, 0.55, 1000)[:, None])],
        tmp_path / "out",
    )
    assert sum(count > 0 for count in data["rows"][0]["files"][0]["counts"][0]) >= 25


def test_figure_5_says_in_plain_words_what_a_score_and_a_panel_are(tmp_path: Path) -> None:
    data = draw(
        plot_fig5, [weights(tmp_path / "router_weights_ckpt.npz", np.full((10, 2), 0.5))], tmp_path / "out"
    )
    figure = plot_fig5.draw(data)
    assert [axis.get_title() for axis in figure.axes] == ["after pass 1 of 3", "after pass 2 of 3"]
    assert "0 (stop) to 1 (go on to the next pass)" in figure.get_suptitle()


def test_figure_5_compares_checkpoints_in_one_panel(tmp_path: Path) -> None:
    files = [
        weights(tmp_path / f"router_weights_ckpt_{itr}.npz", np.full((10, 2), 0.5), itr=itr)
        for itr in (40000, 60000)
    ]
    (row,) = draw(plot_fig5, files, tmp_path / "out")["rows"]
    assert [one["label"] for one in row["files"]] == [
        "40,000 steps: a_run/ckpt_40000.pt",
        "60,000 steps: a_run/ckpt_60000.pt",
    ]


def test_figure_5_takes_the_cascade_from_the_name_where_files_share_their_description(tmp_path: Path) -> None:
    path = weights(tmp_path / "router_weights_ckpt_position.npz", np.full((10, 2), 0.5), "token")
    shutil.move(
        tmp_path / "router_weights_ckpt_position_meta.json", tmp_path / "router_weights_ckpt_meta.json"
    )
    assert draw(plot_fig5, [path], tmp_path / "out")["rows"][0]["cascade"] == "position"


@pytest.mark.parametrize("values", [[[1.5]], [[-0.1]], [[np.nan]], [0.5], np.zeros((0, 4))])
def test_figure_5_refuses_what_are_no_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: Any
) -> None:
    path = weights(tmp_path / "router_weights_ckpt.npz", np.atleast_2d(values))
    np.savez(path, weights=np.asarray(values, dtype=np.float32))
    assert str(path) in refused(plot_fig5, [path], capsys)


def test_figure_5_executes_nothing_that_a_file_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = weights(tmp_path / "router_weights_ckpt.npz", [[0.5]])
    np.savez(path, weights=np.array([[{"a": 1}]], dtype=object))
    assert "no readable array" in refused(plot_fig5, [path], capsys)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 torn", b"\x93NUMPY\x01\x00torn"])
def test_figure_5_names_a_torn_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = weights(tmp_path / "router_weights_ckpt.npz", [[0.5]])
    path.write_bytes(content)
    assert str(path) in refused(plot_fig5, [path], capsys)


@pytest.mark.parametrize(
    "meta",
    [None, "{", "{}", '{"checkpoint": "a", "itr": 1, "cascade": "other"}', '{"itr": 1, "cascade": "raw"}'],
)
def test_figure_5_needs_a_description_beside_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], meta: str | None
) -> None:
    path = weights(tmp_path / "router_weights_ckpt.npz", [[0.5]])
    description = tmp_path / "router_weights_ckpt_meta.json"
    description.unlink()
    if meta is not None:
        write(description, meta)
    assert "router_weights_ckpt" in refused(plot_fig5, [path], capsys)
