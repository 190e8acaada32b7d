"""Times along genomes: blocks, draws, what may be missing, and the command."""

from __future__ import annotations

import csv
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tskit

import infer
from data.genomes.haplotypes import Haplotypes
from data.genomes.targets import VOCABULARY
from data.genomes.trees import read_trees, true_times
from errors import UserError
from models.coalescence.network import CoalescenceTransformer
from models.coalescence.settings import AdapterSettings, CoalescenceSettings
from optim.coalescence.decoding import decode, uniforms_of
from optim.coalescence.evaluate import measures
from optim.coalescence.inference import Correction, Drawing, Sequences, blocks_of, draws, pairs_of
from optim.coalescence.parts import Parts
from tests.command_lines import code_of
from tests.programs import ROOT, start

CPU = torch.device("cpu")
WINDOWS, SAMPLES, WINDOW = 6, 4, 100
LENGTH = WINDOWS * WINDOW
NO_GAPS = np.zeros((0, 2))
SHORTEST = ("--pairs", "0-1", "--replicates", "2")


def network(mask_singletons: bool = True) -> CoalescenceTransformer:
    torch.manual_seed(1)
    settings = CoalescenceSettings(SAMPLES, WINDOWS, 1, 2, mask_singletons)
    made = CoalescenceTransformer(settings).eval()
    for parameter in made.parameters():  # far from uniform predictions
        parameter.data *= 3
    return made


def saved(folder: Path, mask_singletons: bool = True) -> Path:
    """A checkpoint of it."""
    path = folder / ("plain.pt" if mask_singletons else "missing.pt")
    made = network(mask_singletons)
    state = {
        "model": made.state_dict(),
        "args": {"recipe": "coalescence", "model": "tiny"},
        "settings": {"n_head": 2, "mask_singletons": mask_singletons},
        "genomes": {"sequence_length": LENGTH, "window_size": WINDOW},
        "itr": 0,
    }
    torch.save(state, path)
    return path


def haplotypes(length: float = 2.5 * LENGTH, sites: int = 60) -> Haplotypes:
    generator = np.random.default_rng(3)
    positions = np.sort(generator.uniform(0, length, sites))
    return Haplotypes(positions, generator.integers(0, 2, (sites, SAMPLES)).astype(np.uint8), length)


def sequences(
    found: Haplotypes, gaps: Any = NO_GAPS, reads_missing: bool = False, pairs: str | None = None
) -> Sequences:
    return Sequences(found, pairs_of(pairs, SAMPLES), WINDOW, WINDOWS, gaps, reads_missing)


def test_cached_decoding_goes_through_an_adapter() -> None:
    torch.manual_seed(2)
    adapter = AdapterSettings(SAMPLES, 8)
    settings = CoalescenceSettings(SAMPLES + 2, WINDOWS, 1, 2, adapter=adapter)
    made = CoalescenceTransformer(settings).eval()
    x = torch.from_numpy(sequences(haplotypes()).features(np.arange(2)))
    rows = decode(made, x, uniforms_of(range(2), WINDOWS, 0).unsqueeze(1), 1).squeeze(1)
    begun = torch.cat((torch.ones(2, 1, dtype=torch.int64), rows[:, :-1]), dim=1)
    logits = made.logits(made.run(x, begun).states)
    assert (logits[..., 2:].argmax(-1) + 2 == rows).all()


@pytest.mark.parametrize("n_total", [1, 5, 6, 7, 11, 12, 13, 600])
def test_blocks_cover_each_window_once(n_total: int) -> None:
    covered = []
    for block in blocks_of(n_total, WINDOWS):
        covered += range(block.first + block.new, block.first + WINDOWS)
        assert block.first == 0 or block.first + WINDOWS <= n_total
    assert [window for window in covered if window < n_total] == list(range(n_total))


