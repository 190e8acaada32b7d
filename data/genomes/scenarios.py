"""What can be simulated, and one simulation from its number. Needs msprime (requirements-genomes.txt) only
when it simulates; stdpopsim only for its species.

    tree_sequence = simulate(scenarios_of("sawtooth")[0], number=7)

Sizes of populations are in diploid individuals, lengths and positions in bp, rates per bp and generation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from config.values import nearest
from errors import UserError

if TYPE_CHECKING:
    import tskit

# time in generations, numerator of the growth rate from then on; the first is divided by 4e4, the others by
# 1e4 times the magnitude
SAWTOOTH = (
    (20, 6437.7516497364),
    (30, -378.691273513906),
    (200, -643.77516497364),
    (300, 37.8691273513906),
    (2_000, 64.377516497364),
    (3_000, -3.78691273513906),
    (20_000, -6.4377516497364),
    (30_000, 0.378691273513906),
    (200_000, 0.64377516497364),
    (300_000, -0.0378691273513906),
    (2_000_000, -0.064377516497364),
    (3_000_000, 0.00378691273513906),
)
SAWTOOTH_END = 20_000_000  # generations: constant before that
SWEEP_STEP = 1e-6  # of the frequency's trajectory, in units of the population size
SEX_AND_ORGANELLES = ("X", "Y", "Z", "W", "MT", "PT")
MOST_WINDOWS = 100  # drawn from a genetic map until one has a rate everywhere

# grids: every combination but the one of both higher rates, which is slow
GRID_SIZES = (1e4, 2e4, 4e4)
GRID_RATES = (1e-8, 5e-8)
SWEEP_POSITIONS = (0.25, 0.5, 0.75)  # of the sequence

# of the published data: species, size where stdpopsim has no demographic model, genetic map, simulations
SPECIES: dict[str, tuple[str, float | None, str | None, int]] = {
    "homsap": ("HomSap", None, None, 1000),
    "homsap_map": ("HomSap", None, "HapMapII_GRCh38", 1000),
    "bostau": ("BosTau", None, None, 1000),
    "canfam": ("CanFam", 13_000, None, 1000),
    "canfam_map": ("CanFam", 13_000, "Campbell2016_CanFam3_1", 1000),
    "pantro": ("PanTro", None, None, 1000),
    "papanu": ("PapAnu", None, None, 1000),
    "papanu_map": ("PapAnu", None, "Pyrho_PAnubis1_0", 1000),
    "ponabe": ("PonAbe", None, None, 1000),
    "ponabe_map": ("PonAbe", None, "NaterPA_PonAbe3", 1000),
    "aedaeg": ("AedAeg", 1_000_000, None, 300),
    "anapla": ("AnaPla", None, None, 25),
    "anocar": ("AnoCar", 3_050_000, None, 5),
    "anogam": ("AnoGam", None, None, 100),
    "aratha": ("AraTha", None, None, 500),
    "aratha_map": ("AraTha", None, "SalomeAveraged_TAIR10", 500),
    "caeele": ("CaeEle", 10_000, None, 1000),
    "caeele_map": ("CaeEle", 10_000, "RockmanRIAIL_ce11", 1000),
    "dromel": ("DroMel", None, None, 5),
    "drosec": ("DroSec", 100_000, None, 300),
    "gasacu": ("GasAcu", 10_000, None, 1000),
    "helann": ("HelAnn", 673_968, None, 300),
    "helmel": ("HelMel", 2_111_109, None, 5),
    "apimel": ("ApiMel", 200_000, None, 5),
    "musmus": ("MusMus", None, None, 1000),
}
# whose diversity suffices for windows of 200 bp
HIGH_NE = (
    *("aedaeg", "anapla", "anocar", "anogam", "caeele", "caeele_map", "dromel", "drosec", "gasacu"),
    *("helann", "helmel", "papanu", "papanu_map"),
)


@dataclass(frozen=True)
class Scenario:
    """Simulations that differ in their number alone; `count` of them belong into `folder`, which is below
    that of the data. Fields that a kind has no use for are None.
    """

    kind: str
    folder: str = ""
    count: int = 1000
    individuals: int = 25
    sequence_length: float = 1e6
    population_size: float | None = 2e4
    recombination_rate: float | None = 1.28e-8
    mutation_rate: float | None = 1.29e-8
    magnitude: float | None = None  # of the sawtooth
    migration_rate: float | None = None  # of the islands
    selection: float | None = None  # coefficient of the sweep
    position: float | None = None  # of the sweep
    species: str | None = None
    genetic_map: str | None = None

    def facts(self) -> dict[str, Any]:
        """What decides on each simulation beside its number."""
        return {name: value for name, value in asdict(self).items() if name not in ("folder", "count")}


SINGLE = {
    "constant": Scenario("constant", count=10_000),
    "sawtooth": Scenario("sawtooth", magnitude=3),
    "island": Scenario("island", population_size=1e4, migration_rate=0.1),
    "sweep": Scenario("sweep", selection=0.1, position=5e5),
}


def _grid_cells() -> list[tuple[Scenario, str]]:
    """The cells that all grids have, each with the end of its folder's name."""
    cells = []
    for size, mutation, recombination in product(GRID_SIZES, GRID_RATES, GRID_RATES):
        scenario = Scenario(
            "constant", population_size=size, mutation_rate=mutation, recombination_rate=recombination
        )
        cells.append((scenario, f"{size:.0e}_{mutation:.1e}_{recombination:.1e}"))
    return cells


