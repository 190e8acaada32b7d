"""Figure 4: curves, bars and measured times of sweeps over compute budgets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plot_fig4
from tests.figures import draw, figure_inputs, refused
from tests.summaries import curve, point, write

pytestmark = pytest.mark.slow  # a second for each picture


@pytest.fixture
def inputs(tmp_path: Path) -> dict[int, list[Path]]:
    return figure_inputs(tmp_path)


def test_figure_4_draws_the_points_of_the_file_by_increasing_work(
    tmp_path: Path, inputs: dict[int, list[Path]]
) -> None:
    curves = {one["label"]: one["points"] for one in draw(plot_fig4, inputs[4], tmp_path / "out")["curves"]}
    assert {label: [(p["macs"], p["perplexity"]) for p in points] for label, points in curves.items()} == {
        "LN-CoTFormer (Router)": [(50_000_000_000, 29.0), (200_000_000_000, 24.0)],
        "LN-CoTFormer (Fixed Depth)": [(45_000_000_000, 30.0), (210_000_000_000, 23.9)],
    }


def test_figure_4_shows_the_block_universal_router_beside_it(
    tmp_path: Path, inputs: dict[int, list[Path]]
) -> None:
    other = curve(tmp_path / "but.json", "but_mod", [point(60_000_000_000, 29.5, threshold=0.9)], [])
    labels = [one["label"] for one in draw(plot_fig4, [*inputs[4], other], tmp_path / "out")["curves"]]
    assert labels == ["LN-CoTFormer (Router)", "LN-CoTFormer (Fixed Depth)", "LN-Block Universal (Router)"]


def test_figure_4_names_the_steps_where_a_model_comes_twice(
    tmp_path: Path, inputs: dict[int, list[Path]]
) -> None:
    other = curve(tmp_path / "early.json", "adm", [point(60_000_000_000, 29.5, threshold=0.9)], [], itr=40000)
    labels = [one["label"] for one in draw(plot_fig4, [*inputs[4], other], tmp_path / "out")["curves"]]
    assert "LN-CoTFormer (Router), 60,000 steps" in labels and "LN-CoTFormer (Router), 40,000 steps" in labels


def test_figure_4_shows_measured_time_where_all_points_have_it(
    tmp_path: Path, inputs: dict[int, list[Path]]
) -> None:
    untimed = curve(tmp_path / "untimed.json", "adm", [point(60_000_000_000, 29.5, threshold=0.9)], [])
    panels = [
        len(plot_fig4.draw(draw(plot_fig4, [path], tmp_path / "out")).axes) for path in (*inputs[4], untimed)
    ]
    assert panels == [2, 1]


def test_figure_4_shows_the_papers_values_beside_a_model_of_its_shape_only(
    tmp_path: Path, inputs: dict[int, list[Path]]
) -> None:
    small = curve(tmp_path / "small.json", "adm", [point(1_000_000, 60.0, threshold=0.9)], [], n_embd=384)
    values = [
        [one["perplexity"] for one in draw(plot_fig4, [path], tmp_path / "out")["paper"]]
        for path in (*inputs[4], small)
    ]
    assert values == [[23.19, 23.83], []]


def test_figure_4_title_says_model_and_checkpoint(tmp_path: Path, inputs: dict[int, list[Path]]) -> None:
    data = draw(plot_fig4, inputs[4], tmp_path / "out")
    title = plot_fig4.draw(data).get_suptitle().replace("\n", " ")
    assert "Adaptive LN-CoTFormer, 2+21x5+1 layers, width 768, 60,000 steps: a_run/ckpt.pt" in title


def sweep(
    path: Path, paired: float | None = 0.001, timing: str | None = "together", offset: float = 0.15
) -> Path:
    """A sweep with two curves that are `offset` apart, and measured times that are not in the order of
    work.
    """
    at = [(45, 30.0), (90, 26.5), (130, 25.0), (170, 24.3), (208, 24.0)]
    times = [0.005, 0.008, 0.013, 0.012, 0.02]
    made = curve(
        path,
        "adm",
        [
            point(int(1e9) * x, y, t, paired, threshold=1 - n / 10)
            for n, ((x, y), t) in enumerate(zip(at, times, strict=True))
        ],
        [
            point(int(1e9) * x, y + offset, t, paired, passes=n)
            for n, ((x, y), t) in enumerate(zip(at, times, strict=True), 1)
        ],
    )
    return write(made, {**json.loads(made.read_text()), "timing": timing})


def drawn(tmp_path: Path, *files: Path) -> Any:
    figure = plot_fig4.draw(draw(plot_fig4, list(files), tmp_path / "out"))
    figure.draw_without_rendering()
    return figure


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The figure of such a sweep."""
    folder = tmp_path_factory.mktemp("usual")
    return drawn(folder, sweep(folder / "ppl_per_mac.json"))