def test_each_sequence_is_read_from_where_its_block_begins() -> None:
    found = haplotypes(2 * LENGTH)
    part = found.positions >= LENGTH
    second = Haplotypes(found.positions[part] - LENGTH, found.alleles[part], LENGTH)
    whole = sequences(found).features(np.array([2, 3]))
    assert (whole == sequences(second).features(np.array([0, 1]))).all()


def drawn(rows: int, parts: Parts | None = None, **more: Any) -> Any:
    made = sequences(haplotypes(), pairs="all")
    drawing = Drawing(replicates=3, rows=rows)
    return draws(network(), len(made), made.features, drawing, CPU, parts, **more)


def test_draws_do_not_depend_on_the_batches() -> None:
    assert (drawn(1) == drawn(1000)).all()


def test_replicates_and_sequences_draw_differently() -> None:
    tokens = drawn(1000).reshape(-1, WINDOWS)
    assert len({tuple(row) for row in tokens.tolist()}) == len(tokens)


def test_interrupted_draws_go_on_where_they_were(tmp_path: Path) -> None:
    parts, calls = Parts(tmp_path, "these"), 0

    def interrupt(tokens: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 2.5 * WINDOWS:  # in the third batch of nine
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn(6, parts, advanced=interrupt)
    assert len(list(parts.folder.iterdir())) == 2
    anew: list[int] = []
    assert (drawn(6, parts, advanced=anew.append) == drawn(6)).all()
    assert len(anew) == 2 + 7 * WINDOWS


def test_a_damaged_part_is_drawn_anew(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "these")
    found = drawn(6, parts)
    first = min(parts.folder.iterdir())
    first.write_bytes(first.read_bytes()[:-7])
    assert (drawn(6, parts) == found).all()


def test_parts_of_other_draws_are_not_taken_up(tmp_path: Path) -> None:
    assert Parts(tmp_path, {"seed": 1}).folder != Parts(tmp_path, {"seed": 2}).folder


def test_a_network_that_reads_missing_shares_is_told_that_nothing_is_missing() -> None:
    x = sequences(haplotypes(2 * LENGTH), reads_missing=True).features(np.array([0]))
    assert x[0, 0, ..., 0] == pytest.approx(np.log1p(1), abs=1e-3)
    assert x[0, 1, ..., 0] == pytest.approx(np.log1p(np.e), abs=1e-3)


def test_what_is_beyond_the_end_is_missing() -> None:
    made = sequences(haplotypes(LENGTH / 2), reads_missing=True)
    x = made.features(np.array([0]))
    assert x[0, 0, 0, -1, 0] == pytest.approx(np.log1p(np.e), abs=1e-3)
    assert made.available(made.blocks[0]).tolist() == [100, 100, 100, 0, 0, 0]
    (part,) = made.times_of(np.full((2, 2, WINDOWS), 9), VOCABULARY, None)
    assert (part.windows, part.ln_times.shape) == (slice(0, 3), (2, 2, 3))


def test_sites_in_gaps_are_not_read() -> None:
    found = haplotypes()
    gaps = np.array([[150.0, 420.0]])
    outside = (found.positions < 150) | (found.positions >= 420)
    without = Haplotypes(found.positions[outside], found.alleles[outside], found.length)
    one, other = (sequences(each, gaps, True).features(np.arange(6)) for each in (found, without))
    assert (one == other).all()
    assert sequences(found, gaps).accessible()[:5].tolist() == [1, 0.5, 0, 0, 0.8]


def test_a_last_window_that_is_cut_is_as_long_as_the_rest() -> None:
    found = haplotypes(2 * LENGTH + 34)
    made = sequences(found, np.array([[2 * LENGTH, 2 * LENGTH + 17]]))
    assert made.blocks[-1].first == WINDOWS + 1 and made.n_total == 2 * WINDOWS + 1
    assert made.available(made.blocks[-1]).tolist() == [100] * 5 + [17]
    assert made.accessible()[-1] == 0.5


def test_corrected_times_explain_the_differences_of_each_pair() -> None:
    made = sequences(haplotypes(2 * LENGTH), np.array([[0.0, 130.0]]))
    generator = np.random.default_rng(0)
    for block in made.blocks:
        times = generator.uniform(5, 9, (4, 2, WINDOWS))
        corrected = made.corrected(block, times, Correction(1e-5, "deterministic"), generator)
        means = np.exp(corrected.mean(0))
        expected = 2e-5 * (means * made.available(block)).sum(-1)
        _, alleles = made._sites(block)
        assert expected == pytest.approx([(alleles[:, a] != alleles[:, b]).sum() for a, b in made.pairs])


def test_a_block_of_which_nothing_is_known_is_not_corrected() -> None:
    made = sequences(haplotypes(2 * LENGTH), np.array([[0.0, LENGTH]]))
    tokens = np.full((2, len(made), WINDOWS), 200)
    plain, corrected = (
        [part.ln_times for part in made.times_of(tokens, VOCABULARY, how)]
        for how in (None, Correction(1e-8, "sampled"))
    )
    assert (corrected[0] == plain[0]).all() and (corrected[1] != plain[1]).any()


def test_pairs_without_any_difference_cannot_be_corrected_by_it() -> None:
    alike = Haplotypes(np.array([5.0]), np.ones((1, SAMPLES), dtype=np.uint8), LENGTH)
    tokens = np.full((2, 2, WINDOWS), 200)
    with pytest.raises(UserError, match="no pair differs"):
        list(sequences(alike).times_of(tokens, VOCABULARY, Correction(1e-8, "deterministic")))


def test_the_parts_of_a_sequence_cover_each_window_once() -> None:
    made = sequences(haplotypes(2 * LENGTH + 34))
    parts = [*made.times_of(np.full((2, len(made), WINDOWS), 9), VOCABULARY, None)]
    covered = [window for part in parts for window in range(made.n_total)[part.windows]]
    assert covered == list(range(made.n_total))
    assert sum(part.ln_times.shape[-1] for part in parts) == made.n_total


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        (None, [[0, 1], [2, 3]]),
        ("0-3, 2-1", [[0, 3], [2, 1]]),
        ("all", [list(p) for p in np.argwhere(np.triu(np.ones((4, 4)), 1))]),
    ],
)
def test_pairs_of_haplotypes(text: str | None, pairs: list[list[int]]) -> None:
    assert pairs_of(text, SAMPLES).tolist() == pairs


