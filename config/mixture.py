"""A mixture of datasets, as --dataset names it: NAME=WEIGHT,NAME=WEIGHT,...

Needs neither numpy nor torch, so that names and checks of a command line can have it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence

from errors import UserError

EPOCHS, RANDOM = "epochs", "random"
SAMPLINGS = (EPOCHS, RANDOM)
ERROR, DROP = "error", "drop"  # what to do about sources that are not prepared
SUM_TOLERANCE = 1e-6
LONGEST_NAME = 100  # bytes; names of files and folders are made of it
PARTS = re.compile(r"[^=,]+=[\d.eE+-]+(,[^=,]+=[\d.eE+-]+)+")  # NAME=NUMBER,NAME=NUMBER


def is_mixture(dataset: str) -> bool:
    """Whether --dataset names several sources with weights."""
    return "=" in dataset and "/" not in dataset


def has_paths(dataset: str) -> bool:
    """Whether --dataset has the form of a mixture, of sources that are paths in part."""
    return "/" in dataset and PARTS.fullmatch(dataset) is not None and not os.path.isdir(dataset)


def parse_mixture(text: str) -> dict[str, float]:
    """NAME=WEIGHT,NAME=WEIGHT,... in the order given. Raises UserError with a line for each wrong part."""
    weights: dict[str, float] = {}
    wrong = []
    for part in text.split(","):
        name, found, number = (word.strip() for word in part.partition("="))
        try:
            weight = float(number)
        except ValueError:
            wrong.append(f"--dataset: {part.strip()!r} is not NAME=WEIGHT")
            continue
        if not name or not found or name in (".", ".."):
            wrong.append(f"--dataset: {part.strip()!r} is not NAME=WEIGHT")
        elif name in weights:
            wrong.append(f"--dataset: the source {name} is named twice")
        elif len(name.encode()) > LONGEST_NAME:
            wrong.append(f"--dataset: the name of source {name[:20]}... is over {LONGEST_NAME} bytes")
        weights[name] = weight
    if wrong:
        raise UserError("\n".join(wrong))
    return weights


def names_of_sources(dataset: str) -> list[str]:
    """Of a mixture, in their order; none of a single dataset. Raises UserError."""
    return list(parse_mixture(dataset)) if is_mixture(dataset) else []


def given_weights(dataset: str, normalise: bool) -> dict[str, float]:
    """The weights of a mixture, which sum to 1, or are divided by their sum. Raises UserError with a line for
    everything that is wrong.
    """
    weights = parse_mixture(dataset)
    if normalise:
        return normalised(weights)
    wrong = wrong_weights(weights)
    wrong += [] if wrong else wrong_sum(weights)
    if wrong:
        raise UserError("\n".join(wrong))
    return weights


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights divided by their sum. Raises UserError where that cannot be done."""
    wrong = wrong_weights(weights)
    total = 0.0 if wrong else math.fsum(weights.values())  # whatever their order
    if not wrong and total <= 0:
        wrong.append("the weights of the mixture are all 0")
    if wrong:
        raise UserError("\n".join(wrong))
    return {name: weight / total for name, weight in weights.items()}


def wrong_weights(weights: Mapping[str, float]) -> list[str]:
    return [
        f"the weight of {name} is {weight}: it must be a number of at least 0"
        for name, weight in weights.items()
        if not math.isfinite(weight) or weight < 0
    ]


def wrong_sum(weights: Mapping[str, float]) -> list[str]:
    total = math.fsum(weights.values())
    if abs(total - 1) <= SUM_TOLERANCE:
        return []
    return [
        f"the weights of the mixture sum to {total:.9g}, not to 1 (--normalise_weights divides by the sum)"
    ]


def effective_weights(
    weights: Mapping[str, float],
    lengths: Mapping[str, int],
    need: int,
    drop_missing: bool = False,
    required: Sequence[str] = (),
) -> tuple[dict[str, float], list[str]]:
    """Weights of the sources that there are, which sum to 1, and the names of those that are missing.

    lengths: tokens of each source that there is. need: tokens that each must have. drop_missing: leave out
    what is missing. required: what must not be missing.

    Raises UserError with a line for everything that is wrong.
    """
    wrong = wrong_weights(weights)
    wrong += [] if wrong else wrong_sum(weights)
    unlisted = [name for name in lengths if name not in weights]
    if unlisted:
        wrong.append(f"no weight is given for {', '.join(unlisted)}")
    missing = [name for name in weights if name not in lengths]
    gone = [name for name in missing if not drop_missing or name in required]
    gone += [name for name in required if name not in weights and name not in lengths]
    if gone:
        wrong.append(f"sources of the mixture are missing: {', '.join(gone)}")
    short = [f"{name} ({length})" for name, length in lengths.items() if length < need]
    if short:
        wrong.append(f"sources with fewer than the {need} tokens that a sequence needs: {', '.join(short)}")
    left = {name: weight for name, weight in weights.items() if name in lengths}
    if not wrong and sum(left.values()) <= 0:
        wrong.append("no source of the mixture is left: the weights of those that are there are 0")
    if wrong:
        raise UserError("\n".join(wrong))
    return normalised(left), missing


def folder_name(dataset: str) -> str:
    """What a mixture is called in paths: its names, and 8 digits of a hash of names and shares, whatever
    their order. Raises UserError.
    """
    weights = parse_mixture(dataset)
    total = math.fsum(weights.values()) or 1.0
    shares = {name: repr(weight / total) for name, weight in weights.items()}
    digest = hashlib.sha256(json.dumps(shares, sort_keys=True).encode()).hexdigest()
    return f"mix-{'-'.join(sorted(weights))}-{digest[:8]}"
