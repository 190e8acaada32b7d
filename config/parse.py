"""Turn a command line into a Namespace that has every flag, or say everything that is wrong with it and exit
2.

    args = parse_args(["--model", "lncot", "--n_layer", "24", "--n_repeat", "5"])
    args = parse_args(["cotformer", "--config", "settings.json", "--print_config"])

Order of precedence: defaults, then --config FILE.json, then the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from config.json_file import in_sections, read_config_file
from config.old_flags import OTHER_FORMS, REPLACED
from config.programs import guarded, stop
from config.recipe import DEFAULT_RECIPE, Recipe, flags_of, recipe_of, recipes
from config.schema import PLACE, Flag, boolean, switch
from config.values import NO_VALUE, Problem, convert, kind_of, nearest

MISSING = object()  # flag not given
METAVARS = {boolean: "ON", int: "N", float: "X"}
PRINT_CONFIG = switch("print_config", "print all settings as JSON for --config, and do nothing", scope=PLACE)


class _Usage(Exception):
    """argparse cannot parse the command line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Usage(message)


def _build(prog: str, description: str, recipe: Recipe, usage: str | None) -> _Parser:
    parser = _Parser(
        prog=prog,
        usage=usage,
        description=description,
        allow_abbrev=False,
        add_help=True,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=34, width=118
        ),
    )
    for title, flags in recipe.groups.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            flag = recipe.flags[flag.name]
            default = "off" if flag.default is False else flag.default
            _add(group, flag, f"{flag.help} [{default}]{_spellings_of(flag, recipe)}".replace("%", "%%"))
    for flag in recipe.old_flags:
        _add(parser, flag, argparse.SUPPRESS)
    names = " ".join(f"--{flag.name}" for flag in recipe.old_flags)
    if names:
        parser.epilog = f"without effect: {names} (accepted for old command lines)"
    return parser


def _spellings_of(flag: Flag, recipe: Recipe) -> str:
    spellings = [spelling for spelling, name in recipe.spellings.items() if name == flag.name]
    others = [spelling for spelling in spellings if spelling != flag.name]
    return f" (also --{', --'.join(others)})" if others else ""


def _add(group: argparse._ActionsContainer, flag: Flag, text: str) -> None:
    # a flag without its value is reported with the other problems
    without_value: object = "true" if flag.type is boolean else NO_VALUE
    if flag.many:
        without_value = None
    group.add_argument(
        f"--{flag.name}",
        action=_Extend if flag.repeats else "store",
        default=MISSING,
        nargs="*" if flag.many else "?",
        help=text,
        metavar=METAVARS.get(kind_of(flag), "S"),
        const=without_value,
    )


class _Extend(argparse.Action):
    """Adds to the values of the same flag before it."""

    def __call__(
        self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is MISSING else [*before, *values])


def _in_our_words(word: str, recipe: Recipe) -> str:
    """A flag in another spelling, such as --output-dir for --output_dir, in ours; other words unchanged."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{recipe.flag_named(name)}{equals}{value}"


def _flags_in(argv: Sequence[str]) -> list[str]:
    """As they are written, without what precedes and follows their names."""
    return [word[2:].partition("=")[0] for word in argv if word.startswith("--")]


def as_written(argv: Sequence[str] | None = None, prog: str = "main.py") -> Callable[[str], str]:
    """Names flags in a text as the command line does: --n_layer becomes --depth, where that was written."""
    name, words = _split_recipe(sys.argv[1:] if argv is None else argv, prog)
    recipe = recipes()[name]
    written = {recipe.flag_named(flag): flag for flag in _flags_in(words)}
    for flag, other in recipe.given_by.items():
        if other in written:
            written[flag] = written[other]

    def worded(text: str) -> str:
        return re.sub(r"--(\w+)(?![\w-])", lambda found: f"--{written.get(found[1], found[1])}", text)

    return worded


def _explicit(
    parser: _Parser, argv: Sequence[str], recipe: Recipe, problems: list[Problem]
) -> dict[str, Any]:
    try:
        raw, extras = parser.parse_known_args([_in_our_words(word, recipe) for word in argv])
    except _Usage as error:
        problems.append(Problem(str(error).removeprefix("argument ")))
        return {}
    _report_extras(extras, recipe, problems)
    written = {recipe.flag_named(flag): flag for flag in _flags_in(argv)}
    values = {}
    for name, value in vars(raw).items():
        if value is MISSING:
            continue
        try:
            values[name] = convert(recipe.flags[name], value)
        except ValueError as error:
            flag = written.get(name, name)
            meant = "" if flag.replace("-", "_") == name else f" ({name})"
            problems.append(Problem(f"--{flag}{meant} {error}", name))
    return values


def _report_extras(extras: Sequence[str], recipe: Recipe, problems: list[Problem]) -> None:
    """A line for each unknown flag; words after one are taken for its values."""
    known = [f"--{name}" for name in recipe.names]
    after_unknown = False
    for word in extras:
        if word.startswith("--"):
            written = word.split("=", 1)[0]
            name = written[2:].replace("-", "_")
            form = OTHER_FORMS.get(name)
            if name in REPLACED and REPLACED[name][0] in recipe.flags:
                form = REPLACED[name][1]
            meant = f"; {form}" if form else nearest(written, known)
            problems.append(Problem(f"unknown flag {written}{meant}"))
            after_unknown = True
        elif not after_unknown:
            place = ": a recipe's name stands before all flags" if word in recipes() else ""
            problems.append(Problem(f"unexpected argument {word!r}{place}"))


def parse(
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    extra: Mapping[str, Sequence[Flag]] | None = None,
    groups: Mapping[str, Sequence[Flag]] | None = None,
    recipe: str = DEFAULT_RECIPE,
    usage: str | None = None,
) -> tuple[dict[str, Any], list[Problem]]:
    """Values given in a config file and on the command line (no defaults), and a line for each problem.

    groups: all flags that there are, instead of those of the recipe. extra: some more, whose names mean these
    and not what the recipe spells so.
    """
    taken = recipes()[recipe] if groups is None else Recipe(prog, description, groups)
    if extra:
        own = {flag.name for flags in extra.values() for flag in flags}
        spellings = {spelling: name for spelling, name in taken.spellings.items() if spelling not in own}
        taken = replace(taken, groups={**extra, **taken.groups}, spellings=spellings)
    problems: list[Problem] = []
    words = sys.argv[1:] if argv is None else argv
    given = _explicit(_build(prog, description, taken, usage), words, taken, problems)
    if given.get("config") is not None:
        given = {**read_config_file(given["config"], taken, problems), **given}
    return given, problems


def recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flags out of those that a training recorded, which may be of another version, and its recipe.

    Raises ValueError with name and fault.
    """
    flags = flags_of(values)
    known = {name: value for name, value in values.items() if name == "recipe"}
    for name, value in values.items():
        if name not in flags or (value is None and not flags[name].takes_none):
            continue
        try:
            known[name] = convert(flags[name], value)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
    return known