def test_a_calibrated_posterior_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    centre = generator.normal(10, 2, (200, 20))
    times = centre + generator.normal(0, 0.5, (200, 200, 20))
    found = measures(times, centre + generator.normal(0, 0.5, centre.shape), 10.0)
    for level, share in found["inside"].items():
        assert share == pytest.approx(float(level), abs=0.03)
    assert found["mse"] == pytest.approx(0.25, abs=0.02) and found["r"] > 0.95
    assert found["mse_of_train_mean"] == pytest.approx(4.25, abs=0.3)
    assert sum(found["ranks"]) == found["windows"]


def trees(folder: Path, samples: int = SAMPLES // 2) -> Path:
    import msprime

    ancestry = msprime.sim_ancestry(
        samples, sequence_length=2.5 * LENGTH, population_size=1e4, recombination_rate=1e-6, random_seed=4
    )
    path = folder / "x.trees"
    msprime.sim_mutations(ancestry, rate=1e-6, random_seed=4).dump(path)
    return path


def vcf(folder: Path, source: Path) -> Path:
    path = folder / "x.vcf"
    with path.open("w") as file:
        tskit.load(source).write_vcf(file, position_transform=lambda x: 1 + np.array(x, dtype=int))
    return path


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "times.csv").open() as file:
        return list(csv.DictReader(file))