def test_figure_4_says_which_cut_each_point_of_the_router_is(usual: Any) -> None:
    assert [text.get_text() for text in usual.axes[0].texts] == ["1", "0.9", "0.8", "0.7", "0.6"]
    assert "the lowest score that goes on (1 - t of the paper's thresholds)" in usual.get_suptitle().replace(
        "\n", " "
    )


def test_figure_4_says_which_curve_has_the_published_capacities(tmp_path: Path) -> None:
    path = sweep(tmp_path / "ppl_per_mac.json")
    write(path, {**json.loads(path.read_text()), "published": True})
    assert [one["label"] for one in draw(plot_fig4, [path], tmp_path / "out")["curves"]] == [
        "LN-CoTFormer (Router, published rule)",
        "LN-CoTFormer (Fixed Depth)",
    ]


def bars(axis: Any) -> list[float]:
    """Heights of the bars of an axis, from the left."""
    return [
        float(np.ptp(segment[:, 1]))
        for container in axis.containers
        for segment in container.lines[2][0].get_segments()
    ]


def test_figure_4_bars_are_those_of_the_paired_difference_to_full_depth(usual: Any) -> None:
    assert bars(usual.axes[0])[0] == pytest.approx(30.0 * 0.002, rel=0.01)
    assert "paired difference to full depth" in usual.get_suptitle()


def test_figure_4_says_so_where_a_file_of_before_has_no_paired_differences(tmp_path: Path) -> None:
    figure = drawn(tmp_path, sweep(tmp_path / "ppl_per_mac.json", paired=None))
    assert (
        bars(figure.axes[0])[0] == pytest.approx(0.6)
        and "no paired differences in the file" in figure.get_suptitle()
    )


def test_figure_4_has_no_bars_of_another_kind_beside_the_paired_ones(tmp_path: Path) -> None:
    old = sweep(tmp_path / "old" / "ppl_per_mac.json", paired=None)
    assert max(bars(drawn(tmp_path, sweep(tmp_path / "ppl_per_mac.json"), old).axes[0])) < 0.1


@pytest.mark.parametrize("paired", [0.001, None])
def test_figure_4_shows_curves_that_are_015_apart(tmp_path: Path, paired: float | None) -> None:
    """Further apart than two markers are high (3 points), and no bar reaches from one to the other."""
    axis = drawn(tmp_path, sweep(tmp_path / "ppl_per_mac.json", paired)).axes[-1]
    points = axis.transData.transform([(0, 24.0), (0, 24.15)])[:, 1] * 72 / axis.figure.dpi
    assert points[1] - points[0] > 6 and max(bars(axis)) < 0.15


def test_figure_4_has_no_close_up_of_curves_that_are_close_together(tmp_path: Path) -> None:
    path = curve(
        tmp_path / "a.json",
        "adm",
        [point(n * 10**9, 25 - n / 10, threshold=1 - n / 10) for n in range(1, 8)],
        [],
    )
    assert len(drawn(tmp_path, path).axes) == 1


