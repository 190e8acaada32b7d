"""matplotlib as the figures need it: without a screen, and whatever the user's notebooks are set to;
imports no room.
"""

from __future__ import annotations

import os
from types import ModuleType


def load_matplotlib() -> ModuleType:
    """matplotlib with its own defaults. Raises ImportError where it is not installed.

    A notebook sets MPLBACKEND for the programs that it starts, to a backend that may not exist there; a
    matplotlibrc may ask for TeX.
    """
    os.environ["MPLBACKEND"] = "agg"
    import matplotlib

    matplotlib.rcdefaults()
    return matplotlib
