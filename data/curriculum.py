"""Curricula as batch sources: sequences that grow, and batches that get harder.

    source = length_curriculum(tokens, batch_size=8, min_seq_len=32, max_seq_len=512, n_stages=4)
    source = difficulty_curriculum(easy, hard, batch_size=8, seq_len=128, n_batches=200)
    fit(NextToken(network), source, steps=source.steps, batch_size=8)

A curriculum is spread over the steps of a run, which have to be known. What a step reads is a pure function
of the data seed and its number, so that seeking costs nothing. Windows come without replacement: those of an
epoch do not overlap. They lie on a grid whose place differs from epoch to epoch, so that no token at an end
of the data is always left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.curriculum import DIFFICULTY, LENGTH, is_easy, stage_lengths
from config.mixture import EPOCHS
from data.batch import Batch, BatchSource, PlainSource
from data.bins import Tokens, TokenWindows
from data.mixture import MixtureSource, TakesTurns, Turns
from data.order import SampleOrder, splitmix64, splitmix64_array
from errors import UserError


class ShiftedOrder:
    """First tokens of the samples of one source: the windows of an epoch, in the order of data/order.py, on a
    grid that begins at one of the first tokens, and that reaches to the last one in some epochs.
    """

    def __init__(self, windows: TokenWindows, seed: int) -> None:
        self.order, self.length, self.seed = SampleOrder(windows.n_windows, seed), windows.length, seed
        self.spare = windows.tokens.size - 1 - windows.n_windows * windows.length

    def starts(self, first: int, count: int) -> NDArray[np.int64]:
        """Of samples first .. first + count - 1 of the source, (count,)."""
        samples = np.arange(first, first + count, dtype=np.uint64)
        epochs = samples // np.uint64(self.order.n_windows)
        drawn = splitmix64_array(splitmix64_array(epochs) ^ np.uint64(splitmix64(self.seed)))
        shift = drawn % np.uint64(self.spare + 1)
        return self.order.at(samples) * self.length + shift.astype(np.int64)


class ShiftedMixture(MixtureSource):
    """A mixture by epochs, of one source or more, whose windows are those of ShiftedOrder."""

    def __init__(
        self,
        sources: Mapping[str, TokenWindows],
        weights: Mapping[str, float],
        data_seed: int,
        turns: TakesTurns,
        identities: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """As MixtureSource."""
        super().__init__(sources, weights, data_seed, EPOCHS, identities, meta, turns)
        self.shifted = []
        for windows, seed in zip(self.sources, self.seeds, strict=True):
            self.shifted.append(ShiftedOrder(windows, seed))

    def _starts(self, number: int, first: int, count: int) -> NDArray[np.int64]:
        return self.shifted[number].starts(first, count)


# difficulty


def hard_counts(batch_size: int, n_batches: int, warmup_fraction: float) -> NDArray[np.int64]:
    """How many samples of each batch are hard, (n_batches,): their share rises evenly to 1 in this fraction
    of the run.
    """
    share = np.ones(n_batches)
    if warmup_fraction > 0:
        share = np.minimum(np.arange(n_batches) / max(n_batches - 1, 1) / warmup_fraction, 1.0)
    return (batch_size * share).astype(np.int64)


class DifficultyTurns:
    """Whose turn a sample is: easy ones come first in a step, hard ones last. Sources of one side take turns
    by their weights.

    hard: samples of each step that are hard, of `batch`.
    """

    def __init__(
        self, weights: Mapping[str, float], hard: Collection[str], batch: int, counts: NDArray[np.int64]
    ) -> None:
        """Raises UserError where a side has no weight."""
        names = sorted(weights)
        self.batch, self.hard = batch, counts
        self.before = np.concatenate([[0], np.cumsum(counts)])  # hard samples before each step
        self.names, self.of_hard = names, sorted(hard)
        self.sides: list[tuple[NDArray[np.int64], Turns]] = []  # the easy one, the hard one
        for side in (True, False):
            numbers = [number for number, name in enumerate(names) if is_easy(name, self.of_hard) == side]
            total = sum(weights[names[number]] for number in numbers)
            if not total:
                called = "easy" if side else "hard"
                raise UserError(f"the curriculum has no {called} source: none is there that has a weight")
            shares = [weights[names[number]] / total for number in numbers]
            self.sides.append((np.array(numbers, dtype=np.int64), Turns(shares)))

    @property
    def steps(self) -> int:
        return self.hard.size

    def locate(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As Turns.locate."""
        steps, places = np.divmod(np.arange(first, first + count, dtype=np.int64), self.batch)
        easy = self.batch - self.hard[steps]  # of the sample's step
        is_hard = places >= easy
        rank = np.where(
            is_hard, self.before[steps] + places - easy, steps * self.batch - self.before[steps] + places
        )
        source, of_source = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        for (numbers, turns), mine in zip(self.sides, (~is_hard, is_hard), strict=True):
            if mine.any():  # their ranks follow one another
                which, of_source[mine] = turns.locate(int(rank[mine][0]), int(mine.sum()))
                source[mine] = numbers[which]
        return source, of_source

    def counts(self, samples: int) -> NDArray[np.int64]:
        """As Turns.counts."""
        steps, left = divmod(samples, self.batch)
        hard = int(self.before[steps])
        if left:
            hard += max(0, left - (self.batch - int(self.hard[steps])))
        found = np.zeros(len(self.names), dtype=np.int64)
        for (numbers, turns), of_side in zip(self.sides, (samples - hard, hard), strict=True):
            found[numbers] = turns.counts(of_side)
        return found

    def identity(self) -> dict[str, Any]:
        curriculum = {"kind": DIFFICULTY, "hard": self.of_hard, "samples": self.batch, "steps": self.steps}
        return {"curriculum": curriculum}

    def describe(self) -> str:
        """A line of what a run reads."""
        full = np.flatnonzero(self.hard == self.batch)
        end = (
            f"all of them from step {full[0] + 1} on" if full.size else f"{self.hard[-1]} of them at the end"
        )
        return (
            f"curriculum: of the {self.batch} samples of a step {self.hard[0]} are hard"
            f" ({', '.join(self.of_hard)}) at first, {end}"
        )