@pytest.mark.parametrize("timing", ["together", None])
def test_figure_4_measured_times_never_run_backwards(tmp_path: Path, timing: str | None) -> None:
    timed = drawn(tmp_path, sweep(tmp_path / "ppl_per_mac.json", timing=timing)).axes[1]
    assert timed.get_xlabel() or timed.get_subplotspec().is_first_row()
    assert all((np.diff(line.get_xdata()) >= 0).all() for line in timed.lines)


def test_figure_4_joins_no_times_that_were_taken_one_by_one(usual: Any, tmp_path: Path) -> None:
    alone = drawn(tmp_path, sweep(tmp_path / "alone.json", timing=None))
    axes = [usual.axes[1], alone.axes[1]]
    styles = [{container.lines[0].get_linestyle() for container in axis.containers} for axis in axes]
    assert styles == [{"-", "--"}, {"None"}]


def test_figure_4_has_one_scale_in_a_row(usual: Any) -> None:
    axes = usual.axes
    assert (
        len(axes) == 4
        and axes[0].get_ylim() == axes[1].get_ylim()
        and axes[2].get_ylim() == axes[3].get_ylim() != axes[0].get_ylim()
    )


def test_figure_4_refuses_sequences_of_two_lengths(
    tmp_path: Path, inputs: dict[int, list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    other = curve(
        tmp_path / "long.json", "adm", [point(60_000_000_000, 29.5, threshold=0.9)], [], sequence_length=512
    )
    assert "256 and 512 tokens" in refused(plot_fig4, [*inputs[4], other], capsys)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"router": [], "fixed_depth": []}, "no points"),
        ({"router": [{}]}, "router[0].threshold is missing"),
        ({"router": {}}, "router is"),
        ({"args": None}, "args is missing"),
        ({"router": [point(-5, 20.0, threshold=0.5)]}, "router[0].macs is -5"),
        (
            {"router": [{**point(5, 20.0, threshold=0.5), "val_perplexity": "20"}]},
            "router[0].val_perplexity is '20'",
        ),
        (
            {"router": [{**point(5, 20.0, paired=0.1, threshold=0.5), "loss_difference": 800}]},
            "router[0].loss_difference 800",
        ),
        (
            {"router": [{**point(5, 20.0, threshold=0.5), "loss_difference_ci95": 5}]},
            "router[0].loss_difference is missing",
        ),
    ],
)
def test_figure_4_names_what_is_wrong_with_a_file(
    inputs: dict[int, list[Path]], capsys: pytest.CaptureFixture[str], change: dict[str, Any], part: str
) -> None:
    path = inputs[4][0]
    write(path, {**json.loads(path.read_text()), **change})
    line = refused(plot_fig4, [path], capsys)
    assert str(path) in line and part in line


def test_figure_4_has_labels_and_steps_in_its_legend(inputs: dict[int, list[Path]], tmp_path: Path) -> None:
    words = [f"v1={inputs[4][0]}", f"v2={shutil.copy(inputs[4][0], tmp_path / 'other.json')}"]
    figure = plot_fig4.draw(draw(plot_fig4, words, tmp_path / "out"))
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert (
        said[:2] == ["v1 (Router), 60,000 steps", "v1 (Fixed Depth), 60,000 steps"]
        and "v2 (Router), 60,000 steps" in said
    )


def test_what_looks_like_a_label_in_the_value_of_a_flag_is_left_there(
    inputs: dict[int, list[Path]], tmp_path: Path
) -> None:
    draw(plot_fig4, [inputs[4][0]], tmp_path / "lr=0.1")
    assert (tmp_path / "lr=0.1" / "fig4.png").is_file()


def test_figure_4_gives_each_of_four_checkpoints_a_colour(
    inputs: dict[int, list[Path]], tmp_path: Path
) -> None:
    words = [f"v{number}={shutil.copy(inputs[4][0], tmp_path / f'{number}.json')}" for number in range(4)]
    axis = plot_fig4.draw(draw(plot_fig4, words, tmp_path / "out")).axes[0]
    assert len({bars.lines[0].get_color() for bars in axis.containers}) == 4
