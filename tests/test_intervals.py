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
from optim.intervals import Clusters, documents_of, equal_clusters, interval, spread, stretches, students_t
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
    chance = np.random.default_rng(0)
    found = [interval(neighbours_alike(chance, count, correlation), None) for _ in range(TRIALS)]
    assert 0.90 <= np.mean([each is not None and each.low <= 0 <= each.high for each in found]) <= 0.98


def by_document(
    chance: np.random.Generator, tokens: int, mean_length: float, width: float
) -> tuple[TokenWindows, NDArray[np.float64]]:
    """Documents of log-normal lengths, each easier or harder than others, and the losses of their windows."""
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(5 + int(chance.lognormal(math.log(mean_length) - width**2 / 2, width)))
    windows = text_of(lengths, 256)
    levels = np.repeat(chance.standard_normal(len(lengths)), lengths)[: windows.n_windows * 256]
    return windows, levels.reshape(-1, 256).mean(1) + 0.3 * chance.standard_normal(windows.n_windows)


@pytest.mark.parametrize(("tokens", "mean_length", "width"), [(400_000, 960, 1.3), (200_000, 2000, 1.0)])
def test_documents_cover_the_mean_of_losses_that_depend_on_them(
    tokens: int, mean_length: float, width: float
) -> None:
    chance, hits, widths = np.random.default_rng(0), 0, []
    for _ in range(TRIALS // 2):
        windows, losses = by_document(chance, tokens, mean_length, width)
        found = interval(losses, documents_of(windows, all_of(windows), {"end_of_text": END}))
        assert found is not None
        hits += found.low <= 0 <= found.high
        widths.append((found.high - found.mean) / (1.96 * losses.std() / math.sqrt(losses.size)))
    assert 0.90 <= hits / (TRIALS // 2) <= 0.98
    assert np.mean(widths) > 2  # times as wide as of windows that were independent


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 0.9])
def test_documents_that_are_like_their_neighbours_are_covered_too(correlation: float) -> None:
    chance, documents = np.random.default_rng(0), np.repeat(np.arange(2000), 2)
    found = [
        interval(np.repeat(neighbours_alike(chance, 2000, correlation), 2), documents) for _ in range(TRIALS)
    ]
    assert 0.90 <= np.mean([each is not None and each.low <= 0 <= each.high for each in found]) <= 0.99


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.7062), (4, 2.77645), (5, 2.57058), (19, 2.09302), (1000, 1.96234)]
)
def test_quantiles_are_students(degrees: float, value: float) -> None:
    assert students_t(degrees) == pytest.approx(value, rel=1e-3)


# clusters


def test_a_window_belongs_to_the_document_of_its_middle() -> None:
    windows = text_of([6, 3, 20], 4)  # middles at 2, 6, 10, ...
    documents = documents_of(windows, all_of(windows), {"end_of_text": END})
    assert documents is not None and documents.tolist() == [0, 1, 2, 2, 2, 2, 2]


def test_documents_are_not_known_where_meta_does_not_tell_their_end() -> None:
    windows = text_of([64] * 30, 16)
    assert documents_of(windows, all_of(windows), {}) is None


def test_the_wider_interval_counts_and_is_named() -> None:
    chance, documents = np.random.default_rng(0), np.repeat(np.arange(12), 40)
    alike = interval(np.repeat(chance.standard_normal(12), 40), documents)
    drifting = interval(np.linspace(0, 1, 480) + 0.1 * chance.standard_normal(480), np.arange(480))
    assert alike is not None and alike.clusters.words() == "12 documents"
    assert drifting is not None and drifting.clusters.words() == "20 stretches of 24 windows"


def test_one_long_document_is_cut_into_stretches() -> None:
    found = interval(np.arange(100.0), np.array([0] * 98 + [1, 2]))
    assert found is not None and found.clusters.kind == "blocks"


def test_few_or_unequal_documents_are_told() -> None:
    assert Clusters("documents", np.repeat(np.arange(5), 9)).words() == "5 documents: too few to be relied on"
    assert (
        Clusters("documents", np.array([0] * 90 + list(range(1, 60)))).words()
        == "60 documents, worth 3 of equal length: too few to be relied on"
    )
    assert Clusters("documents", np.repeat(np.arange(50), 2)).words() == "50 documents"