def inferred(folder: Path, *words: object) -> list[dict[str, str]]:
    """The table of a call, in a folder of its own."""
    output = folder / "times"
    assert code_of(infer.main, [*map(str, words), "--output", str(output), "--device", "cpu"]) == 0
    return table(output)


@pytest.mark.slow
def test_a_tree_sequence_and_its_vcf_have_the_same_times(tmp_path: Path) -> None:
    source, checkpoint = trees(tmp_path), saved(tmp_path)
    of_trees = inferred(tmp_path, checkpoint, "--input", source, *SHORTEST)
    facts = json.loads((tmp_path / "times" / "times.json").read_text())
    assert len(of_trees) == 15 and facts["accuracy"]["mse"] > 0
    assert (tmp_path / "times" / "times.png").stat().st_size > 10_000
    words = ("--sequence_length", int(2.5 * LENGTH))  # tskit writes one more into the header
    of_vcf = inferred(tmp_path, checkpoint, "--input", vcf(tmp_path, source), *SHORTEST, *words)
    assert [row["mean"] for row in of_vcf] == [row["mean"] for row in of_trees]
    assert "truth" not in of_vcf[0]


def test_true_times_are_the_same_a_few_pairs_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ts, pairs = tskit.load(trees(tmp_path)), pairs_of("all", SAMPLES)
    whole, _ = true_times(ts, pairs, WINDOW)
    monkeypatch.setattr("data.genomes.trees.MOST_DISTANCES", 1)
    few, _ = true_times(ts, pairs, WINDOW)
    assert whole is not None and few is not None
    assert whole.shape == (6, 15) and (whole == few).all()


def test_what_has_no_trees_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "gap.trees"
    tskit.load(trees(tmp_path)).delete_intervals([[150, 420]]).dump(path)
    found, _ = read_trees(path, SAMPLES, False)
    assert found.gaps.tolist() == [[150, 420]]


@pytest.mark.slow
def test_csv_and_parquet_hold_the_same(tmp_path: Path) -> None:
    import pyarrow.parquet

    words = (saved(tmp_path), "--input", trees(tmp_path), "--replicates", 2, "--draws")
    rows = inferred(tmp_path, *words)
    inferred(tmp_path, *words, "--format", "parquet")
    other = pyarrow.parquet.read_table(tmp_path / "times" / "times.parquet").to_pylist()
    assert list(rows[0]) == list(other[0])
    for row, same in zip(rows, other, strict=True):
        assert row.pop("pair") == same.pop("pair")
        assert [float(value) for value in row.values()] == pytest.approx(list(same.values()), rel=1e-8)


@pytest.mark.slow
def test_times_follow_the_mutation_rate_that_is_given(tmp_path: Path) -> None:
    words = (saved(tmp_path), "--input", trees(tmp_path), *SHORTEST, "--correction", "deterministic")
    once, twice = (inferred(tmp_path, *words, "--mutation_rate", rate) for rate in (1e-6, 2e-6))
    lower = [float(a["mean"]) - float(b["mean"]) for a, b in zip(once, twice, strict=True)]
    assert lower == pytest.approx([np.log(2)] * len(once))