def _is_skipped(cell: Scenario) -> bool:
    return cell.mutation_rate == cell.recombination_rate == max(GRID_RATES)


def constant_grid() -> list[Scenario]:
    return [
        replace(cell, folder=f"ne_constant_{name}", count=500)
        for cell, name in _grid_cells()
        if not _is_skipped(cell)
    ]


def sawtooth_grid() -> list[Scenario]:
    return [
        replace(
            cell, kind="sawtooth", folder=f"ne_sawtooth_{magnitude}_{name}", count=125, magnitude=magnitude
        )
        for cell, name in _grid_cells()
        for magnitude in (3, 4, 5)
        if not _is_skipped(cell)
    ]


def island_grid() -> list[Scenario]:
    return [
        replace(cell, kind="island", folder=f"island_3pop_{rate}_{name}", count=50, migration_rate=rate)
        for cell, name in _grid_cells()
        for rate in (0.05, 0.2)
        if not _is_skipped(cell)
    ]


def sweep_grid() -> list[Scenario]:
    """Each cell has one position, drawn by a generator of its own; the cells that are skipped draw too."""
    draws = np.random.RandomState(42)
    scenarios = []
    for cell, name in _grid_cells():
        for selection in (0.01, 0.1, 1):
            position = float(draws.choice(SWEEP_POSITIONS)) * cell.sequence_length
            folder = f"hard_sweeps_{selection}_{position:.1e}_{name}"
            scenario = replace(
                cell, kind="sweep", folder=folder, count=50, selection=selection, position=position
            )
            if not _is_skipped(cell):
                scenarios.append(scenario)
    return scenarios


GRIDS = {
    "llm_ne_constant": constant_grid,
    "llm_ne_sawtooth": sawtooth_grid,
    "llm_island_3pop": island_grid,
    "llm_hard_sweeps": sweep_grid,
}


def species_scenario(name: str) -> Scenario:
    """Of `stdpopsim:NAME`: a published name, such as homsap_map, or SPECIES or SPECIES/MAP of stdpopsim."""
    species, size, genetic_map, count = SPECIES.get(name, (name, None, None, 1000))
    if "/" in species:
        species, _, genetic_map = species.partition("/")
    return Scenario(
        "stdpopsim",
        count=count,
        population_size=size,
        recombination_rate=None,
        mutation_rate=None,
        species=species,
        genetic_map=genetic_map,
    )


# collections of several scenarios, each in a folder of its own


def llm_grid() -> list[Scenario]:
    return [scenario for grid in GRIDS.values() for scenario in grid()]


def tiny() -> list[Scenario]:
    """100 kb of 5 individuals: minutes on two cores."""
    scenarios = [
        replace(SINGLE["constant"], folder="base_dataset", count=200),
        replace(SINGLE["sawtooth"], folder="ssd", count=60),
        replace(SINGLE["island"], folder="idd", count=20),
        replace(SINGLE["constant"], folder="high_ne/ne_1e+05", count=30, population_size=1e5),
        replace(SINGLE["constant"], folder="high_ne/ne_2e+05", count=30, population_size=2e5),
    ]
    return [replace(scenario, individuals=5, sequence_length=1e5) for scenario in scenarios]


