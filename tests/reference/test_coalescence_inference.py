"""Times from a trained network: decoding, posterior, and the correction by a mutation rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optim.coalescence.posterior import (
    deterministic_correction,
    differences,
    mse_of_pairs,
    pearson_of_pairs,
    posterior,
    sampled_correction,
)
from tests.reference.cases import read

FILE = "coalescence.json.gz"
CONTENT = read(FILE) or {}
INFERENCE = CONTENT.get("inference") or {}


def section(name: str) -> pytest.MarkDecorator:
    missing = name not in INFERENCE
    return pytest.mark.skipif(missing, reason=f"no inference, {name} in {FILE}")
