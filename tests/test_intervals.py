"""Intervals of a mean over windows that depend on each other, and two evaluations compared in pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data import TokenWindows
from errors import UserError
from optim.intervals import Clusters, clusters_of, document_of, equal_clusters, interval, spread, students_t
from optim.window_losses import WindowLosses, read_windows, save_windows
from report.collect import collect
from report.compare import compare
from report.pairs import pair, section
from report.render import markdown
from report.two_runs import sections
from tests.summaries import evaluation

END = 0  # the token that ends a document
TRIALS = 400


def text_of(lengths: list[int], sequence_length: int) -> TokenWindows:
    """Documents of these lengths, their ends included."""
    tokens = np.ones(sum(lengths), dtype=np.uint16)
    tokens[np.cumsum(lengths) - 1] = END
    return TokenWindows(tokens, sequence_length)


def all_of(windows: TokenWindows) -> NDArray[np.int64]:
    return np.arange(windows.n_windows)


# coverage: how often a 95% interval holds the mean that the losses were drawn about, 0


def neighbours_alike(chance: np.random.Generator, count: int, correlation: float) -> NDArray[np.float64]:
    """Losses of which each is correlated so much with the one before it."""
    steps = chance.standard_normal(count) * math.sqrt(1 - correlation**2)
    for number in range(1, count):
        steps[number] += correlation * steps[number - 1]
    return steps


@pytest.mark.parametrize(("count", "correlation"), [(2000, 0.0), (2000, 0.57), (2000, 0.9), (100, 0.5)])
def test_stretches_cover_the_mean_of_correlated_losses(count: int, correlation: float) -> None:
    chance, clusters = np.random.default_rng(0), clusters_of(text_of([count + 1], 1), np.arange(count), {})
    found = [interval(neighbours_alike(chance, count, correlation), clusters) for _ in range(TRIALS)]
    assert 0.90 <= np.mean([each is not None and each.low <= 0 <= each.high for each in found]) <= 0.98


def by_document(chance: np.random.Generator, tokens: int, mean_length: float, width: float) -> tuple[TokenWindows, NDArray[np.float64]]:
    """Documents of log-normal lengths, each easier or harder than others, and the losses of their windows."""
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(5 + int(chance.lognormal(math.log(mean_length) - width**2 / 2, width)))
    windows = text_of(lengths, 256)
    levels = np.repeat(chance.standard_normal(len(lengths)), lengths)[:windows.n_windows * 256]
    return windows, levels.reshape(-1, 256).mean(1) + 0.3 * chance.standard_normal(windows.n_windows)


@pytest.mark.parametrize(("tokens", "mean_length", "width"), [(400_000, 960, 1.3), (200_000, 2000, 1.0)])
def test_documents_cover_the_mean_of_losses_that_depend_on_them(tokens: int, mean_length: float, width: float) -> None:
    chance, hits, widths = np.random.default_rng(0), 0, []
    for _ in range(TRIALS // 2):
        windows, losses = by_document(chance, tokens, mean_length, width)
        found = interval(losses, clusters_of(windows, all_of(windows), {"end_of_text": END}))
        assert found is not None
        hits += found.low <= 0 <= found.high
        widths.append((found.high - found.mean) / (1.96 * losses.std() / math.sqrt(losses.size)))
    assert 0.90 <= hits / (TRIALS // 2) <= 0.98
    assert np.mean(widths) > 2  # times as wide as of windows that were independent


@pytest.mark.parametrize(("degrees", "value"), [(2, 4.303), (5, 2.571), (19, 2.093), (1000, 1.962)])
def test_quantiles_are_students(degrees: float, value: float) -> None:
    assert students_t(degrees) == pytest.approx(value, rel=0.01)


# clusters


def test_a_window_belongs_to_the_document_of_its_middle() -> None:
    windows = text_of([6, 3, 20], 4)  # middles at 2, 6, 10, ...
    assert document_of(windows, all_of(windows), END).tolist() == [0, 1, 2, 2, 2, 2, 2]


def test_documents_are_taken_where_meta_knows_them() -> None:
    windows = text_of([64] * 30, 16)
    assert clusters_of(windows, all_of(windows), {"end_of_text": END}).words() == "30 documents"
    assert clusters_of(windows, all_of(windows), {}).words() == "8 stretches of 15 windows"


def test_one_long_document_is_cut_into_stretches() -> None:
    windows = text_of([4000, 5, 5], 16)
    assert clusters_of(windows, all_of(windows), {"end_of_text": END}).kind == "blocks"


def test_unequal_clusters_count_for_less() -> None:
    assert equal_clusters(np.repeat(np.arange(4), 5)) == 4
    assert equal_clusters(np.array([0] * 97 + [1, 2, 3])) == pytest.approx(1.06, abs=0.01)


def test_clusters_of_one_window_each_give_the_textbook_error() -> None:
    values = np.random.default_rng(0).standard_normal(500)
    found = interval(values, Clusters("blocks", np.arange(500)))
    assert found is not None
    assert found.sem == pytest.approx(values.std(ddof=1) / math.sqrt(500))


def test_one_cluster_has_no_interval() -> None:
    assert interval(np.array([1.0, 2.0]), Clusters("documents", np.zeros(2, dtype=np.int64))) is None


def test_a_sample_is_spread_evenly_over_the_split_without_repeating_a_window() -> None:
    assert spread(1000, 5).tolist() == [0, 249, 499, 749, 999]
    for count in (1, 2, 997, 998, 999, 1000, 2000):
        assert np.unique(spread(999, count)).size == min(count, 999)


# pairs


DATA = {"tokens": 4_000_000, "blocks": "ab", "sha256": None}


def evaluated(folder: Path, losses: NDArray[np.float64], windows: NDArray[np.int64] | None = None, **changes: Any) -> Path:
    """A summary with the losses of its windows beside it; four windows to a document."""
    numbers = np.arange(losses.size) if windows is None else windows
    args = {"model": "cot", "n_layer": 12, "n_repeat": 5, **{name: changes.pop(name) for name in ("sequence_length", "n_repeat") if name in changes}}
    path = evaluation(folder, math.exp(losses.mean()), **args)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": DATA, "interval": {"clusters": "documents", "n_clusters": 9}} | changes))
    save_windows(path.with_suffix(".npz"), WindowLosses(numbers, losses, np.full(losses.size, 0.4), Clusters("documents", numbers // 4)))
    return path


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two models whose losses differ by a hundredth, on text whose windows differ by far more."""
    chance = np.random.default_rng(0)
    text = 3.3 + chance.standard_normal(400) * 0.5
    return evaluated(tmp_path / "a", text + 0.01 + chance.standard_normal(400) * 0.01), evaluated(tmp_path / "b", text)


