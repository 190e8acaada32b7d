"""How well a network's times agree with the true ones on held-out pairs: error and correlation of ln TMRCA
for each scenario, beside what the mean of the training set would achieve, and how often intervals hold the
truth.

    evaluate_times(network, open_genomes(folder), device, Drawing(), n_pairs=200) -> a dict for JSON

Legend: R replicates, N pairs, W windows.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.genomes.features import missing_shares, with_missing
from data.genomes.store import Genomes, GenomeSplits
from data.genomes.windows import GenomeSet
from errors import UserError
from models.coalescence.network import CoalescenceTransformer
from optim.coalescence.inference import Drawing, draws, ln_times
from optim.coalescence.parts import Parts
from optim.coalescence.posterior import Array, pearson, posterior

LEVELS = (0.5, 0.8, 0.9, 0.95)  # of central intervals, as if the posterior were normal
TRAIN_EXAMPLES = 2000  # of whose times the mean is taken


def spread(n: int, wanted: int | None) -> NDArray[np.int64]:
    """Numbers of `wanted` of n, evenly spread; all of them for None."""
    count = n if wanted is None else min(n, wanted)
    return np.linspace(0, n - 1, count).round().astype(np.int64)


def scenarios_of(genomes: Genomes, numbers: NDArray[np.int64]) -> NDArray[np.str_]:
    """Name of each example's scenario."""
    files = genomes.index["file"][numbers]
    return np.array([str(genomes.files[file]["scenario"]) for file in files])


def need_same_form(network: CoalescenceTransformer, splits: GenomeSplits) -> None:
    """Raises UserError where a network cannot read these examples."""
    settings, meta = network.settings, splits.meta
    for name, ours, theirs in (
        ("windows", settings.n_windows, meta.n_windows),
        ("samples", settings.input_samples, meta.n_samples),
    ):
        if ours != theirs:
            raise UserError(f"the model reads {ours} {name}, and {splits.folder} has {theirs}")
    if meta.masked and settings.mask_singletons:
        raise UserError(
            f"{splits.folder} has gaps (it was prepared with --bitmask), and the model was not trained with"
            " missing data: it would take them for regions without mutations"
        )
    if not len(splits.test):
        raise UserError(f"{splits.folder} has no test examples")


def inputs_of(network: CoalescenceTransformer, splits: GenomeSplits) -> Callable[..., NDArray[np.float32]]:
    """A function from numbers of test examples to what the network reads. One that reads missing shares is
    told that nothing is missing where the data say nothing of it.
    """
    examples, meta = GenomeSet(splits.test), splits.meta
    nothing = np.zeros(meta.n_windows)
    shares = missing_shares(nothing, meta.window_size, meta.sequence_length, meta.multipliers)

    def inputs(numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        x: NDArray[np.float32] = examples.batch(numbers)["x"].numpy()
        if not network.settings.mask_singletons and not meta.masked:
            with_missing(x, shares)
            x[..., 0] = np.log1p(x[..., 0])
        return x

    return inputs


def measures(times: Array, truth: Array, constant: float) -> dict[str, Any]:
    """times (R, N, W) against truth (N, W). ranks: of how many windows 0, 1, ... R draws are below the truth:
    a calibrated posterior has about as many of each.
    """
    found, normal = posterior(times), NormalDist()
    error = np.abs(found.mean - truth)
    inside = {}
    for level in LEVELS:
        half = normal.inv_cdf((1 + level) / 2) * found.sd
        inside[f"{level:g}"] = float((error <= half).mean())
    below = (times < truth).sum(0)
    return {
        "pairs": len(truth),
        "windows": truth.size,
        "mse": float((error**2).mean()),
        "mse_of_train_mean": float(((truth - constant) ** 2).mean()),
        "r": pearson(found.mean, truth),
        "bias": float((found.mean - truth).mean()),
        "inside_2_sd": float((error <= 2 * found.sd).mean()),
        "inside": inside,
        "ranks": np.bincount(below.ravel(), minlength=len(times) + 1).tolist(),
    }


def evaluate_times(
    network: CoalescenceTransformer,
    splits: GenomeSplits,
    device: torch.device,
    drawing: Drawing,
    n_pairs: int | None,
    parts: Parts | None = None,
    progress: Callable[[int], Callable[[int], object]] = lambda total: lambda tokens: None,
) -> dict[str, Any]:
    """On n_pairs test pairs, evenly spread (None: all): of all together, and of each scenario. Times are not
    corrected by a mutation rate. progress: makes, of the number of all tokens, what `draws` calls as it
    advances. Raises UserError.
    """
    need_same_form(network, splits)
    chosen, inputs = spread(len(splits.test), n_pairs), inputs_of(network, splits)
    advanced = progress(len(chosen) * drawing.replicates * splits.meta.n_windows)
    tokens = draws(
        network, len(chosen), lambda numbers: inputs(chosen[numbers]), drawing, device, parts, advanced
    )
    times = ln_times(tokens, network.settings.vocab_size)
    truth = splits.test.read(chosen).y.astype(np.float64)
    of_training = spread(len(splits.train), TRAIN_EXAMPLES)
    constant = float(splits.train.read(of_training).y.astype(np.float64).mean())
    scenarios = scenarios_of(splits.test, chosen)
    of_scenarios = {}
    for name in np.unique(scenarios):
        mine = scenarios == name
        of_scenarios[str(name)] = measures(times[:, mine], truth[mine], constant)
    return {
        "all": measures(times, truth, constant),
        "scenarios": of_scenarios,
        "train_mean": constant,
        "train_examples": len(of_training),
        "test_examples": len(splits.test),
        "replicates": drawing.replicates,
        "seed": drawing.seed,
        "top_k": drawing.top_k,
    }
