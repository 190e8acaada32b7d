"""Reading sets of genomes: batches, their order, damage, and what data.inspect shows."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("msprime")

from data import inspect
from data.genomes.store import ENTRY, GenomeSplits, open_genomes
from data.genomes.targets import sequences
from data.genomes.windows import GenomeSet, GenomeSource
from errors import UserError
from tests.command_lines import code_of
from tests.corpora import flip
from tests.genomes import make_sets, prepare


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sets `processed` and `masked`. Not to be changed."""
    return make_sets(tmp_path_factory.mktemp("genomes"))


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy of the set."""
    return shutil.copytree(made / "processed", tmp_path / "processed")


# batches


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


def test_no_example_for_training_is_refused(made: Path, tmp_path: Path) -> None:
    assert prepare(made, train_ratio=0, out_subdir=tmp_path / "set") == 0
    with pytest.raises(UserError, match="no examples for training"):
        GenomeSource(open_genomes(tmp_path / "set"), 1)


# damage


def test_a_damaged_example_is_refused(copied: Path) -> None:
    flip(copied / "train" / "shard_00000.bin")
    examples = open_genomes(copied).train
    with pytest.raises(UserError, match=r"shard_00000\.bin cannot be read \(at byte"):
        examples.read(np.arange(len(examples)))


def test_a_lost_shard_is_refused(copied: Path) -> None:
    os.unlink(copied / "train" / "shard_00000.bin")
    with pytest.raises(UserError, match="No such file"):
        open_genomes(copied).train.example(0)


def damage(folder: Path, field: str, value: int) -> None:
    index = np.load(folder / "train" / "index.npy")
    index[field][0] = value
    np.save(folder / "train" / "index.npy", index)


@pytest.mark.parametrize("field", ["offset", "size", "shard", "file", "first"])
def test_a_damaged_index_is_refused(copied: Path, field: str) -> None:
    damage(copied, field, 7)
    with pytest.raises(UserError, match=r"index\.npy and files\.json have another SHA-256"):
        open_genomes(copied)


@pytest.mark.parametrize(("field", "value"), [("offset", -1), ("size", -1), ("size", 1 << 30), ("shard", 7)])
def test_a_place_beyond_the_shards_is_refused(copied: Path, field: str, value: int) -> None:
    damage(copied, field, value)
    with pytest.raises(UserError, match="cannot be read"):
        open_genomes(copied, check=False).train.example(0)


def test_the_description_of_another_set_is_refused(copied: Path, made: Path) -> None:
    meta = json.loads((copied / "meta.json").read_text())
    other = json.loads((made / "masked" / "meta.json").read_text())
    meta["splits"] = other["splits"]
    (copied / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="another SHA-256"):
        open_genomes(copied)


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
    (copied / "meta.json").write_text(
        json.dumps({**json.loads((copied / "meta.json").read_text()), **changes})
    )
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
