"""A recipe: what one word after `main.py` trains, as far as a command line says it.

Recipes are declared in recipes/; flags that no recipe is named for are those of the default one.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from config.flags import FLAGS
from config.schema import Flag
from config.values import Problem
from errors import UserError

DEFAULT_RECIPE = "cotformer"


def _nothing(args: Namespace) -> list[Any]:
    return []


def _nothing_follows(values: dict[str, Any]) -> dict[str, Any]:
    return {}


def _at_once(args: Namespace, words: Sequence[str]) -> None:
    """Nothing is to be done before."""


def _no_training(args: Namespace, world: Any, folder: Path) -> Any:
    raise NotImplementedError("these flags are not of a training")


def _plain(word: str) -> str:
    return word.replace("-", "_")


@dataclass(frozen=True)
class Recipe:
    """groups: title in --help -> flags. old_flags: accepted, without effect, named in one line of --help.

    defaults: flag -> the default that it has in this recipe. spellings: another system's name of a setting,
    on the command line or as a key of a config file -> flag; with - or _ alike. given_by: flag -> another one
    whose value it takes where that is given, and by which problems then name it. sections: of its config
    files, and their keys (none: every flag); without any, sections have names of any kind. selftest: flags of
    --selftest_resume, above the defaults. follow: defaults that follow other flags, of the values of all;
    those that are given count. resolve: fills in settings of a training that are None and follow from others;
    a line for each that cannot be. check: a line for each combination that cannot work. notes: a line for
    each setting that has no effect. assemble: what is trained, as optim.progress.Parts, of the flags, the
    processes and the experiment's folder. wanted: what flags say of the data, in the form of
    data.sources.Wanted (None: that itself). begin: called by main.py with the flags and the words of the
    command line before all else; it may put other processes in the place of this one. make_up: writes the
    dataset of --selftest_resume below a folder (None: of tokens).

    Raises ValueError where a default is of no flag, or a spelling is of none or of two.
    """

    name: str
    help: str
    groups: Mapping[str, Sequence[Flag]]
    old_flags: Sequence[Flag] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    spellings: Mapping[str, str] = field(default_factory=dict)
    given_by: Mapping[str, str] = field(default_factory=dict)
    sections: Mapping[str, Sequence[str]] = field(default_factory=dict)
    selftest: Mapping[str, Any] = field(default_factory=dict)
    follow: Callable[[dict[str, Any]], dict[str, Any]] = _nothing_follows
    resolve: Callable[[Namespace], list[Problem]] = _nothing
    check: Callable[[Namespace], list[Problem]] = _nothing
    notes: Callable[[Namespace], list[str]] = _nothing
    assemble: Callable[[Namespace, Any, Path], Any] = _no_training
    wanted: Callable[[Mapping[str, Any]], Any] | None = None
    begin: Callable[[Namespace, Sequence[str]], None] = _at_once
    make_up: Callable[[Namespace, Path], None] | None = None

    def __post_init__(self) -> None:
        for name in {*self.defaults, *self.selftest, *self.spellings.values()}:
            if name not in self.flags:
                raise ValueError(f"recipe {self.name}: {name!r} is no flag of it")
        for spelling, name in self.spellings.items():
            meanings = {name, self.flag_named(spelling)}
            plain = _plain(spelling)
            if plain in self.flags:
                meanings.add(plain)
            if len(meanings) > 1:
                raise ValueError(f"recipe {self.name}: {spelling!r} means {' and '.join(sorted(meanings))}")

    @cached_property
    def flags(self) -> dict[str, Flag]:
        """Every flag by its name, with the default that it has here."""
        flags = {}
        for group in (*self.groups.values(), self.old_flags):
            for flag in group:
                if flag.name in self.defaults:
                    flag = replace(flag, default=self.defaults[flag.name], optional=flag.takes_none)
                flags[flag.name] = flag
        return flags

    @cached_property
    def _written_either_way(self) -> dict[str, str]:
        """What may be written with - or _, with underscores -> flag. Flags of the default recipe may not."""
        own = {name: name for name in self.flags if name not in FLAGS}
        return own | {_plain(spelling): name for spelling, name in self.spellings.items()}

    def flag_named(self, word: str) -> str:
        """The flag that a word without its -- means, or the word itself where it means none."""
        return self._written_either_way.get(_plain(word), word)

    @property
    def names(self) -> list[str]:
        """Flags and spellings, for the nearest to an unknown one."""
        return [*self.flags, *self.spellings]


def recipes() -> Mapping[str, Recipe]:
    """Every recipe by its name."""
    from recipes import RECIPES  # recipes are made of what this package declares, and so import it

    return RECIPES


def recipe_of(args: Mapping[str, Any]) -> Recipe:
    """The recipe of some flags; those of the default one do not name it.

    Raises UserError where it is not known here.
    """
    name = args.get("recipe", DEFAULT_RECIPE)
    if name not in list(recipes()):
        raise UserError(f"recipe {name!r} is not known here; there are: {', '.join(recipes())}")
    return recipes()[name]


def flags_of(args: Mapping[str, Any]) -> Mapping[str, Flag]:
    """The flags, by their names, of the recipe of some values."""
    return recipe_of(args).flags if "recipe" in args else FLAGS


def default_of(args: Mapping[str, Any], name: str) -> Any:
    """What a flag is where nobody gives it: it may follow from the values of others."""
    return recipe_of(args).follow(dict(args)).get(name, flags_of(args)[name].default)