def add_defaults(given: Mapping[str, Any]) -> Namespace:
    """All flags: the given values over the defaults. Short model names become long ones; data_seed follows
    seed, and what else a recipe says.
    """
    flags = flags_of(given)
    values = {**{name: flag.default for name, flag in flags.items()}, **given}
    values = {**values, **recipe_of(given).follow(values), **given}
    for name, flag in flags.items():
        if flag.short_forms:
            values[name] = flag.short_forms.get(values[name], values[name])
    if values["data_seed"] is None:
        values["data_seed"] = values["seed"]
    return Namespace(**values)


def check(args: Namespace) -> list[Problem]:
    """A line for each combination of values that cannot work."""
    return recipe_of(vars(args)).check(args)


def complete(args: Namespace) -> list[Problem]:
    """Fill in what follows from other settings; a line for each that cannot be, or cannot work."""
    return recipe_of(vars(args)).resolve(args) or check(args)


def unused_settings(args: Namespace) -> list[str]:
    """A line for each setting that was changed and has no effect on this model."""
    return recipe_of(vars(args)).notes(args)


def _split_recipe(argv: Sequence[str], prog: str) -> tuple[str, Sequence[str]]:
    """The recipe that the first word names, or the default one, and the flags. Exits 2 on an unknown one."""
    if not argv or argv[0].startswith("-"):
        return DEFAULT_RECIPE, argv
    name = argv[0]
    if name not in recipes():
        choices = ", ".join(recipes())
        stop(prog, [f"unknown recipe {name!r}{nearest(name, recipes())}; there are: {choices}"])
    return name, argv[1:]


def _description() -> str:
    lines = [f"  {recipe.name:<12}{recipe.help}" for recipe in recipes().values()]
    return "\n".join(
        [
            "Train; run it again to resume.",
            "",
            f"RECIPE says what is trained ({DEFAULT_RECIPE} where it is left out):",
            *lines,
        ]
    )


def _print_settings(args: Namespace) -> int:
    """All settings and the recipe as JSON for --config, from the first process. Returns the exit code."""
    settings = {name: value for name, value in vars(args).items() if name not in ("config", "recipe")}
    if settings["data_seed"] == settings["seed"]:  # it follows another --seed, too
        settings["data_seed"] = None
    recipe = recipe_of(vars(args))
    if os.environ.get("RANK", "0") == "0":
        content = {"recipe": recipe.name, **in_sections(settings, recipe)}
        print(json.dumps(content, indent=2), flush=True)
    return 0


def parse_args(
    argv: Sequence[str] | None = None,
    prog: str = "main.py",
    problems_of_sources: Callable[[Namespace], list[str]] = lambda args: [],
) -> Namespace:
    """Every flag of main.py as a Namespace; `recipe` is there where it is not the default one.

    problems_of_sources: lines to add where the mixture is wrong already; without, the data are not looked at.
    On bad input: one line per problem on stderr, exit 2. With --print_config: the settings, exit 0.
    """
    name, words = _split_recipe(sys.argv[1:] if argv is None else argv, prog)
    given, problems = parse(
        words,
        prog=prog,
        description=_description(),
        usage=f"{prog} [RECIPE] [--FLAG VALUE ...]",
        extra={"instead of training": [PRINT_CONFIG]},
        recipe=name,
    )
    wants_settings = given.pop(PRINT_CONFIG.name, False)
    if given.get("selftest_resume"):
        given = {**recipes()[name].selftest, **given}
    if name != DEFAULT_RECIPE:
        given["recipe"] = name
    args = add_defaults(given)
    asked = Namespace(**vars(args))
    faulty = frozenset[str]().union(*(problem.flags for problem in problems))  # their defaults were not meant
    problems += [problem for problem in complete(args) if not problem.flags & faulty]
    lines: list[str] = [*problems]
    if any("dataset" in problem.flags for problem in problems) and not faulty & {"dataset", "data_dir"}:
        lines += problems_of_sources(args)
    if lines:
        stop(prog, [*map(as_written(argv, prog), lines)])
    if wants_settings:
        raise SystemExit(guarded(prog, lambda: _print_settings(asked)))
    return args
