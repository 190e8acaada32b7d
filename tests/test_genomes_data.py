"""Sets of genomes: what preprocessing makes of tree sequences, what it refuses, and restarts."""

from __future__ import annotations

import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("msprime")

from data.genomes.features import pair_features, sites_of
from data.genomes.shards import load_trees
from data.genomes.store import open_genomes
from data.genomes.targets import log_mean_times
from files import locked
from tests.corpora import flip
from tests.genomes import COUNTS, FLAGS, contents, make_sets, prepare, simulate, words, write_mask
from tests.programs import run, start


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tree sequences with the sets `processed` and `masked`. Not to be changed."""
    return make_sets(tmp_path_factory.mktemp("genomes"))


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    """A copy of the tree sequences, without sets."""
    for scenario in COUNTS:
        shutil.copytree(made / scenario, tmp_path / "base" / scenario)
    return tmp_path / "base"


def meta_of(folder: Path) -> Any:
    return json.loads((folder / "meta.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], base: Path, **changes: Any) -> str:
    """What is said of a preparation that ends with exit code 2, and without a traceback."""
    capsys.readouterr()
    assert prepare(base, **changes) == 2
    said = capsys.readouterr().err
    assert all(line.startswith("data.genomes.preprocess: error: ") for line in said.splitlines()), said
    return said


# examples


@pytest.mark.parametrize("name", ["processed", "masked"])
def test_an_example_is_that_of_its_file(made: Path, name: str) -> None:
    genomes = open_genomes(made / name)
    example = genomes.train.example(len(genomes.train) - 1)
    file = genomes.train.files[-1]
    trees, pair = load_trees(made / example.file, genomes.meta), np.array([example.pair])
    missing = None
    if genomes.meta.masked:
        accessible = np.load(made / "mask.npz")["access_2L"][file["crop"] :][: FLAGS["sequence_length"]]
        missing = np.flatnonzero(~accessible)[:, None] + [0, 1]
    sizes = FLAGS["window_size"], FLAGS["sequence_length"], genomes.meta.multipliers
    assert np.array_equal(example.x, pair_features(*sites_of(trees), pair, *sizes, missing)[0])
    assert np.array_equal(example.y, log_mean_times(trees, pair, *sizes[:2])[0])


def test_features_are_those_of_plain_counting() -> None:
    """Also of sites with three alleles, with missing ones, with all and with no carriers."""
    generator = np.random.default_rng(0)
    positions = np.sort(generator.uniform(0, 5000, 300))
    genotypes = (generator.random((300, 5)) < generator.random((300, 1))).astype(np.uint8)
    genotypes[generator.integers(0, 300, 30), generator.integers(0, 5, 30)] = 2
    genotypes[generator.integers(0, 300, 30), generator.integers(0, 5, 30)] = 255
    window, length, scales, pair = 700, 4500, (1, 3, 9), (1, 4)
    expected = np.zeros((2, 3, 7, 5))
    for position, row in zip(positions, genotypes, strict=True):
        if row.max() > 1 or row.sum() == 5:
            continue
        channel = int(row[pair[0]] == row[pair[1]])
        for scale, multiple in enumerate(scales):
            for number in range(7):
                if number * window <= position < min((number + multiple) * window, length):
                    expected[channel, scale, number, row.sum()] += 1
                    expected[1 - channel, scale, number, 0] += 1
    found = pair_features(positions, genotypes, np.array([pair]), window, length, scales)
    assert np.array_equal(found[0], expected)


def test_counts_beyond_float16_are_refused() -> None:
    positions, genotypes = np.linspace(0, 900, 70_000), np.tile(np.uint8([0, 1]), (70_000, 1))
    with pytest.raises(ValueError, match="more than 65,504 sites"):
        pair_features(positions, genotypes, np.array([[0, 1]]), 1000, 1000)


def test_lineages_that_do_not_coalesce_are_refused(tmp_path: Path) -> None:
    import msprime

    trees = msprime.sim_ancestry(3, population_size=1e4, sequence_length=20_000, end_time=5, random_seed=1)
    with pytest.raises(ValueError, match="have not coalesced"):
        log_mean_times(trees, np.array([[0, 1]]), 1000, 20_000)


# preparing


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(made: Path, base: Path) -> None:
    outcome = run([sys.executable, "-m", "data.genomes.preprocess", *words(base, num_workers=2)])
    assert outcome.returncode == 0, outcome.stderr
    assert contents(base / "processed") == contents(made / "processed")


def test_parts_that_are_right_are_kept(made: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "processed", base / "processed")
    assert prepare(base) == 0
    assert "2, 2 of them were there" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train/shard_00000.bin", "train/shard_00000.json", "test/index.npy"])
def test_a_damaged_part_is_made_again(made: Path, base: Path, name: str) -> None:
    shutil.copytree(made / "processed", base / "processed")
    flip(base / "processed" / name)
    assert prepare(base) == 0
    assert contents(base / "processed") == contents(made / "processed")


@pytest.mark.slow
def test_a_killed_preparation_ends_with_the_same_bytes(base: Path, tmp_path: Path) -> None:
    code = "import sys, data.genomes.preprocess as own; own.SHARD_FILES = 1; sys.exit(own.main())"
    command = [sys.executable, "-c", code]
    assert run([*command, *words(base, out_subdir=tmp_path / "whole")]).returncode == 0
    killed = start([*command, *words(base, out_subdir=tmp_path / "killed")])
    try:
        end = time.monotonic() + 60
        while not list((tmp_path / "killed").glob("*/shard_*.json")) and time.monotonic() < end:
            time.sleep(0.001)
    finally:
        killed.kill()
        killed.wait()
    assert not (tmp_path / "killed" / "meta.json").exists()
    (tmp_path / "killed" / "train" / ".shard_00003.bin.1.tmp").write_bytes(b"half")
    assert run([*command, *words(base, out_subdir=tmp_path / "killed")]).returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_set_of_other_settings_is_left_alone(
    made: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "processed", base / "processed")
    assert "made with window_size 1000, not 500" in refused(capsys, base, window_size=500)
    assert contents(base / "processed") == contents(made / "processed")


def test_a_set_of_other_files_is_left_alone(
    made: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "processed", base / "processed")
    simulate(99).dump(base / "high" / "more.trees")
    assert "made with other files" in refused(capsys, base)
    assert contents(base / "processed") == contents(made / "processed")


def test_a_damaged_description_is_made_again(made: Path, base: Path) -> None:
    shutil.copytree(made / "processed", base / "processed")
    (base / "processed" / "meta.json").write_text('{"kind": "genomes", "format": 1}')
    assert prepare(base) == 0
    assert contents(base / "processed") == contents(made / "processed")


def test_a_set_is_made_again_where_that_is_asked_for(made: Path, base: Path) -> None:
    shutil.copytree(made / "processed", base / "processed")
    assert prepare(base, window_size=500, **{"no-skip-existing": True}) == 0
    assert open_genomes(base / "processed").meta.window_size == 500


def test_other_data_are_left_alone(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (base / "processed").mkdir()
    (base / "processed" / "meta.json").write_text('{"tokenizer": "bytes"}')
    assert "holds other data" in refused(capsys, base)


def test_a_second_preparation_of_a_folder_is_refused(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (base / "processed").mkdir()
    with locked(base / "processed" / "lock", ""):
        assert "is being prepared by another process" in refused(capsys, base)


def test_a_job_that_slurm_starts_again_waits_for_what_its_lost_node_still_does(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    (base / "processed").mkdir()
    with ThreadPoolExecutor(1) as pool:
        with locked(base / "processed" / "lock", ""):
            preparing = pool.submit(prepare, base)
            said = ""
            while "waits until that ends" not in said:
                said += capsys.readouterr().out
            assert not (base / "processed" / "meta.json").exists()
        assert preparing.result(60) == 0


def test_include_chooses_files(base: Path) -> None:
    assert prepare(base, include="high/*") == 0
    assert list(open_genomes(base / "processed").meta.scenarios) == ["high"]


def test_the_first_file_says_how_many_samples_where_no_number_is_given(base: Path) -> None:
    assert prepare(base, simplify_first_n_samples=0) == 0
    assert open_genomes(base / "processed").meta.n_samples == 6


# the same file under several names


def linked(base: Path, how: str) -> None:
    """Give a file of `constant`, or the whole folder, another name."""
    target = base / "constant" / "ts_00000002.trees"
    if how == "folder":
        (base / "again").symlink_to(base / "constant")
        return
    (base / "again").mkdir()
    name = base / "again" / "ts.trees"
    {"link": name.symlink_to, "hard link": name.hardlink_to, "copy": lambda of: shutil.copy(of, name)}[how](
        target
    )


@pytest.mark.parametrize("how", ["link", "hard link", "copy", "folder"])
def test_a_file_of_two_names_is_named(base: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    linked(base, how)
    assert prepare(base) == 0
    named = (
        "links to folders that are read already" if how == "folder" else "counted once: constant/ts_00000002"
    )
    assert named in capsys.readouterr().out


@pytest.mark.parametrize("how", ["link", "hard link", "copy", "folder"])
def test_a_file_of_two_names_is_counted_once(base: Path, how: str) -> None:
    linked(base, how)
    assert prepare(base) == 0
    splits = meta_of(base / "processed")["splits"]
    assert splits["train"]["files"] + splits["test"]["files"] == sum(COUNTS.values())


def test_no_content_is_on_both_sides_of_the_split(base: Path) -> None:
    for number in range(6):
        (base / f"other_{number}").mkdir()
        (base / f"other_{number}" / "ts.trees").symlink_to(base / "constant" / f"ts_{number:08d}.trees")
    assert prepare(base) == 0
    genomes = open_genomes(base / "processed")
    sides = [{file["sha256"] for file in split.files} for split in (genomes.train, genomes.test)]
    assert not sides[0] & sides[1]


def test_each_scenario_is_split_by_itself(made: Path) -> None:
    assert meta_of(made / "processed")["scenarios"] == {
        "constant": {"train": 5, "test": 1},
        "high": {"train": 2, "test": 1},
    }


# bad input


def spoil(base: Path, how: str) -> None:
    path = base / "high" / "bad.trees"
    if how == "text":
        path.write_text("not a tree sequence")
    elif how == "cut short":
        path.write_bytes((base / "high" / "ts_00000001.trees").read_bytes()[:3000])
    elif how == "empty":
        path.touch()
    elif how == "short":
        simulate(50, length=10_000).dump(path)
    else:
        simulate(50, individuals=2).dump(path)


BAD = {
    "text": "File not in kastore format",
    "cut short": "File not in kastore format",
    "empty": "End of file",
    "short": "it spans 10,000 bp, fewer than --sequence_length 20,000",
    "few samples": "it has 4 samples, fewer than 6",
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_file_is_named_and_counted(base: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(base, how)
    lines = refused(capsys, base).splitlines()
    assert lines[0].endswith(f"high/bad.trees: {BAD[how]}")
    assert lines[1].endswith("1 of 10 files could not be prepared")


def test_the_other_files_are_prepared(base: Path) -> None:
    spoil(base, "text")
    prepare(base)
    meta = meta_of(base / "processed")
    assert (meta["splits"]["train"]["files"] + meta["splits"]["test"]["files"], len(meta["errors"])) == (9, 1)


def test_a_bad_file_that_is_mended_is_prepared(base: Path) -> None:
    spoil(base, "text")
    prepare(base)
    simulate(50).dump(base / "high" / "bad.trees")
    assert prepare(base) == 0


def test_a_link_to_nothing_is_named(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (base / "high" / "gone.trees").symlink_to(base / "nowhere")
    assert "gone.trees: a link to" in refused(capsys, base)


def mask_of(folder: Path, how: str) -> Path:
    path = folder / "mask.npz"
    if how == "short":
        return write_mask(path, 19_999)
    if how == "other key":
        return write_mask(path, 30_000, key="access_3R")
    if how == "pickle":
        np.save(folder / "mask.npy", np.array([{}]), allow_pickle=True)
        return folder / "mask.npy"
    if how == "numbers":
        np.savez(path, access_2L=np.arange(30_000))
    elif how == "text":
        path.write_text("accessible")
    elif how == "bomb":
        with path.open("wb") as file:
            header = {"descr": "|b1", "fortran_order": False, "shape": (10**15,)}
            np.lib.format.write_array_header_1_0(file, header)
    return path


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("short", "has 19,999 bp, fewer than --sequence_length 20,000"),
        ("other key", "has no such array, but access_3R"),
        ("numbers", "must hold a row of true and false, not int64"),
        ("pickle", "it is no .npz or .npy file of numbers"),
        ("text", "it is no .npz or .npy file of numbers"),
        ("bomb", "it is no .npz or .npy file of numbers"),
        ("missing", "No such file or directory"),
    ],
)
def test_a_bad_mask_is_refused(
    base: Path, tmp_path: Path, how: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, base, bitmask=mask_of(tmp_path, how))


def test_a_mask_as_long_as_the_sequence_is_used_whole(base: Path, tmp_path: Path) -> None:
    assert prepare(base, bitmask=write_mask(tmp_path / "mask.npz", 20_000)) == 0
    assert {file["crop"] for file in open_genomes(base / "processed").train.files} == {0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_pairs": 16}, "--num_pairs 16: 6 samples have 15 pairs"),
        ({"window_size": 0}, "must be a whole number of at least 1, not '0'"),
        ({"sequence_length": "long"}, "must be a whole number of at least 1, not 'long'"),
        ({"train_ratio": 1.5}, "must be between 0 and 1, not '1.5'"),
        ({"window_size": 1, "sequence_length": 1e9}, "too many to be stored"),
        ({"num_pair": 5}, "did you mean --num_pairs?"),
        ({"include": "nothing"}, "no tree sequences"),
        ({"out_subdir": ""}, "must not be empty"),
    ],
)
def test_a_bad_flag_is_refused(
    base: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, base, **changes)
    assert not (base / "processed").exists()


def test_a_missing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in refused(capsys, tmp_path / "nowhere")