@pytest.mark.slow
def test_a_mask_is_read_either_way_round(tmp_path: Path) -> None:
    checkpoint, source = saved(tmp_path, mask_singletons=False), trees(tmp_path)
    gaps, rest = tmp_path / "gaps.bed", tmp_path / "rest.bed"
    gaps.write_text("1 150 420\n")
    rest.write_text("1 0 150\n1 420 9999\n")
    words = (checkpoint, "--input", source, *SHORTEST, "--mask")
    one = inferred(tmp_path, *words, gaps)
    assert one == inferred(tmp_path, *words, rest, "--mask_holds", "accessible")
    assert [float(row["accessible"]) for row in one[:5]] == [1, 0.5, 0, 0, 0.8]
    assert one != inferred(tmp_path, *words[:-1])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--input", "TREES", "--mask", "BED"], "this model was not trained with missing data"),
        (["--input", "GAP"], "a stretch without trees: this model was not trained with missing data"),
        (["--input", "TREES", "--output", "BED"], "File exists; give another --output"),
        (["--input", "TREES", "--pairs", "0-4"], "--pairs 0-4: two different haplotypes of 0 to 3"),
        (["--input", "TREES", "--pairs", "1-1"], "--pairs 1-1: two different haplotypes"),
        (["--input", "TREES", "--pairs", "x"], "'x' is no pair"),
        (["--input", "TREES", "--contig", "1"], "--contig is about a VCF"),
        (["--input", "FEW"], "the model reads 4 haplotypes and the file has 2"),
        (["--input", "BED"], "a record before the line #CHROM"),
        (["--input", "DAMAGED"], "is no tree sequence that can be read"),
        (["--input", "NOWHERE"], "no such file"),
        (["--input", "TREES", "--mask", "NOWHERE"], "no such file"),
        ([], "--input is needed"),
        (["--input", "TREES", "--mutation_rate", "0"], "--mutation_rate 0"),
        (["--input", "TREES", "--mutation_rate", "-1"], "--mutation_rate"),
        (["--input", "TREES", "--replicates", "0"], "--replicates"),
        (["--input", "TREES", "--format", "json"], "--format"),
        (["--input", "TREES", "--correction", "sampled"], "--correction needs --mutation_rate"),
        (["--input", "TREES", "--mask_holds", "accessible"], "--mask_holds needs --mask"),
        (["--input", "TREES", "--mutationrate", "1"], "unknown flag --mutationrate (did you mean"),
        (["--input", "TREES", "stray"], "unexpected argument 'stray'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    source = trees(tmp_path)
    few, damaged, bed = tmp_path / "few", tmp_path / "damaged.trees", tmp_path / "x.bed"
    few.mkdir()
    bed.write_text("1 5 9\n")
    damaged.write_bytes(source.read_bytes()[:-300])
    tskit.load(source).delete_intervals([[200, 700]]).dump(tmp_path / "gap.trees")
    places = {
        "TREES": source,
        "FEW": trees(few, 1),
        "BED": bed,
        "DAMAGED": damaged,
        "NOWHERE": tmp_path / "n",
        "GAP": tmp_path / "gap.trees",
    }
    output = tmp_path / "times"
    argv = [str(saved(tmp_path)), "--output", str(output), "--device", "cpu"]
    argv += [str(places.get(word, word)) for word in words]
    assert code_of(infer.main, argv) == 2
    said = capsys.readouterr().err
    assert line in said and said.startswith("infer.py: error: ") and said.count("\n") == 1
    assert not output.is_dir() or not list(output.iterdir())


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_checkpoint_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "x.pt"
    if content is None:
        torch.save({"model": {"a": torch.zeros(2)}, "itr": 0}, path)
    else:
        path.write_bytes(content)
    words = [str(path), "--input", str(trees(tmp_path)), "--output", str(tmp_path / "o"), "--device", "cpu"]
    assert code_of(infer.main, words) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_drawn_and_the_same_command_goes_on(tmp_path: Path) -> None:
    words = ["--input", str(trees(tmp_path)), "--pairs", "all", "--replicates", "400", "--rows", "400"]
    words += ["--device", "cpu", "--output", str(tmp_path / "times")]
    program = [sys.executable, str(ROOT / "infer.py"), str(saved(tmp_path)), *words]
    process = start(program)
    while not list(tmp_path.glob("times/.parts_*/tokens_*.npy")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in said
    assert not (tmp_path / "times" / "times.csv").exists()
    kept = len(list(tmp_path.glob("times/.parts_*/*")))
    assert 1 <= kept < 18
    assert code_of(infer.main, program[2:]) == 0
    assert len(table(tmp_path / "times")) == 6 * 15 and not list(tmp_path.glob("times/.parts_*"))
