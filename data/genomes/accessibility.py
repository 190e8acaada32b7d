"""A mask of accessible positions for collections that are simulated: where a real one is to be used, put it
under its name before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from files import save_array

NAME = "accessible.npy"
LENGTHS = {"tiny": 1_000_000, "paper": 50_000_000}  # bp; the simulations' masks are parts of it
ACCESSIBLE_RUN, MISSING_RUN = 2_000, 740  # mean bp: 27% is missing
SEED = 27


def accessibility(length: int) -> NDArray[np.bool_]:
    """Whether each position is accessible: runs of both kinds by turns, of geometric lengths."""
    draws = np.random.RandomState(SEED)
    count = 2 * length // (ACCESSIBLE_RUN + MISSING_RUN) + 100  # pairs of runs: twice what is needed
    means = np.tile([ACCESSIBLE_RUN, MISSING_RUN], count)
    is_accessible = np.tile([True, False], count)
    return np.repeat(is_accessible, draws.geometric(1 / means))[:length]


def write_mask(folder: Path, length: int) -> None:
    save_array(folder / NAME, accessibility(length))
