"""Features, targets, tokens, pairs, split and parts of a mask: those of the public coalescence system."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("msprime")

import tskit

from data.genomes.features import as_input, inference_features, pair_features, sites_of
from data.genomes.inputs import choose_pairs, runs
from data.genomes.shards import encoded, load_trees
from data.genomes.store import Examples, Layout, open_genomes
from data.genomes.targets import BOS, GRID, VOCABULARY, discretise, log_times, mean_times, sequences
from tests.genomes import prepare, simulate
from tests.reference.cases import Case, each, read

FILE = "coalescence.json.gz"


@functools.cache
def trees_of(name: str) -> Any:
    """The tree sequence of a case, from its tables."""
    tables = read(FILE)["tree_sequences"][name]
    made = tskit.TableCollection(tables["sequence_length"])
    for time, is_sample in zip(tables["nodes"]["time"], tables["nodes"]["is_sample"], strict=True):
        made.nodes.add_row(is_sample, time)
    for table in ("edges", "sites", "mutations"):
        columns = tables[table]
        for row in zip(*columns.values(), strict=True):
            getattr(made, table).add_row(**dict(zip(columns, row, strict=True)))
    made.sort()
    return made.tree_sequence()


def missing_of(case: Case) -> np.ndarray | None:
    intervals = case["inaccessible"]
    return None if intervals is None else np.array(intervals, dtype=np.int64).reshape(-1, 2)


def stored(case: Case, folder: Path) -> tuple[Layout, Examples]:
    """The examples of a case as preprocessing stores them, from a file."""
    trees = trees_of(case["ts"])
    trees.dump(folder / "case.trees")
    layout = Layout(
        case["window_size"],
        case["sequence_length"],
        trees.num_samples,
        tuple(case["multipliers"]),
        case["inaccessible"] is not None,
    )
    pairs = np.array(case["pairs"], dtype=np.int32)
    read = load_trees(folder / "case.trees", layout)
    return layout, layout.decode(bytearray().join(encoded(read, pairs, layout, missing_of(case))))


def dense(array: Case) -> np.ndarray:
    return np.array(array["data"]).reshape(array["shape"])


def last_window(case: Case) -> list[float] | None:
    """Means of the last window of each pair, where it is shorter than the others: over the part inside."""
    return case["target"].get("last_window_mean_tmrca_right")


@each(FILE, "features_and_targets", "cases", where=lambda case: "X" in case)
def test_features(case: Case, tmp_path: Path) -> None:
    layout, examples = stored(case, tmp_path)
    assert np.array_equal(layout.features(examples), dense(case["X"]))


@each(FILE, "features_and_targets", "cases", where=lambda case: "X_bin_0" in case)
def test_features_with_missing_data(case: Case, tmp_path: Path) -> None:
    layout, examples = stored(case, tmp_path)
    x = layout.features(examples)
    assert np.array_equal(x[..., 1:], dense(case["X_bins_from_1"]))
    assert np.array_equal(x[..., 0], dense(case["X_bin_0"]))


@each(FILE, "features_and_targets", "cases", where=lambda case: "missing_fraction" in case)
def test_missing_shares(case: Case, tmp_path: Path) -> None:
    layout, examples = stored(case, tmp_path)
    shares = layout.shares(examples.missing)
    assert shares is not None
    assert np.allclose(shares[0], case["missing_fraction"], rtol=0, atol=1e-7)


@each(FILE, "features_and_targets", "cases")
def test_features_of_genotypes_are_those_of_training(case: Case, tmp_path: Path) -> None:
    layout, examples = stored(case, tmp_path)
    sizes = case["window_size"], case["sequence_length"], case["multipliers"]
    x = pair_features(*sites_of(trees_of(case["ts"])), np.array(case["pairs"]), *sizes, missing_of(case))
    assert np.array_equal(x, layout.features(examples))


@each(FILE, "features_and_targets", "cases", where=lambda case: "inference_first_pair" in case)
def test_features_of_inference(case: Case) -> None:
    """Ours take log1p in float32, the published ones in float16, which also keep sites in the mask."""
    sites, pairs = sites_of(trees_of(case["ts"])), np.array(case["pairs"][:1])
    sizes = case["window_size"], case["sequence_length"], case["multipliers"]
    expected = case["inference_first_pair"]
    bin_0 = inference_features(*sites, pairs, *sizes, missing_of(case))[0, ..., 0]
    assert np.allclose(bin_0.ravel(), np.ravel(expected["bin_0"]), rtol=1e-3, atol=0)
    others = inference_features(*sites, pairs, *sizes)[..., 1:].sum(dtype=np.float64)
    assert others == pytest.approx(expected["sum_of_bins_from_1"], rel=1e-3)


@each(FILE, "features_and_targets", "cases")
def test_mean_times(case: Case) -> None:
    pairs = np.array(case["pairs"])
    found = mean_times(trees_of(case["ts"]), pairs, case["window_size"], case["sequence_length"])
    expected = np.array(case["target"]["mean_tmrca"])
    if last_window(case) is not None:
        expected[:, -1] = last_window(case)
    assert np.allclose(found, expected, rtol=1e-12, atol=0)


@each(FILE, "features_and_targets", "cases")
def test_targets_and_tokens(case: Case, tmp_path: Path) -> None:
    _, examples = stored(case, tmp_path)
    upto = None if last_window(case) is None else -1
    expected = np.array(case["target"]["y_float16"], dtype=np.float16)
    assert np.array_equal(examples.y[:, :upto], expected[:, :upto])
    assert np.array_equal(sequences(examples.y)[:, :upto], np.array(case["target"]["tokens"])[:, :upto])


@pytest.mark.reference
def test_discretisation() -> None:
    case = (read(FILE) or pytest.skip(f"no {FILE}"))["discretisation"]
    assert discretise(np.array(case["values"])).tolist() == case["tokens_float64"]
    assert discretise(np.array(case["float16_values"], dtype=np.float16)).tolist() == case["tokens_float16"]


@pytest.mark.reference
def test_grid() -> None:
    points = (read(FILE) or pytest.skip(f"no {FILE}"))["discretisation"]["grid_points"]
    places = np.array(list(map(int, points)))
    assert np.allclose(GRID[places], list(points.values()), rtol=1e-15, atol=0)
    assert np.array_equal(log_times(places + 2), GRID[places])
    assert (BOS, VOCABULARY - GRID.size) == (1, 2)


@each(FILE, "discretisation", "span_averages")
def test_span_averages(case: Case) -> None:
    """Two samples whose ancestor has a piecewise constant age; a last, shorter window is a mean of itself."""
    tables = tskit.TableCollection(case["right"][-1])
    for _ in range(2):
        tables.nodes.add_row(tskit.NODE_IS_SAMPLE, 0)
    for left, right, value in zip(case["left"], case["right"], case["value"], strict=True):
        if left < right:
            parent = tables.nodes.add_row(0, value)
            for child in range(2):
                tables.edges.add_row(left, right, parent, child)
    tables.sort()
    trees = tables.tree_sequence().keep_intervals([[case["start"], case["end"]]]).trim()
    length = case["end"] - case["start"]
    found = mean_times(trees, np.array([[0, 1]]), case["window"], length)[0]
    expected = np.array(case["published"])
    if length % case["window"]:
        expected[-1] *= case["window"] / (length % case["window"])
    assert np.allclose(found, expected, rtol=1e-12, atol=0)


@each(FILE, "pairs_split_crop", "pairs")
def test_pairs(case: Case) -> None:
    assert choose_pairs(case["n"], case["num_pairs"], case["seed"]).tolist() == case["pairs"]


@each(FILE, "pairs_split_crop", "intervals")
def test_intervals(case: Case) -> None:
    found = runs(np.array(case["bitmask"], dtype=bool))
    assert found.tolist() == [list(interval) for interval in case["intervals"]]


@each(FILE, "pairs_split_crop", "files")
def test_files_of_a_set(case: Case, tmp_path: Path) -> None:
    """A run of data.genomes.preprocess: the list of files, the split, the pairs and the parts of the mask."""
    for seed, name in enumerate(case["files_in"], start=1):
        path = tmp_path / "base" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        simulate(seed, -(-case["n_samples"] // 2), case["sequence_length"]).dump(path)
    mask = tmp_path / "mask.npy"
    np.save(mask, np.ones(case["bitmask_size"], dtype=bool))
    keys = ("train_ratio", "global_seed", "sequence_length", "num_pairs")
    flags = {**{key: case[key] for key in keys}, "simplify_first_n_samples": case["n_samples"]}
    masked = {"bitmask": mask} if case["bitmask_size"] else {}
    assert prepare(tmp_path / "base", **flags, window_size=100, **masked) == 0
    expected = {
        (split, path, index, seed, crop, tuple(map(tuple, pairs)))
        for path, index, split, _, seed, pairs, _, crop in case["rows"]
    }
    assert rows_of(tmp_path / "base" / "processed") == expected


def rows_of(folder: Path) -> set[Any]:
    """Of each file of a set: split, path, index, seed, beginning of its part of the mask, pairs."""
    genomes, found = open_genomes(folder), set()
    for split in (genomes.train, genomes.test):
        for number, file in enumerate(json.loads((split.folder / "files.json").read_text())):
            entries = split.index[split.index["file"] == number]
            pairs = tuple(zip(entries["first"].tolist(), entries["second"].tolist(), strict=True))
            found.add((split.folder.name, file["path"], file["index"], file["seed"], file["crop"], pairs))
    return found


@each(FILE, "schedule_and_loader", "loader")
def test_loader(case: Case) -> None:
    x = np.array(case["X_float16"], dtype=np.float16).reshape(case["shape"])
    assert np.allclose(as_input(x), np.array(case["x"]), rtol=2e-7, atol=0)
    assert sequences(np.array(case["y_float16"], dtype=np.float16)).tolist() == case["tokens"]
