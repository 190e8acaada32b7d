"""Job scripts share code by sourcing it, not by copies."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from tests.programs import ROOT

BLOCK = 4  # lines in a row that two scripts may not have in common


def blocks(script: Path) -> set[tuple[str, ...]]:
    lines = [line.strip() for line in script.read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    return {tuple(lines[i : i + BLOCK]) for i in range(len(lines) - BLOCK + 1)}


def test_no_two_job_scripts_share_a_block_of_lines() -> None:
    scripts = sorted((ROOT / "iridis").glob("*/job.sh"))
    assert len(scripts) > 5
    shared = {(a.parent.name, b.parent.name): blocks(a) & blocks(b) for a, b in combinations(scripts, 2)}
    assert {pair: lines for pair, lines in shared.items() if lines} == {}
