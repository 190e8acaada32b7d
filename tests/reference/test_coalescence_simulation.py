"""Simulated genomes: the runs of each scenario, the grids, the growth rates and sizes of the sawtooth."""

from __future__ import annotations

import re
from typing import Any

import pytest

from data.genomes.scenarios import (
    COLLECTIONS,
    SAWTOOTH,
    SAWTOOTH_END,
    SINGLE,
    SPECIES,
    sawtooth,
    seed_of,
    simulate,
    species_scenario,
)
from data.genomes.scenarios import HIGH_NE as OUR_HIGH_NE
from data.genomes.simulate import chosen_scenarios, parse
from tests.reference.cases import Case, cases, each, read

FILE = "coalescence.json.gz"
DIGITS = 1e-11  # the file's values have 12
# how the file's titles say what differs from a scenario's defaults -> flag
SETTINGS = {
    r"\bs[ =]([\d.e+-]+)": "--selection",
    r"\bposition[ =]([\d.e+-]+)": "--position",
    r"\bNe[ =]([\d.e+-]+)": "--ne",
    r"\bmu[ =]([\d.e+-]+)": "--mu",
    r"\br[ =]([\d.e+-]+)": "--r",
    r"\bmagnitude[ =]([\d.e+-]+)": "--magnitude",
    r"\bm(?:igration)?[ =]([\d.e+-]+)": "--migration",
    r"\b(\d+) diploids": "--n_individuals",
}
LENGTH = r"\b([\d.]+) (kb|Mb)\b"
KINDS = {
    "llm_hard_sweeps": "sweep",
    "llm_ne_constant": "constant",
    "llm_ne_sawtooth": "sawtooth",
    "llm_island_3pop": "island",
}


def section(name: str) -> Any:
    """A part of the file that is no list of cases; skips where it is missing."""
    found = cases(FILE, "simulation", name)
    if found is None:
        pytest.skip(f"no {name} in {FILE}")
    return found


def flags_of(title: str) -> list[str]:
    """The command line of a run: `llm_hard_sweeps s=0.1 position 0.5e6 Ne 2e4`, `constant, 5 diploids`."""
    text = re.sub(r"\(.*\)", "", title)
    name = re.split(r"[ ,]", text)[0]
    words = ["--scenario", KINDS.get(name, name)]
    for pattern, flag in SETTINGS.items():
        if match := re.search(pattern, text):
            words += [flag, match[1]]
    if match := re.search(LENGTH, text):
        words += ["--sequence_length", str(float(match[1]) * {"kb": 1e3, "Mb": 1e6}[match[2]])]
    return words


def is_slow(case: Case) -> bool:
    return "island" in case["scenario"]  # seconds


def compare(case: Case) -> None:
    msprime = pytest.importorskip("msprime")
    made_with = read(FILE)["made_with"]["msprime"]
    if msprime.__version__ != made_with:
        pytest.skip(f"the values are those of msprime {made_with}")
    (scenario,) = chosen_scenarios(parse(flags_of(case["scenario"])))
    assert seed_of(case["seed"]) == case["msprime_seed"]
    trees = simulate(scenario, case["seed"])
    names = ("num_trees", "num_sites", "num_mutations", "num_samples")
    assert {name: getattr(trees, name) for name in names} == {name: case[name] for name in names}
    breakpoints, positions = list(trees.breakpoints()), list(trees.sites_position)
    count = len(case["first_breakpoints"])
    assert breakpoints[1 : 1 + count] == pytest.approx(case["first_breakpoints"], rel=DIGITS)
    assert positions[: len(case["first_positions"])] == pytest.approx(case["first_positions"], rel=DIGITS)
    assert positions[-1] == pytest.approx(case["last_position"], rel=DIGITS)
    assert trees.at(0).tmrca(0, 1) == pytest.approx(case["tmrca_0_1_at_0"], rel=DIGITS)


@each(FILE, "simulation", "runs", where=lambda case: not is_slow(case))
def test_a_run_has_the_values_of_its_seed(case: Case) -> None:
    compare(case)


@pytest.mark.slow
@each(FILE, "simulation", "runs", where=is_slow)
def test_a_run_of_islands_has_the_values_of_its_seed(case: Case) -> None:
    compare(case)


@pytest.mark.reference
def test_grids_have_the_folders_of_the_published_data() -> None:
    for name, folders in section("grid").items():
        assert sorted(scenario.folder for scenario in COLLECTIONS[name]()) == sorted(folders)


@pytest.mark.reference
def test_the_sawtooth_changes_when_and_how_the_published_one_does() -> None:
    rows = section("sawtooth_events")["rows"]
    ours = [[time, numerator] for time, numerator in SAWTOOTH]
    assert [*ours, [SAWTOOTH_END, 0]] == [row[:2] for row in rows]


@pytest.mark.reference
def test_the_sawtooth_has_the_published_sizes() -> None:
    pytest.importorskip("msprime")
    known = section("sawtooth_sizes")
    trajectory = sawtooth(known["Ne"], known["magnitude"]).debug().population_size_trajectory(known["times"])
    assert list(trajectory[:, 0]) == pytest.approx(known["size"], rel=1e-9)


@pytest.mark.reference
def test_scenarios_have_the_published_numbers_of_simulations() -> None:
    known = dict(section("sims_per_unit"))
    assert known.pop("stdpopsim_others").items() <= {name: row[3] for name, row in SPECIES.items()}.items()
    assert sorted(known.pop("w200_sources")) == sorted(OUR_HIGH_NE)
    mammals, _, each_count = known.pop("stdpopsim_mammals").partition(" x ")
    assert sum(species_scenario(name).count == int(each_count) for name in SPECIES) >= int(mammals)
    for name, count in known.items():
        if name in SINGLE:
            assert SINGLE[name].count == count
        else:
            grid = COLLECTIONS[name]()
            of_cell, _, cells = count.partition(" x ")
            assert {scenario.count for scenario in grid} == {int(of_cell)}
            assert len(grid) == int(cells.split()[0])
