"""A sweep: a JSON file of settings that vary -> cells, each of which is an ordinary experiment.

    {"name": "rates", "recipe": "cotformer", "flags": {"dataset": "stdlib", "iterations": 200},
     "list": [{"label": "CoTFormer", "model": "cot", "n_repeat": 3}, {"label": "standard", "model": "base"}],
     "grid": {"lr": [1e-3, 2e-3], "n_layer": [2, 4]},
     "random": {"count": 20, "seed": 0, "flags": {"dropout": {"uniform": [0, 0.2]}}},
     "seeds": [0, 1, 2], "track": "val_loss"}

    sweep = read_sweep(Path("rates.json"), places())        # raises UserError: all that is wrong, a line each
    for cell in sweep.cells:                                # list x grid x random x seeds, seeds innermost
        cell.words, cell.resolved().folder                  # of main.py

Keys of flags are those of a --config file of the recipe. A cell's experiment folder is the one that main.py
chooses for its flags, so that values added to the file add cells and move none. Needs no torch.
"""

from __future__ import annotations

import itertools
import json
import math
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from config.draws import Distribution, distribution, named
from config.identity import cut_matters
from config.json_file import entries, read_object, values_of
from config.naming import bad_name, experiment_folder, name_among, named_folder
from config.parse import add_defaults, as_written, complete
from config.recipe import DEFAULT_RECIPE, Recipe, recipes
from config.values import nearest
from errors import UserError

FLAGS, GRID, LIST, RANDOM, SEEDS = "flags", "grid", "list", "random", "seeds"
KEYS = ("name", "recipe", FLAGS, GRID, LIST, RANDOM, SEEDS, "track")
LABEL = "label"
MOST_CELLS = 10_000
MOST_LINES = 10  # of cells that are refused for the same file
NOT_OF_CELLS = ("selftest_resume",)


@dataclass(frozen=True)
class Resolved:
    """What main.py makes of a cell's words: flags and folder, or a line for each problem."""

    args: Namespace | None
    folder: Path | None
    problems: list[str]


@dataclass(frozen=True, eq=False)
class Cell:
    """number: place in the order of the file. label: of its setting; cells that differ in the seed share it.
    setting: values of what varies, without the seed, by flag. place: the same for tables and pictures, where
    an entry of the list is one value, its label. flags: all that are given. words: of main.py.
    """

    number: int
    label: str
    setting: dict[str, Any]
    place: dict[str, Any]
    seed: int | None
    flags: dict[str, Any]
    words: list[str]
    _found: Resolved = field(repr=False)

    @property
    def title(self) -> str:
        """The label, and the seed where the sweep has several; no other cell has it."""
        return self.label if self.seed is None else f"{self.label} seed={self.seed}"

    def resolved(self) -> Resolved:
        return self._found


@dataclass(frozen=True, eq=False)
class Sweep:
    """axes: values of what varies, without seeds and labels, by flag. seeds: empty where the file has none.
    track: the quantity by which cells are compared (None: the one that the recipe tracks). notes: lines about
    what was left out.
    """

    name: str
    path: Path
    recipe: str
    cells: list[Cell]
    axes: dict[str, list[Any]]
    seeds: list[int]
    track: str | None
    notes: list[str]

    @property
    def dimensions(self) -> dict[str, list[Any]]:
        """The values of the cells' places that vary, in the order of the file: of what every cell has."""
        found = _values_of([cell.place for cell in self.cells])
        everywhere = set.intersection(*(set(cell.place) for cell in self.cells))
        return {name: values for name, values in found.items() if name in everywhere and len(values) > 1}

    @property
    def settings(self) -> list[list[Cell]]:
        """The cells of each setting, one for each seed."""
        size = len(self.seeds) or 1
        return [self.cells[start : start + size] for start in range(0, len(self.cells), size)]


@dataclass(frozen=True)
class _Choice:
    """What one entry, one point of the grid or one draw gives."""

    label: str | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)