def paper() -> list[Scenario]:
    """The published data; the species of high effective size have a folder that holds them alone."""
    scenarios = [
        replace(SINGLE["constant"], folder="base_dataset"),
        replace(SINGLE["sawtooth"], folder="ssd"),
        replace(SINGLE["island"], folder="idd"),
    ]
    scenarios += [replace(scenario, folder=f"llm/{scenario.folder}") for scenario in llm_grid()]
    for name in SPECIES:
        parent = "stdpopsim/high_ne" if name in HIGH_NE else "stdpopsim/others"
        scenarios.append(replace(species_scenario(name), folder=f"{parent}/stdpopsim_{name}"))
    return scenarios


COLLECTIONS = {**GRIDS, "llm-grid": llm_grid, "tiny": tiny, "paper": paper}
SPECIES_PREFIXES = ("stdpopsim:", "stdpopsim_")


def scenarios_of(name: str) -> list[Scenario]:
    """The scenarios of a name of the command line. Raises UserError."""
    if name in SINGLE:
        return [SINGLE[name]]
    if name in COLLECTIONS:
        return COLLECTIONS[name]()
    if name.startswith(SPECIES_PREFIXES) and len(name) > len("stdpopsim:"):
        return [species_scenario(name[len("stdpopsim:") :])]
    known = [*SINGLE, *COLLECTIONS, "stdpopsim:ID"]
    raise UserError(f"unknown scenario {name!r}{nearest(name, known)}; there are {', '.join(known)}")


# one simulation


def versions(scenario: Scenario) -> dict[str, str]:
    """The packages on whose random streams a scenario depends."""
    names = ["msprime"]
    if scenario.kind == "stdpopsim":
        names.append("stdpopsim")
    return {name: import_module(name).__version__ for name in names}


def seed_of(number: int) -> int:
    """The simulator's seed of a simulation, for ancestry and mutations."""
    return int(np.random.RandomState(number).uniform(1, 2**32 - 1))


def simulate(scenario: Scenario, number: int) -> tskit.TreeSequence:
    """Simulation `number` of a scenario, a pure function of both for one version of the simulator."""
    if scenario.kind == "stdpopsim":
        return _simulate_species(scenario, number)
    msprime = import_module("msprime")
    seed = seed_of(number)
    ancestry = msprime.sim_ancestry(
        recombination_rate=scenario.recombination_rate,
        sequence_length=scenario.sequence_length,
        random_seed=seed,
        **_demography(scenario, msprime),
    )
    # the call before sim_mutations: infinite sites, so positions are no whole numbers and alleles are 0 and 1
    return msprime.mutate(ancestry, rate=scenario.mutation_rate, random_seed=seed)


def _given(value: float | None) -> float:
    assert value is not None, "a field that the scenario's kind uses"
    return value


def _demography(scenario: Scenario, msprime: Any) -> dict[str, Any]:
    """Arguments of sim_ancestry that tell the scenarios apart."""
    size, individuals = _given(scenario.population_size), scenario.individuals
    if scenario.kind == "constant":
        return {"samples": individuals, "population_size": size}
    if scenario.kind == "sawtooth":
        return {"samples": individuals, "demography": sawtooth(size, _given(scenario.magnitude))}
    if scenario.kind == "island":
        islands = msprime.Demography.island_model([size, size / 2, size / 2], scenario.migration_rate)
        return {"samples": island_samples(individuals), "demography": islands}
    sweep = msprime.SweepGenicSelection(
        position=scenario.position,
        start_frequency=1 / size,
        end_frequency=1 - 1 / size,
        s=scenario.selection,
        dt=SWEEP_STEP,
    )
    return {
        "samples": individuals,
        "population_size": size,
        "model": [sweep, msprime.StandardCoalescent()],
    }


def sawtooth(size: float, magnitude: float) -> Any:
    """msprime's demography of a population that grows and shrinks by turns. Sizes go on continuously, but at
    the last change, from which on the size is `size` again.
    """
    demography = import_module("msprime").Demography()
    demography.add_population(initial_size=size)
    divisor = 4e4
    for time, numerator in SAWTOOTH:
        demography.add_population_parameters_change(time=time, growth_rate=numerator / divisor)
        divisor = magnitude * 1e4
    demography.add_population_parameters_change(time=SAWTOOTH_END, growth_rate=0, initial_size=size)
    return demography


