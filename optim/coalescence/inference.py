"""Times along the genomes of haplotype pairs, from a trained network: the sequence in blocks of the network's
windows, draws of all of them in batches, and what is made of these.

    sequences = Sequences(haplotypes, pairs, window_size, n_windows, inaccessible, reads_missing=False)
    tokens = draws(network, len(sequences), sequences.features, Drawing(), device)
    for part in sequences.times_of(tokens, VOCABULARY, None):
        part.ln_times                                         # (R, P, windows)

Legend: K blocks, P pairs, N = K * P sequences (all pairs of the first block, then those of the second), R
replicates, W windows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.genomes.features import inference_features, is_inside, merged, missing_in
from data.genomes.haplotypes import Haplotypes
from data.genomes.targets import FIRST, GRID, VOCABULARY
from errors import UserError
from models.coalescence.network import CoalescenceTransformer
from models.coalescence.settings import PRESETS
from optim.coalescence import names
from optim.coalescence.decoding import decode, uniforms_of
from optim.coalescence.load import network_of
from optim.coalescence.parts import Parts, Tokens
from optim.coalescence.posterior import deterministic_correction, differences, sampled_correction
from optim.opening import open_checkpoint

Array = NDArray[np.float64]
Pairs = NDArray[np.int64]
SAMPLED, DETERMINISTIC = "sampled", "deterministic"
CORRECTION_SEED = 1234


@dataclass(frozen=True)
class Drawing:
    """rows: replicates of sequences that are decoded together."""

    replicates: int = 15
    seed: int = 1234
    top_k: int = 50
    rows: int = 240

    @property
    def sequences(self) -> int:
        """Sequences of a batch."""
        return max(1, self.rows // self.replicates)


@dataclass(frozen=True)
class Model:
    """An opened checkpoint. window_size: bp of a window of the data that it was trained on."""

    network: CoalescenceTransformer
    path: Path
    window_size: int

    @property
    def reads_missing(self) -> bool:
        """Whether it reads which share of a window is missing."""
        return not self.network.settings.mask_singletons


def open_model(given: str, device: torch.device) -> Model:
    """A file, an experiment, or a name in the cache of checkpoints; in evaluation mode. Raises UserError."""
    path = names.find(given)
    state = open_checkpoint(path)
    network = network_of(path, state).to(device).eval()
    preset = PRESETS.get(str((state.get("args") or {}).get("model")), PRESETS["broad"])
    window_size = state.get("genomes", {}).get("window_size", preset.window_size)
    return Model(network, path, window_size)


def draws(
    network: CoalescenceTransformer,
    n_sequences: int,
    features: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    drawing: Drawing,
    device: torch.device,
    parts: Parts | None = None,
    advanced: Callable[[int], object] = lambda tokens: None,
) -> Tokens:
    """Tokens (R, N, W) of all sequences. features: of some of them, by their numbers, (I, 2, S, W, n), as the
    network takes them.

    Row r * N + i of all rows is replicate r of sequence i; its generator is seeded by this number. advanced:
    called with the number of tokens that are drawn or found anew.
    """
    replicates, windows = drawing.replicates, network.settings.n_windows
    tokens = np.empty((replicates, n_sequences, windows), dtype=np.uint16)
    for first in range(0, n_sequences, drawing.sequences):
        numbers = np.arange(first, min(first + drawing.sequences, n_sequences))
        shape = (numbers.size, replicates, windows)
        found = None if parts is None else parts.load(first, shape)
        if found is None:
            rows = numbers[:, None] + n_sequences * np.arange(replicates)
            uniforms = uniforms_of(rows.ravel().tolist(), windows, drawing.seed).view(shape)
            x = torch.from_numpy(features(numbers)).to(device)
            drawn = decode(network, x, uniforms, drawing.top_k, lambda: advanced(rows.size))  # noqa: B023
            found = drawn.cpu().numpy().astype(np.uint16)
            if parts is not None:
                parts.save(first, found)
        else:
            advanced(found.size)
        tokens[:, first : first + numbers.size] = found.transpose(1, 0, 2)
    return tokens


def ln_times(tokens: NDArray[Any], vocab_size: int = VOCABULARY) -> Array:
    """The lower edge of the bin that each token of any shape stands for. vocab_size: of the network, whose
    bins are spread over the range of the grid.
    """
    grid = np.linspace(GRID[0], GRID[-1], vocab_size - FIRST)
    found: Array = grid[tokens.astype(np.int64) - FIRST]
    return found


@dataclass(frozen=True)
class Block:
    """first: window of the sequence that it begins with. new: its windows before this one are those of the
    block before it, too.
    """

    first: int
    new: int


def blocks_of(n_total: int, n_windows: int) -> list[Block]:
    """Blocks of n_windows that cover n_total windows. The last one ends with the sequence, and so may overlap
    the one before; of a sequence with fewer windows, the only one reaches beyond the end.
    """
    blocks = [Block(first, 0) for first in range(0, max(n_total - n_windows, 0) + 1, n_windows)]
    rest = n_total - blocks[-1].first - n_windows
    if rest > 0:
        blocks.append(Block(n_total - n_windows, n_windows - rest))
    return blocks


@dataclass(frozen=True)
class Part:
    """windows: of the sequence, which no other part has. ln_times: of them, (R, P, windows)."""

    windows: slice
    ln_times: Array


@dataclass(frozen=True)
class Correction:
    """mutation_rate: per bp and generation. kind: SAMPLED or DETERMINISTIC."""

    mutation_rate: float
    kind: str


class Sequences:
    """The pairs of a sequence, block by block. inaccessible: intervals (K, 2) in bp of which nothing is
    known; sites in them are not read.
    """

    def __init__(
        self,
        haplotypes: Haplotypes,
        pairs: Pairs,
        window: int,
        n_windows: int,
        inaccessible: Any,
        reads_missing: bool,
    ) -> None:
        self.haplotypes, self.pairs = haplotypes, pairs
        self.window, self.n_windows, self.reads_missing = window, n_windows, reads_missing
        self.n_total = math.ceil(haplotypes.length / window)
        self.blocks = blocks_of(self.n_total, n_windows)
        beyond = [[haplotypes.length, max(self.n_total, n_windows) * window]]
        self.inaccessible = merged(np.concatenate([np.reshape(inaccessible, (-1, 2)), beyond]))
        kept = ~is_inside(haplotypes.positions, self.inaccessible)
        self.positions, self.alleles = haplotypes.positions[kept], haplotypes.alleles[kept]

    def __len__(self) -> int:
        return len(self.blocks) * len(self.pairs)

    @property
    def reaches_beyond(self) -> bool:
        """Whether the network reads windows beyond the end of the sequence."""
        return self.n_total < self.n_windows

    def _length(self) -> int:
        return self.n_windows * self.window

    def _sites(self, block: Block) -> tuple[Array, NDArray[np.uint8]]:
        """Positions from the begin of a block, and alleles, of the sites in it."""
        begin = block.first * self.window
        found = slice(*np.searchsorted(self.positions, [begin, begin + self._length()]))
        return self.positions[found] - begin, self.alleles[found]

    def _missing(self, block: Block) -> Any:
        """Inaccessible intervals from the begin of a block."""
        shifted = self.inaccessible - block.first * self.window
        return merged(np.clip(shifted, 0, self._length()))

    def features(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of some sequences, as the network takes them."""
        of_block, of_pair = np.divmod(numbers, len(self.pairs))
        found = []
        for number in np.unique(of_block):
            block, pairs = self.blocks[number], self.pairs[of_pair[of_block == number]]
            positions, alleles = self._sites(block)
            missing = self._missing(block) if self.reads_missing else None
            x = inference_features(positions, alleles, pairs, self.window, self._length(), missing=missing)
            found.append(x)
        return np.concatenate(found)

    def available(self, block: Block) -> Array:
        """Accessible bp of each window of a block, (W,)."""
        return self.window - missing_in(self._missing(block), self.window, self._length())

    def accessible(self) -> Array:
        """Share of each window of the sequence that is accessible, (windows,)."""
        missing = missing_in(self.inaccessible, self.window, self.haplotypes.length)
        lengths = np.diff(np.append(np.arange(self.n_total) * self.window, self.haplotypes.length))
        return 1 - missing / lengths

    def times_of(self, tokens: Tokens, vocab_size: int, correction: Correction | None) -> Iterator[Part]:
        """Times of tokens (R, N, W), block by block, so that those of all draws are never held at once.

        Raises UserError.
        """
        generator, pairs = np.random.default_rng(CORRECTION_SEED), len(self.pairs)
        for number, block in enumerate(self.blocks):
            times = ln_times(tokens[:, number * pairs : (number + 1) * pairs], vocab_size)
            if correction is not None:
                times = self.corrected(block, times, correction, generator)
            first, last = block.first + block.new, min(block.first + self.n_windows, self.n_total)
            yield Part(slice(first, last), times[..., block.new : last - block.first])

    def corrected(
        self, block: Block, times: Array, correction: Correction, generator: np.random.Generator
    ) -> Array:
        """ln times (R, P, W) of a block, moved so that they agree with the differences of each pair in it.

        Raises UserError.
        """
        available = self.available(block)
        if not available.any():
            return times
        counts = differences(self._sites(block)[1], self.pairs)
        if correction.kind == SAMPLED:
            return sampled_correction(times, counts, correction.mutation_rate, available, generator)
        return deterministic_correction(times, counts, correction.mutation_rate, available)


def pairs_of(text: str | None, n_samples: int) -> Pairs:
    """Pairs (P, 2) of haplotypes: "0-1,4-7", "all", or None: each haplotype with one neighbour. Raises
    UserError.
    """
    if text is None:
        return np.arange(n_samples - n_samples % 2, dtype=np.int64).reshape(-1, 2)
    if text == "all":
        return np.stack(np.triu_indices(n_samples, 1), axis=1).astype(np.int64)
    pairs = []
    for word in text.split(","):
        ends = word.strip().split("-")
        if len(ends) != 2 or not all(end.isascii() and end.isdigit() for end in ends):
            raise UserError(f"--pairs {text}: {word!r} is no pair; write 0-1,4-7 or all")
        pair = [int(end) for end in ends]
        if max(pair) >= n_samples or pair[0] == pair[1]:
            raise UserError(f"--pairs {word}: two different haplotypes of 0 to {n_samples - 1} make a pair")
        pairs.append(pair)
    return np.array(pairs, dtype=np.int64)