class DifficultyCurriculum(ShiftedMixture):
    """Easy and hard sources, which DifficultyTurns mixes."""

    turns: DifficultyTurns

    @property
    def steps(self) -> int:
        return self.turns.steps

    def samples(self, step: int, first: int, count: int) -> Batch:
        """As BatchSource.samples. Raises UserError for a step that the curriculum does not have."""
        check_step(step, first, self.turns.batch, self.steps)
        return super().samples(step, first, count)


def check_step(step: int, first: int, batch: int, steps: int) -> None:
    """Raises UserError where a run is not the one that a curriculum was made for."""
    if step >= steps:
        raise UserError(f"the curriculum is of {steps} steps, and step {step + 1} was asked for")
    if first // batch != step:
        raise UserError(
            f"the curriculum has {batch} samples a step (batch_size x acc_steps), and this run another number"
        )


# length


@dataclass(frozen=True)
class Stage:
    """Steps first .. first + steps - 1 read sequences of this length."""

    length: int
    first: int
    steps: int
    source: ShiftedMixture


class LengthCurriculum(PlainSource):
    """Sequences that grow from stage to stage; a step has the same number of them in all stages.

    Stages share the steps evenly. A stage is skipped where the sources have fewer windows of its length than
    a step has samples.
    """

    def __init__(
        self,
        sources: Mapping[str, TokenWindows],
        weights: Mapping[str, float],
        data_seed: int,
        lengths: Sequence[int],
        batch: int,
        steps: int,
        whole: BatchSource | None = None,
    ) -> None:
        """sources, weights: as of MixtureSource, or one source without a name. lengths: of all stages. batch:
        samples of a step. whole: the same data without a curriculum, which says what they are; None: tokens
        that are no file's.

        Raises UserError where every stage is skipped, or fewer steps than stages are left.
        """
        self.batch, self.steps = batch, steps
        turns = Turns([weights[name] for name in sorted(sources)])
        kept: list[ShiftedMixture] = []
        self.skipped: list[int] = []
        for length in lengths:
            cut = {name: TokenWindows(each.tokens, length, each.vocab_size) for name, each in sources.items()}
            windows = sum(len(each) for each in cut.values())
            if windows < batch or not all(len(each) for each in cut.values()):
                self.skipped.append(length)
            elif kept and kept[-1].length == length:
                kept.append(kept[-1])
            else:
                seed = splitmix64(splitmix64(data_seed) ^ length)
                kept.append(ShiftedMixture(cut, weights, seed, turns))
        if not kept:
            raise UserError(
                f"every stage of the length curriculum is skipped: there are fewer than {batch} windows, one"
                f" for each sample of a step, of {min(lengths)} tokens"
            )
        if steps < len(kept):
            raise UserError(f"a curriculum of {len(kept)} stages needs as many steps, not {steps}")
        self.stages = _stages(kept, steps)
        self.whole: BatchSource = kept[-1] if whole is None else whole
        self.begins = [stage.first for stage in self.stages]

    def stage_of(self, step: int) -> Stage:
        return self.stages[int(np.searchsorted(self.begins, step, side="right")) - 1]

    def length_of(self, step: int) -> int:
        """Tokens of a sequence in the step after so many."""
        return self.stage_of(step).length

    def samples(self, step: int, first: int, count: int) -> Batch:
        """As BatchSource.samples, (count, length of the stage). Raises UserError for a step that the
        curriculum does not have, and for a token that the vocabulary lacks.
        """
        check_step(step, first, self.batch, self.steps)
        stage = self.stage_of(step)
        return stage.source.samples(step, first - stage.first * self.batch, count)

    def items(self, step: int, first: int, count: int) -> int:
        """Tokens of these samples."""
        return count * self.length_of(step)

    def identity(self) -> dict[str, Any]:
        stages = [[stage.length, stage.first] for stage in self.stages]
        curriculum = {"kind": LENGTH, "stages": stages, "samples": self.batch, "steps": self.steps}
        return {**self.whole.identity(), "curriculum": curriculum}

    def size(self) -> dict[str, int]:
        return self.whole.size()

    def parts(self) -> dict[str, Any]:
        return self.whole.parts()

    def differs(self, state: dict[str, Any]) -> str | None:
        return self.whole.differs(state)

    def describe(self, first: int, count: int, more: bool) -> str:
        stage = self.stage_of(first // self.batch)
        where = stage.source.describe(first - stage.first * self.batch, count, more)
        return f"{stage.length} tokens each, {where}"

    def in_words(self) -> list[str]:
        """Lines of what a run reads."""
        lines = []
        for stage in self.stages:
            windows = sum(len(each) for each in stage.source.sources)
            epochs = stage.steps * self.batch / windows
            lines.append(
                f"curriculum: {stage.length} tokens in steps {stage.first + 1} to"
                f" {stage.first + stage.steps}, {epochs:.2f} epochs"
            )
        if self.skipped:
            lines.append(
                f"warning: stages of {', '.join(map(str, self.skipped))} tokens are skipped: the data have"
                f" fewer than {self.batch} windows of them, one for each sample of a step"
            )
        return lines


def _stages(kept: Sequence[ShiftedMixture], steps: int) -> list[Stage]:
    """Equal shares of the steps; stages of one length are one."""
    stages: list[Stage] = []
    for number, source in enumerate(kept):
        first, end = (place * steps // len(kept) for place in (number, number + 1))
        if stages and stages[-1].source is source:
            first = stages.pop().first
        stages.append(Stage(source.length, first, end - first, source))
    return stages


# of token arrays


def length_curriculum(
    tokens: Tokens,
    batch_size: int,
    min_seq_len: int = 32,
    max_seq_len: int = 512,
    n_stages: int = 4,
    batches_per_stage: int = 100,
    data_seed: int = 0,
) -> LengthCurriculum:
    """Of tokens (N,) in memory; `steps` is batches_per_stage for each stage that is not skipped. Raises
    UserError.
    """
    lengths = stage_lengths(n_stages, min_seq_len, max_seq_len)
    kept = [length for length in lengths if (tokens.size - 1) // length >= batch_size]
    windows = {"": TokenWindows(tokens, min_seq_len)}
    steps = max(len(kept), 1) * batches_per_stage
    return LengthCurriculum(windows, {"": 1.0}, data_seed, lengths, batch_size, steps)


def difficulty_curriculum(
    easy_data: Tokens,
    hard_data: Tokens,
    batch_size: int,
    seq_len: int,
    n_batches: int = 200,
    warmup_fraction: float = 0.5,
    data_seed: int = 0,
) -> DifficultyCurriculum:
    """Of tokens (N,) in memory, each at least seq_len + 1. Raises UserError."""
    windows = {"easy": TokenWindows(easy_data, seq_len), "hard": TokenWindows(hard_data, seq_len)}
    for name, each in windows.items():
        if not len(each):
            raise UserError(f"the {name} data have {each.tokens.size} tokens, too few for one of {seq_len}")
    weights = {"easy": 0.5, "hard": 0.5}
    turns = DifficultyTurns(
        weights, ["hard"], batch_size, hard_counts(batch_size, n_batches, warmup_fraction)
    )
    return DifficultyCurriculum(windows, weights, data_seed, turns)
