"""Length and difficulty curricula, against the public numbers."""

import numpy as np
import pytest

from config.curriculum import stage_lengths
from data.curriculum import difficulty_curriculum, length_curriculum
from tests.reference.cases import each, of

FILE = "training_library.json.gz"


def tokens_of(case):
    numbers = np.arange(case["input"]["n_tokens"])
    return ((13 * numbers + 5) % 97).astype(np.uint16)


def grown(case, **changes):
    given = {**case["input"], **changes}
    names = ("batch_size", "min_seq_len", "max_seq_len", "n_stages", "batches_per_stage")
    return length_curriculum(tokens_of(case), **{name: given[name] for name in names})


class ByRule:
    """The starts that the file's rule draws, of the windows after so many."""

    def __init__(self, legal, before):
        self.legal, self.before = legal, before

    def starts(self, first, count):
        drawn = self.before + np.arange(first, first + count)
        return (7919 * drawn + 104729) % self.legal


def batches(source):
    for step in range(source.steps):
        yield source.samples(step, step * source.batch, source.batch)


def many_starts(source, number):
    """Those of a source's samples in so many epochs that each place of the grid is drawn."""
    order = source.shifted[number]
    return order.starts(0, 40 * (order.spare + 1) * len(source.sources[number]))


@each(FILE, "cases", where=of("length_curriculum"))
def test_lengths_of_the_stages(case):
    given, stages = case["input"], case["right"]["stages"]
    lengths = stage_lengths(given["n_stages"], given["min_seq_len"], given["max_seq_len"])
    both = [(stage["seq_len"], stage["seq_len_integer_arithmetic"]) for stage in stages]
    assert len(lengths) == len(both)
    assert all(length in either for length, either in zip(lengths, both, strict=True))


@each(FILE, "cases", where=of("length_curriculum"))
def test_stages_that_are_skipped(case):
    assert grown(case).skipped == [each["seq_len"] for each in case["right"]["stages"] if each["skipped"]]


@each(FILE, "cases", where=of("length_curriculum"))
def test_length_of_each_batch(case):
    shapes = [tuple(batch["inputs"].shape) for batch in batches(grown(case))]
    assert shapes == [(case["input"]["batch_size"], length) for length in case["right"]["batch_lengths"]]


@each(FILE, "cases", where=of("length_curriculum"))
def test_starts_reach_both_ends_of_the_data(case):
    right = {stage["seq_len"]: stage for stage in case["right"]["stages"]}
    for stage in grown(case).stages:
        starts = many_starts(stage.source, 0)
        ends = right[stage.length]["first_start"], right[stage.length]["last_start"]
        assert (starts.min(), starts.max()) == ends


@each(FILE, "cases", where=of("length_curriculum"))
def test_windows_at_the_starts_of_the_rule(case):
    source, tokens = grown(case), tokens_of(case)
    for stage in source.stages:
        legal = tokens.size - stage.length
        stage.source.shifted[0] = ByRule(legal, stage.first * source.batch)
    for starts, batch in zip(case["right"]["starts_by_rule"], batches(source), strict=True):
        length = batch["inputs"].shape[1]
        for shift, name in enumerate(("inputs", "targets")):
            expected = [tokens[start + shift : start + shift + length].tolist() for start in starts]
            assert batch[name].tolist() == expected


@each(FILE, "cases", where=of("length_curriculum"))
def test_the_weight_of_a_batch_is_its_tokens(case):
    counts = [batch.count for batch in batches(grown(case))]
    assert counts == [case["input"]["batch_size"] * length for length in case["right"]["batch_lengths"]]


def hardened(case):
    given = case["input"]
    easy, hard = np.arange(given["n_easy_tokens"]), 1000 + np.arange(given["n_hard_tokens"])
    names = ("batch_size", "seq_len", "n_batches", "warmup_fraction")
    parts = (part.astype(np.uint16) for part in (easy, hard))
    return difficulty_curriculum(*parts, **{name: given[name] for name in names})


@each(FILE, "cases", where=of("difficulty_curriculum"))
def test_easy_rows_come_first(case):
    source, batch = hardened(case), case["input"]["batch_size"]
    for step in range(source.steps):
        is_hard = source.samples(step, step * batch, batch)["inputs"][:, 0] >= 1000
        assert is_hard.tolist() == sorted(is_hard.tolist())


@each(FILE, "cases", where=of("difficulty_curriculum"))
def test_hard_rows_of_each_batch(case):
    source, batch, found = hardened(case), case["input"]["batch_size"], []
    for step in range(source.steps):
        found.append(int((source.samples(step, step * batch, batch)["inputs"][:, 0] >= 1000).sum()))
    right = case["right"]
    assert found in (right["n_hard"], right.get("n_hard_exact_arithmetic"))
    if found == right["n_hard"]:
        assert [batch - hard for hard in found] == right["n_easy"]


@each(FILE, "cases", where=of("difficulty_curriculum"))
@pytest.mark.parametrize(("number", "side"), [(0, "easy"), (1, "hard")])
def test_starts_of_each_side_reach_both_ends(case, number, side):
    starts = many_starts(hardened(case), number)
    assert (starts.min(), starts.max()) == (0, case["right"][f"last_start_{side}"])