class _Reader:
    """Parts of the file -> values; what is wrong goes to `problems`."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.problems = path, list[str]()
        self.recipe = recipe
        self.written: dict[str, str] = {}  # flag -> its key in the file

    def wrong(self, line: str) -> None:
        self.problems.append(f"{self.path}: {line}")

    def within(self, part: str) -> Callable[..., None]:
        return lambda line, flag="": self.wrong(f"{part}: {line}")

    def object_of(self, content: Mapping[str, Any], key: str) -> dict[str, Any]:
        value = content.get(key, {})
        if not isinstance(value, dict):
            self.wrong(f"{key} must be an object, not {json.dumps(value)[:60]}")
            return {}
        return value

    def list_of(self, content: Mapping[str, Any], key: str) -> list[Any]:
        """Empty where the key is not there."""
        value = content.get(key)
        if key in content and (not isinstance(value, list) or not value):
            self.wrong(f"{key} must be a list with at least one entry, not {json.dumps(value)[:60]}")
        return value if isinstance(value, list) else []

    def flags(self, content: Mapping[str, Any], part: str) -> dict[str, Any]:
        """Flags and values of an object in the form of a config file."""
        content = dict(content)
        if content.pop("recipe", self.recipe.name) != self.recipe.name:
            self.wrong(f"{part}: its settings are those of another recipe than {self.recipe.name}")
        for name in self.keys(content, part).values():
            if name in NOT_OF_CELLS:
                self.wrong(f"{part}: {name} is no training")
        return values_of(content, self.recipe, self.within(part))

    def keys(self, content: Mapping[str, Any], part: str) -> dict[str, str]:
        """Flag of each key; what is written twice is wrong."""
        found: dict[str, str] = {}
        for _, key, _ in entries(content, self.recipe):
            name = self.recipe.flag_named(key)
            if name in found.values():
                self.wrong(f"{part}: {name} stands there twice")
            found[key] = name
            self.written[name] = key
        return found

    def value(self, key: str, value: Any, part: str) -> list[Any]:
        """One value of a flag, converted; none where it is wrong."""
        name, before = self.recipe.flag_named(key), len(self.problems)
        found = values_of({key: value}, self.recipe, self.within(part))
        if len(self.problems) > before:
            return []
        return [found.get(name, self.recipe.flags[name].default)]

    def values(self, key: str, value: Any, part: str) -> list[Any]:
        """The different values of a flag, converted."""
        if not isinstance(value, list) or not value:
            self.wrong(f"{part}: {key} must be a list of values, not {json.dumps(value)[:60]}")
            return []
        found: list[Any] = []
        for each in value:
            for converted in self.value(key, each, part):
                if converted in found:
                    self.wrong(f"{part}: {key} has {json.dumps(each)[:60]} twice")
                found.append(converted)
        return found

    # parts

    def grid(self, content: Mapping[str, Any]) -> dict[str, list[Any]]:
        axes = {}
        grid = self.object_of(content, GRID)
        if content.get(GRID) == {}:
            self.wrong(f"{GRID} is empty")
        self.keys(grid, GRID)
        for _, key, value in entries(grid, self.recipe):
            axes[self.recipe.flag_named(key)] = self.values(key, value, GRID)
        return axes

    def listed(self, content: Mapping[str, Any]) -> list[_Choice]:
        choices, labels = [], []
        for number, entry in enumerate(self.list_of(content, LIST)):
            part = f"{LIST}[{number}]"
            if not isinstance(entry, dict):
                self.wrong(f"{part} must be an object of flags, not {json.dumps(entry)[:60]}")
                continue
            label = entry.get(LABEL)
            if LABEL in entry and not _is_text(label):
                self.wrong(f"{part}: {LABEL} must be a text on one line, not {json.dumps(label)[:60]}")
            elif label in labels:
                self.wrong(f"{part}: {LABEL} {label!r} stands twice")
            if label is not None:
                labels.append(label)
            own = {key: value for key, value in entry.items() if key != LABEL}
            choices.append(_Choice(label, self.flags(own, part)))
        return choices

    def drawn(self, content: Mapping[str, Any]) -> tuple[Any, Any, list[Distribution]]:
        """Count, seed, and what is drawn."""
        random = self.object_of(content, RANDOM)
        if RANDOM not in content:
            return 0, 0, []
        for key in random:
            if key not in ("count", "seed", FLAGS):
                self.wrong(f"{RANDOM}: unknown key {key!r}{nearest(key, ('count', 'seed', FLAGS))}")
        count, seed = random.get("count"), random.get("seed", 0)
        for key, number, least in (("count", count, 1), ("seed", seed, 0)):
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                given = json.dumps(number)[:60]
                self.wrong(f"{RANDOM}: {key} must be a whole number of at least {least}, not {given}")
        flags = self.object_of(random, FLAGS)
        if not flags:
            self.wrong(f"{RANDOM}: {FLAGS} must say what is drawn")
        distributions = []
        for key, spec in flags.items():
            name = self.recipe.flag_named(key)
            self.written[name] = key
            try:
                kind, values = named(spec)
                found = [converted for value in values for converted in self.value(key, value, RANDOM)]
                if len(found) == len(values):
                    distributions.append(distribution(self.recipe.flags[name], kind, found))
            except ValueError as error:
                known = name in self.recipe.flags
                self.wrong(f"{RANDOM}: {key} {error}" if known else f"{RANDOM}: unknown key {key!r}")
        return count, seed, distributions

    def seeds(self, content: Mapping[str, Any]) -> list[int]:
        if SEEDS not in content:
            return []
        return self.values("seed", content[SEEDS], SEEDS)

    def text(self, content: Mapping[str, Any], key: str, default: str | None) -> str | None:
        value = content.get(key, default)
        if key in content and not _is_text(value):
            self.wrong(f"{key} must be a text on one line, not {json.dumps(value)[:60]}")
        return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def read_sweep(path: Path, places: Mapping[str, Any] | None = None) -> Sweep:
    """The cells of a file. places: flags below those of the file, such as results_base_folder and data_dir.

    Raises UserError with a line for each thing that is wrong, and where no cell can be trained.
    """
    try:
        content = read_object(str(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    named_recipe = content.get("recipe", DEFAULT_RECIPE)
    if named_recipe not in list(recipes()):
        choices = ", ".join(recipes())
        near = nearest(str(named_recipe), recipes())
        raise UserError(f"{path}: unknown recipe {str(named_recipe)[:60]!r}{near}; there are: {choices}")
    # settings may stand in sections or not, whatever the recipe's config files have
    recipe = replace(recipes()[named_recipe], sections={})
    reader = _Reader(path, recipe)
    for key in content:
        if key not in KEYS:
            reader.wrong(f"unknown key {key!r}{nearest(key, KEYS)}")
    name = reader.text(content, "name", path.stem)
    if _is_text(name) and "name" in content and (bad_name(str(name)) or "/" in str(name)):
        reader.wrong(f"name {name!r} must be a plain name")
    track = reader.text(content, "track", None)
    shared = reader.flags(reader.object_of(content, FLAGS), FLAGS)
    listed, grid = reader.listed(content), reader.grid(content)
    count, seed, distributions = reader.drawn(content)
    seeds = reader.seeds(content)
    _check_places(reader, shared, listed, grid, distributions, seeds)
    if not reader.problems:
        sizes = (len(listed) or 1, *map(len, grid.values()), count or 1, len(seeds) or 1)
        if math.prod(sizes) > MOST_CELLS:
            reader.wrong(f"{math.prod(sizes):,} cells are more than {MOST_CELLS:,}")
    if reader.problems:
        raise UserError("\n".join(reader.problems))
    draws, notes = _draws(count, seed, distributions)
    points = [
        _Choice(None, dict(zip(grid, point, strict=True))) for point in itertools.product(*grid.values())
    ]
    below = {key: value for key, value in (places or {}).items() if key in recipe.flags}
    parts: list[Sequence[Any]] = [listed or [_Choice()], points, draws, seeds or [None]]
    cells: list[Cell] = []
    for chosen in itertools.product(*parts):
        cells.append(_cell(len(cells), reader, {**below, **shared}, chosen, str(name)))
    _check_cells(path, cells)
    return Sweep(
        str(name), path, recipe.name, cells, _values_of([cell.setting for cell in cells]), seeds, track, notes
    )


def _check_places(
    reader: _Reader,
    shared: Mapping[str, Any],
    listed: Sequence[_Choice],
    grid: Mapping[str, Any],
    distributions: Sequence[Distribution],
    seeds: Sequence[int],
) -> None:
    """Each flag varies in one place only; what varies may also stand among the shared ones."""
    found = {LIST: {name for entry in listed for name in entry.flags}, GRID: set(grid)}
    found[RANDOM] = {each.flag for each in distributions}
    for first, second in itertools.combinations(found, 2):
        for name in sorted(found[first] & found[second]):
            reader.wrong(f"{reader.written[name]} stands in {first} and in {second}")
    for part, names in {**found, FLAGS: set(shared) if seeds else set()}.items():
        if "seed" in names:
            reader.wrong(f"{part}: give values of seed as {SEEDS!r}")


def _draws(count: int, seed: int, distributions: Sequence[Distribution]) -> tuple[list[_Choice], list[str]]:
    """The draws that repeat no earlier one, and a line about the others."""
    first: dict[str, int] = {}
    draws, notes = [], []
    for k in range(count):
        flags = {each.flag: each.draw(seed, k) for each in distributions}
        earlier = first.setdefault(repr(flags), k)
        if earlier == k:
            draws.append(_Choice(None, flags))
        else:
            notes.append(f"random: draw {k} is draw {earlier} again, and left out")
    return draws or [_Choice()], notes


def _cell(number: int, reader: _Reader, shared: Mapping[str, Any], choices: Sequence[Any], name: str) -> Cell:
    """choices: an entry, a point of the grid, a draw, and a seed or None."""
    *parts, seed = choices  # in the order of read_sweep
    setting: dict[str, Any] = {}
    labels = []
    for part in parts:
        setting.update(part.flags)
        labels.append(part.label or " ".join(_labels(reader, part.flags)))
    flags = {**shared, **setting}
    if seed is not None:
        flags["seed"] = seed
    found = _resolve(reader, flags)
    if found.args is not None and "exp_name" not in flags and found.args.exp_name is not None:
        # the recipe has one name for all, and takes no seed or rate into it
        flags["exp_name"] = name_among(found.args, flags)
        found = _resolve(reader, flags)
    label = " ".join(filter(None, labels)) or name
    place = {**({LABEL: labels[0]} if parts[0].label else parts[0].flags), **parts[1].flags, **parts[2].flags}
    return Cell(number, label, setting, place, seed, flags, _words(reader, flags), found)


def _labels(reader: _Reader, flags: Mapping[str, Any]) -> Iterator[str]:
    for name, value in flags.items():
        yield f"{reader.written[name]}={as_text(value)}"


def as_text(value: Any) -> str:
    """A value of a flag as people read it."""
    if isinstance(value, list):
        return ",".join(map(as_text, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _words(reader: _Reader, flags: Mapping[str, Any]) -> list[str]:
    words = [] if reader.recipe.name == DEFAULT_RECIPE else [reader.recipe.name]
    for name, value in flags.items():
        flag = f"--{reader.written.get(name, name)}"
        values = [str(each) for each in (value if isinstance(value, list) else [value])]
        if len(values) == 1 and values[0].startswith("-"):  # no flag
            words.append(f"{flag}={values[0]}")
        else:
            words += [flag, *values]
    return words


def _resolve(reader: _Reader, flags: Mapping[str, Any]) -> Resolved:
    given = dict(flags)
    if reader.recipe.name != DEFAULT_RECIPE:
        given["recipe"] = reader.recipe.name
    args = add_defaults(given)
    try:
        problems: list[str] = [*complete(args)]
    except UserError as error:
        problems = str(error).splitlines()
    if problems:
        worded = as_written(_words(reader, flags))
        return Resolved(None, None, [worded(line) for line in problems])
    return Resolved(args, experiment_folder(args), [])


def _values_of(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The different values under each key."""
    found: dict[str, list[Any]] = {}
    for setting in settings:
        for name, value in setting.items():
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)
    return found


