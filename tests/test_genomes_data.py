"""Sets of genomes: what preprocessing makes of tree sequences, what it refuses, restarts, and reading."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("msprime")

from data import inspect
from data.genomes.features import pair_features, sites_of
from data.genomes.shards import load_trees
from data.genomes.store import ENTRY, GenomeSplits, open_genomes
from data.genomes.targets import log_mean_times, sequences
from data.genomes.windows import GenomeSet, GenomeSource
from errors import UserError
from tests.command_lines import code_of
from tests.corpora import flip
from tests.genomes import FLAGS, contents, prepare, simulate, words, write, write_mask
from tests.programs import run, start

COUNTS = {"constant": 6, "high": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tree sequences with the sets `processed` and `masked`. Not to be changed."""
    base = write(tmp_path_factory.mktemp("genomes"), COUNTS)
    assert prepare(base) == 0
    mask = write_mask(base / "mask.npz", 50_000)
    assert prepare(base, out_subdir="masked", bitmask=mask) == 0
    return base


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    """A copy of the tree sequences, without sets."""
    for scenario in COUNTS:
        shutil.copytree(made / scenario, tmp_path / "base" / scenario)
    return tmp_path / "base"


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy of the set."""
    return shutil.copytree(made / "processed", tmp_path / "processed")


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


def test_a_set_is_made_again_where_that_is_asked_for(made: Path, base: Path) -> None:
    shutil.copytree(made / "processed", base / "processed")
    assert prepare(base, window_size=500, **{"no-skip_existing": True}) == 0
    assert open_genomes(base / "processed").meta.window_size == 500


def test_other_data_are_left_alone(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (base / "processed").mkdir()
    (base / "processed" / "meta.json").write_text('{"tokenizer": "bytes"}')
    assert "holds other data" in refused(capsys, base)


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
    return path


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("short", "has 19,999 bp, fewer than --sequence_length 20,000"),
        ("other key", "has no such array, but access_3R"),
        ("numbers", "must hold a row of true and false, not int64"),
        ("pickle", "it is no .npz or .npy file of numbers"),
        ("text", "it is no .npz or .npy file of numbers"),
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


# reading


@pytest.fixture(scope="module")
def genomes(made: Path) -> GenomeSplits:
    return open_genomes(made / "masked")


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(first[name], second[name]) for name in ("x", "tokens"))


def test_a_batch_is_what_the_network_reads(genomes: GenomeSplits) -> None:
    batch, example = GenomeSet(genomes.test).batch(np.array([3])), genomes.test.example(3)
    assert np.array_equal(batch["x"][0], np.log1p(example.x.astype(np.float32)))
    assert np.array_equal(batch["tokens"][0], sequences(example.y))


def test_a_batch_counts_its_windows(genomes: GenomeSplits) -> None:
    source = GenomeSource(genomes, data_seed=1)
    assert source.samples(0, 0, 5).count == source.items(0, 0, 5) == 5 * 20


def test_samples_do_not_depend_on_the_batches(genomes: GenomeSplits) -> None:
    whole, parts = GenomeSource(genomes, data_seed=1), GenomeSource(genomes, data_seed=1)
    batch = whole.samples(0, 30, 30)
    for first in (50, 30, 40):
        part = parts.samples(7, first, 10)
        place = slice(first - 30, first - 20)
        assert torch.equal(part["x"], batch["x"][place])


def test_threads_read_the_same(genomes: GenomeSplits) -> None:
    one, four = (GenomeSource(genomes, 1, workers).samples(0, 40, 11) for workers in (0, 4))
    assert same(one, four)


def test_an_epoch_has_each_example_once(genomes: GenomeSplits) -> None:
    count = len(genomes.train)
    source = GenomeSource(genomes, data_seed=1)
    assert sorted(source.numbers(count, count)) == list(range(count))


def test_another_seed_is_another_order(genomes: GenomeSplits) -> None:
    first, second = (GenomeSource(genomes, seed).samples(0, 0, 8) for seed in (1, 2))
    assert not same(first, second)


def test_other_data_have_another_identity(made: Path, genomes: GenomeSplits) -> None:
    assert GenomeSource(genomes, 1).identity() != GenomeSource(open_genomes(made / "processed"), 1).identity()


def test_a_bad_batch_can_be_found(genomes: GenomeSplits) -> None:
    said = GenomeSource(genomes, 1).describe(0, 2, more=True)
    assert said == "pairs high/ts_00000000.trees 3-5, constant/ts_00000001.trees 0-2, ..."


def test_no_example_for_training_is_refused(base: Path) -> None:
    assert prepare(base, train_ratio=0) == 0
    with pytest.raises(UserError, match="no examples for training"):
        GenomeSource(open_genomes(base / "processed"), 1)


def test_a_damaged_example_is_refused(copied: Path) -> None:
    flip(copied / "train" / "shard_00000.bin")
    examples = open_genomes(copied).train
    with pytest.raises(UserError, match=r"shard_00000\.bin cannot be read \(at byte"):
        examples.read(np.arange(len(examples)))


def test_a_lost_shard_is_refused(copied: Path) -> None:
    os.unlink(copied / "train" / "shard_00000.bin")
    with pytest.raises(UserError, match="No such file"):
        open_genomes(copied).train.example(0)


@pytest.mark.parametrize(("field", "value"), [("offset", -1), ("size", -1), ("size", 1 << 30), ("shard", 7)])
def test_a_damaged_index_is_refused(copied: Path, field: str, value: int) -> None:
    index = np.load(copied / "train" / "index.npy")
    index[field][0] = value
    np.save(copied / "train" / "index.npy", index)
    with pytest.raises(UserError, match="cannot be read"):
        open_genomes(copied).train.example(0)


@pytest.mark.parametrize("content", [np.zeros(3), np.zeros(2, dtype=ENTRY), np.array([{}])])
def test_a_foreign_index_is_refused(copied: Path, content: np.ndarray) -> None:
    np.save(copied / "train" / "index.npy", content, allow_pickle=True)
    with pytest.raises(UserError, match="prepare the genomes again"):
        open_genomes(copied)


@pytest.mark.parametrize(
    "changes",
    [
        {"window_size": 0},
        {"n_samples": "6"},
        {"splits": {}},
        {"multipliers": [1e9]},
        {"format": 99},
        {"masked": 1},
    ],
)
def test_a_damaged_description_is_refused(copied: Path, changes: dict[str, Any]) -> None:
    (copied / "meta.json").write_text(json.dumps({**meta_of(copied), **changes}))
    with pytest.raises(UserError, match=r"cannot be read|holds no genomes"):
        open_genomes(copied)


def test_a_folder_without_genomes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python -m data\.genomes\.preprocess makes them"):
        open_genomes(tmp_path)


# showing


def test_inspect_counts_and_checks(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(made / "processed")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "train      42 pairs of 7 files in 1 shards" in lines
    assert "           high: 2 files for training, 1 for test" in lines
    assert lines[-1] == "checksums  right"


@pytest.mark.parametrize("name", ["train/shard_00000.bin", "test/files.json"])
def test_inspect_finds_a_flipped_bit(copied: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / name
    path.write_bytes(path.read_bytes().replace(b"sha256", b"Sha256") if name.endswith("json") else b"x")
    assert inspect.main([str(copied)]) == 1
    assert "another SHA-256" in capsys.readouterr().out


@pytest.mark.slow
def test_inspect_draws_an_example(made: Path, tmp_path: Path) -> None:
    picture = tmp_path / "example.png"
    assert inspect.main([str(made / "masked"), "--draw", "2", "--split", "test", "-o", str(picture)]) == 0
    image = pytest.importorskip("matplotlib.image").imread(picture)
    assert min(image.shape[:2]) > 500 and image.std() > 0


def test_inspect_refuses_an_example_that_is_not_there(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(inspect.main, [str(made / "processed"), "--draw", "42"]) == 2
    assert "has examples 0 to 41" in capsys.readouterr().err