def test_pairs_decide_what_intervals_beside_each_other_cannot(two: tuple[Path, Path]) -> None:
    found = pair(*two)
    assert found.difference.mean == pytest.approx(0.01, abs=0.002) and found.is_decided
    assert found.difference.high - found.difference.low < 0.01
    assert found.correlation is not None and found.correlation > 0.99


def test_section_says_which_is_better_and_by_how_much(two: tuple[Path, Path]) -> None:
    text = "\n".join(section(*two))
    assert "on 400 windows that both read (100 documents)" in text and ": B is better" in text


def test_only_windows_that_both_have_read_count(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).standard_normal(400) + 3
    a, b = evaluated(tmp_path / "a", losses), evaluated(tmp_path / "b", losses[::5] - 0.5, np.arange(0, 400, 5))
    found = pair(a, b)
    assert found.clusters.of.size == 80 and found.difference.mean == pytest.approx(0.5)


@pytest.mark.parametrize(("changes", "problem"), [
    ({"data": DATA | {"blocks": "cd"}}, "read other data"), ({"data": None}, "does not say which data"),
    ({"sequence_length": 128}, "read windows of 256 and 128 tokens"), ({"val_loss": 1.0}, "are of another evaluation")])
def test_what_cannot_be_paired_is_refused(two: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        pair(two[0], evaluated(tmp_path / "other", np.full(400, 3.0), **changes))


@pytest.mark.parametrize("of_experiments", [True, False])
def test_compare_has_a_section_on_pairs(two: tuple[Path, Path], of_experiments: bool) -> None:
    a, b = (path.parent if of_experiments else path for path in two)
    assert "on 400 windows that both read" in "\n".join(line for lines in sections(a, b) for line in lines)


def test_compare_says_in_a_line_why_there_are_no_pairs(two: tuple[Path, Path]) -> None:
    two[1].with_suffix(".npz").unlink()
    assert "evaluate the checkpoint again" in "\n".join(line for lines in sections(*two) for line in lines)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 torn"])
def test_missing_or_damaged_losses_are_told(two: tuple[Path, Path], content: bytes | None) -> None:
    path = two[1].with_suffix(".npz")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="evaluate the checkpoint again"):
        read_windows(path)


def test_report_sets_models_of_a_table_beside_its_best_one(tmp_path: Path) -> None:
    text = 3.3 + np.random.default_rng(0).standard_normal(400) * 0.5
    evaluated(tmp_path / "cot_12x3", text + 0.02, n_repeat=3)
    evaluated(tmp_path / "cot_12x5", text)
    report = compare(collect([tmp_path]))
    (beside,) = report.pairs
    assert (beside.result.row.label, beside.best.row.label) == ("CoTFormer 12x3", "CoTFormer 12x5")
    assert beside.pair.difference.mean == pytest.approx(0.02) and "## In pairs" in markdown(report)


def test_an_interval_of_before_windows_were_grouped_is_remarked_on(tmp_path: Path) -> None:
    evaluation(tmp_path, 27.0, model="cot", n_layer=12, n_repeat=5)
    assert "took neighbouring windows for independent" in markdown(compare(collect([tmp_path])))