def _check_cells(path: Path, cells: Sequence[Cell]) -> None:
    """Raises UserError where two cells are one experiment or have one name, or none can be trained."""
    first: dict[Path, Cell] = {}
    named: dict[str, Cell] = {}
    lines = []
    for cell in cells:
        namesake = named.setdefault(cell.title, cell)
        if namesake is not cell:
            lines.append(
                f"{path}: cells {namesake.number} and {cell.number} are both called {cell.title}; label one"
                " of them otherwise"
            )
        args = cell.resolved().args
        if args is None:
            continue
        other = first.setdefault(_identity(args), cell)
        if other is not cell:
            lines.append(
                f"{path}: cells {other.number} ({other.title}) and {cell.number} ({cell.title}) are one"
                f" experiment, {cell.resolved().folder}: they differ in nothing that stands in its name;"
                " leave one out, or give each its own run_prefix or exp_name"
            )
    if not first:
        lines += [f"{path}: {line}" for line in refusals(cells)]
    if lines:
        more = [f"{path}: and {len(lines) - MOST_LINES} more like these"] * (len(lines) > MOST_LINES)
        raise UserError("\n".join([*lines[:MOST_LINES], *more]))


def refusals(cells: Sequence[Cell]) -> list[str]:
    """A line for each problem of cells, with the cells that have it."""
    having: dict[str, list[Cell]] = {}
    for cell in cells:
        for line in cell.resolved().problems:
            having.setdefault(line, []).append(cell)
    lines = []
    for line, found in having.items():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        lines.append(f"{found[0].title}{more}: {line}")
    return lines


def _identity(args: Namespace) -> Path:
    """The folder; where the cut of a batch makes no other training, that of the batch without a cut."""
    if args.exp_name is None and not cut_matters(vars(args)):
        whole = {"batch_size": args.batch_size * args.acc_steps, "acc_steps": 1}
        return named_folder(Namespace(**{**vars(args), **whole}))
    return named_folder(args)