def island_samples(individuals: int) -> dict[int, int]:
    """How many are sampled on each of the three islands: a fifth on the second and on the third."""
    fifth = int(0.2 * individuals)
    return {0: individuals - 2 * fifth, 1: fifth, 2: fifth}


# species of stdpopsim


def _species(scenario: Scenario) -> Any:
    """Raises UserError for a species or a map that stdpopsim does not have."""
    stdpopsim = import_module("stdpopsim")
    known = [species.id for species in stdpopsim.all_species()]
    if scenario.species not in known:
        raise UserError(
            f"stdpopsim has no species {scenario.species!r}{nearest(str(scenario.species), known)}; names of"
            f" the published data: {', '.join(SPECIES)}"
        )
    species = stdpopsim.get_species(scenario.species)
    maps = [genetic_map.id for genetic_map in species.genetic_maps]
    if scenario.genetic_map is not None and scenario.genetic_map not in maps:
        raise UserError(
            f"{species.id} has no genetic map {scenario.genetic_map!r}; there are {', '.join(maps) or 'none'}"
        )
    return species


def _present_populations(model: Any) -> list[Any]:
    """Populations that are sampled today; none where the model is about samples of the past too."""
    if any(population.default_sampling_time for population in model.populations):
        return []
    return [population for population in model.populations if population.allow_samples]


def _models(scenario: Scenario, species: Any) -> list[Any]:
    """The demographic models of a species; a constant size where it has none.

    Raises UserError where a size is missing.
    """
    models = [model for model in species.demographic_models if _present_populations(model)]
    if models:
        return models
    if scenario.population_size is None:
        raise UserError(f"stdpopsim has no demographic model of {species.id}: give a size, --ne")
    return [import_module("stdpopsim").PiecewiseConstantSize(scenario.population_size)]


def _chromosomes(scenario: Scenario, species: Any) -> list[Any]:
    found = [
        chromosome
        for chromosome in species.genome.chromosomes
        if chromosome.id.upper() not in SEX_AND_ORGANELLES and chromosome.length >= scenario.sequence_length
    ]
    if not found:
        raise UserError(f"{species.id} has no autosome of {scenario.sequence_length:g} bp")
    return found


def check(scenario: Scenario) -> None:
    """Raises UserError for what can be known to fail before it is simulated."""
    versions(scenario)
    if scenario.kind == "stdpopsim":
        species = _species(scenario)
        _models(scenario, species)
        _chromosomes(scenario, species)


def _simulate_species(scenario: Scenario, number: int) -> tskit.TreeSequence:
    """A stretch of an autosome of a species, both drawn, and so are model and populations sampled."""
    species = _species(scenario)
    draws = np.random.RandomState(number)
    seed = int(draws.randint(1, 2**32, dtype=np.int64))
    models = _models(scenario, species)
    model = models[draws.randint(len(models))]
    populations = _present_populations(model)
    counts = np.bincount(
        draws.randint(len(populations), size=scenario.individuals), minlength=len(populations)
    )
    samples = {
        population.name: int(count) for population, count in zip(populations, counts, strict=True) if count
    }
    contig = _contig(scenario, species, model, draws)
    engine = import_module("stdpopsim").get_engine("msprime")
    return engine.simulate(model, contig, samples, seed=seed).trim()


def _contig(scenario: Scenario, species: Any, model: Any, draws: np.random.RandomState) -> Any:
    """A stretch that has a recombination rate everywhere. Raises ValueError where none was found."""
    chromosomes = _chromosomes(scenario, species)
    for _ in range(MOST_WINDOWS):
        chromosome = chromosomes[draws.randint(len(chromosomes))]
        left = draws.randint(chromosome.length - int(scenario.sequence_length) + 1)
        right = left + int(scenario.sequence_length)
        try:
            contig = species.get_contig(
                chromosome.id,
                left=left,
                right=right,
                mutation_rate=model.mutation_rate,
                genetic_map=scenario.genetic_map,
            )
        except ValueError:  # the map has nothing there
            continue
        rates = contig.recombination_map
        is_inside = (rates.left < right) & (rates.right > left)
        if np.isfinite(rates.rate[is_inside]).all():
            return contig
    raise ValueError(f"{scenario.genetic_map} has a rate everywhere in none of {MOST_WINDOWS} windows")