def test_short_stretches_are_told() -> None:
    assert (
        Clusters("blocks", stretches(40)).words()
        == "8 stretches of 5 windows: too short to be relied on where documents are longer"
    )


def test_unequal_clusters_count_for_less() -> None:
    assert equal_clusters(np.repeat(np.arange(4), 5)) == 4
    assert equal_clusters(np.array([0] * 97 + [1, 2, 3])) == pytest.approx(1.06, abs=0.01)


def test_documents_of_one_window_each_give_at_least_the_textbook_error() -> None:
    # whose stretches differ by chance alone
    values = np.random.default_rng(0).permutation(np.tile([-1.0, 1.0], 250))
    found = interval(values, np.arange(500))
    assert found is not None and found.sem >= 0.999 * values.std(ddof=1) / math.sqrt(500)


def test_stretches_are_of_equal_length_and_in_order() -> None:
    assert np.unique(stretches(1000), return_counts=True)[1].tolist() == [50] * 20
    assert stretches(3).tolist() == [0, 1, 2]


def test_one_window_has_no_interval() -> None:
    assert interval(np.array([1.0]), None) is None


def test_a_sample_is_spread_evenly_over_the_split_without_repeating_a_window() -> None:
    assert spread(1000, 5).tolist() == [0, 249, 499, 749, 999]
    for count in (1, 2, 997, 998, 999, 1000, 2000):
        assert np.unique(spread(999, count)).size == min(count, 999)


# pairs


DATA = {"tokens": 4_000_000, "blocks": "ab", "sha256": None}


def evaluated(
    folder: Path, losses: NDArray[np.float64], windows: NDArray[np.int64] | None = None, **changes: Any
) -> Path:
    """A summary with the losses of its windows beside it; four windows to a document."""
    numbers = np.arange(losses.size) if windows is None else windows
    args = {
        "model": "cot",
        "n_layer": 12,
        "n_repeat": 5,
        **{name: changes.pop(name) for name in ("sequence_length", "n_repeat") if name in changes},
    }
    path = evaluation(folder, math.exp(losses.mean()), **args)
    path.write_text(
        json.dumps(
            json.loads(path.read_text()) | {"data": DATA, "interval": {"by": "100 documents"}} | changes
        )
    )
    save_windows(
        path.with_suffix(".npz"), WindowLosses(numbers, losses, np.full(losses.size, 0.4), numbers // 4)
    )
    return path


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two models whose losses differ by a hundredth, on text whose windows differ by far more."""
    chance = np.random.default_rng(0)
    text = 3.3 + chance.standard_normal(400) * 0.5
    return evaluated(tmp_path / "a", text + 0.01 + chance.standard_normal(400) * 0.01), evaluated(
        tmp_path / "b", text
    )


def test_pairs_decide_what_intervals_beside_each_other_cannot(two: tuple[Path, Path]) -> None:
    found = pair(*two)
    assert found.difference.mean == pytest.approx(0.01, abs=0.002) and found.is_decided
    assert found.difference.high - found.difference.low < 0.01
    assert found.correlation is not None and found.correlation > 0.99


def test_section_says_which_is_better_and_by_how_much(two: tuple[Path, Path]) -> None:
    text = "\n".join(section(*two))
    assert "on 400 windows that both read (" in text and ": B is better" in text


def test_only_windows_that_both_have_read_count(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).standard_normal(400) + 3
    a, b = (
        evaluated(tmp_path / "a", losses),
        evaluated(tmp_path / "b", losses[::5] - 0.5, np.arange(0, 400, 5)),
    )
    found = pair(a, b)
    assert found.n_windows == 80 and found.difference.mean == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data": DATA | {"blocks": "cd"}}, "read other data"),
        ({"data": None}, "does not say which data"),
        ({"sequence_length": 128}, "read windows of 256 and 128 tokens"),
        ({"val_loss": 1.0}, "are of another evaluation"),
    ],
)
def test_what_cannot_be_paired_is_refused(
    two: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
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
