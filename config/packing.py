"""How documents are laid into the rows of a training (--packing).

Needs neither numpy nor torch, so that checks of a command line can have it.
"""

from __future__ import annotations

from argparse import Namespace

from config.mixture import RANDOM, is_mixture
from config.values import Problem

NONE, BEST_FIT = "none", "best_fit"
PACKINGS = (NONE, BEST_FIT)


def packing_problems(args: Namespace) -> list[Problem]:
    """Of a mixture that is not read in order."""
    if args.packing == NONE or not is_mixture(args.dataset) or args.sampling != RANDOM:
        return []
    line = f"--packing {args.packing} has rows in an order: a mixture of them needs --sampling epochs"
    return [Problem(line, "packing", "sampling")]
