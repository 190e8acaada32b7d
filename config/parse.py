"""Turn a command line into a Namespace that has every flag, or say everything that is wrong with it and exit
2.

    args = parse_args(["--model", "lncot", "--n_layer", "24", "--n_repeat", "5"])

Order of precedence: defaults, then --config FILE.json, then the command line.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from config.flags import FLAGS, GROUPS, OBSOLETE, OTHER_FORMS, SELFTEST, Flag, boolean, prose
from config.naming import MAX_COMPONENT, bad_name
from errors import OwnError, UserError, missing_package
from files import PASSING_FAULTS, is_of_a_place
from models.variants import ALIASES, VARIANTS

MISSING = object()  # flag not given
NO_VALUE = object()  # flag given without its value
LARGEST_CONFIG_BYTES = 1 << 20
SILENT_SECONDS = 10.0  # for the first process to tell what is wrong


class Problem(str):
    """A line about what is wrong, and the flags whose values it is about."""

    flags: frozenset[str]

    def __new__(cls, line: str, *flags: str) -> Problem:
        problem = super().__new__(cls, line)
        problem.flags = frozenset(flags)
        return problem


class _Usage(Exception):
    """argparse met something it cannot go on from."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Usage(message)


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean x?)"`, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def convert(flag: Flag, value: Any) -> Any:
    """Value of a flag from text (command line) or JSON (config file).

    Raises ValueError with what is wrong.
    """
    if (
        flag.many
        and value is not None
        and (flag.type is prose or not (isinstance(value, str) and value.lower() == "none"))
    ):
        parts = value if isinstance(value, list) else [value]
        if not parts:
            raise ValueError("needs a value")
        if flag.type is prose:
            return [prose(str(part)) for part in parts]
        if len(parts) == 1 and str(parts[0]).lower() == "none":
            return _scalar(flag, None)
        return [_scalar(flag, part) for part in parts]
    return _scalar(flag, value)


def _scalar(flag: Flag, value: Any) -> Any:
    if value is NO_VALUE:
        raise ValueError("needs a value")
    optional = flag.default is None
    if value is None or (optional and isinstance(value, str) and value.lower() == "none"):
        if optional or flag.name == "use_pretrained":
            return None
        raise ValueError("needs a value")
    if isinstance(value, (dict, list)):
        raise ValueError(f"takes one value, not {json.dumps(value)[:60]}")
    if flag.name == "use_pretrained" and str(value).lower() == "none":
        return None
    text = str(value)
    try:
        result = flag.type(text)
    except (ValueError, OverflowError):
        kind = {int: "a whole number", float: "a number", boolean: "true or false"}.get(
            flag.type, "a valid value"
        )
        raise ValueError(f"must be {kind}, not {text!r}") from None
    if flag.choices and result not in flag.choices:
        raise ValueError(
            f"must be one of {', '.join(flag.choices)}, not {text!r}{nearest(text, flag.choices)}"
        )
    if isinstance(result, (int, float)) and not isinstance(result, bool):
        if isinstance(result, int) and abs(result) >= 2**63:
            raise ValueError(f"is too large: {text}")
        if not math.isfinite(result):
            raise ValueError(f"must be finite, not {text!r}")
        if flag.low is not None and result < flag.low:
            raise ValueError(f"must be at least {flag.low:g}, not {text}")
        if flag.high is not None and result > flag.high:
            raise ValueError(f"must be at most {flag.high:g}, not {text}")
    if flag.type is str and any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in result):
        raise ValueError("must be plain UTF-8 text without control characters")
    return result


def _build(prog: str, description: str, groups: Mapping[str, Sequence[Flag]]) -> _Parser:
    parser = _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        add_help=True,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=118),
    )
    for title, flags in groups.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            nargs = "*" if flag.many else "?"  # a flag without its value is told with the other problems
            text = f"{flag.help} [{'off' if flag.default is False else flag.default}]".replace("%", "%%")
            metavar = (
                "ON"
                if flag.type is boolean
                else "N"
                if flag.type is int
                else "X"
                if flag.type is float
                else "S"
            )
            group.add_argument(
                f"--{flag.name}",
                default=MISSING,
                nargs=nargs,
                help=text,
                metavar=metavar,
                const=None if flag.many else "true" if flag.type is boolean else NO_VALUE,
            )
    return parser


def _underscored(word: str, flags: Mapping[str, Flag]) -> str:
    """--output-dir is --output_dir, as old evaluation commands have it, and so for all that main.py does
    not take. Other words stay.
    """
    name, equals, value = word.partition("=")
    known = name[2:].replace("-", "_")
    return (
        f"--{known}{equals}{value}"
        if name.startswith("--") and known in flags and known not in FLAGS
        else word
    )


def _explicit(
    parser: _Parser, argv: Sequence[str], flags: Mapping[str, Flag], problems: list[Problem]
) -> dict[str, Any]:
    try:
        raw, extras = parser.parse_known_args([_underscored(word, flags) for word in argv])
    except _Usage as error:
        problems.append(Problem(str(error).removeprefix("argument ")))
        return {}
    after_unknown = False
    for word in extras:
        if word.startswith("--"):
            name = word[2:].split("=", 1)[0]
            form = OTHER_FORMS.get(name.replace("-", "_"))
            meant = f"; {form}" if form else nearest("--" + name, ["--" + known for known in flags])
            problems.append(Problem(f"unknown flag {word.split('=', 1)[0]}{meant}"))
            after_unknown = True
        elif not after_unknown:
            problems.append(Problem(f"unexpected argument {word!r}"))
    given = {name: value for name, value in vars(raw).items() if value is not MISSING}
    return _converted(given, flags, problems, "--")


def _converted(
    given: Mapping[str, Any], flags: Mapping[str, Flag], problems: list[Problem], prefix: str
) -> dict[str, Any]:
    values = {}
    for name, value in given.items():
        try:
            values[name] = convert(flags[name], value)
        except ValueError as error:
            problems.append(Problem(f"{prefix}{name} {error}", name))
    return values


def read_config_file(path: str, flags: Mapping[str, Flag], problems: list[Problem]) -> dict[str, Any]:
    """Flag values of a JSON object in a file; what is wrong with it goes to `problems`."""
    try:
        size = os.stat(path).st_size
        if size > LARGEST_CONFIG_BYTES:
            problems.append(
                Problem(f"--config {path}: {size} bytes is too large for a file of flags", "config")
            )
            return {}
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(Problem(f"--config {path}: {error.strerror}", "config"))
        return {}
    except (ValueError, RecursionError) as error:
        problems.append(Problem(f"--config {path}: not valid JSON ({str(error)[:100]})", "config"))
        return {}
    if not isinstance(content, dict):
        problems.append(Problem(f"--config {path}: must hold one JSON object of flags and values", "config"))
        return {}
    known = {}
    for key, value in content.items():
        if key in flags and key != "config":
            known[key] = value
        else:
            problems.append(Problem(f"--config {path}: unknown key {key!r}{nearest(key, flags)}", "config"))
    return _converted(known, flags, problems, f"--config {path}: ")


def parse(
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    extra: Mapping[str, Sequence[Flag]] | None = None,
    groups: Mapping[str, Sequence[Flag]] = GROUPS,
) -> tuple[dict[str, Any], list[Problem]]:
    """Values given in a config file and on the command line (no defaults), and a line for each problem."""
    groups = {**(extra or {}), **groups}
    flags = {flag.name: flag for group in groups.values() for flag in group}
    problems: list[Problem] = []
    given = _explicit(
        _build(prog, description, groups), sys.argv[1:] if argv is None else argv, flags, problems
    )
    if given.get("config") is not None:
        given = {**read_config_file(given["config"], flags, problems), **given}
    return given, problems


def stop(prog: str, problems: Sequence[str], code: int = 2, alone: bool = False) -> NoReturn:
    """Print one line a problem and exit; on the first process only, unless this one met the problem alone.

    The others end after it: at the first end torchrun terminates all that still run, and that one is to speak
    before.
    """
    if alone or os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1":
        for problem in dict.fromkeys(problems):
            print(f"{prog}: error: {problem}", file=sys.stderr)
    else:
        for number in (signal.SIGTERM, signal.SIGINT):  # which may be ignored or held back until here
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        time.sleep(SILENT_SECONDS)
    raise SystemExit(code)


def guarded(prog: str, work: Callable[[], int]) -> int:
    """Exit code of `work`; what the user can mend is told in a line each and ends in exit code 2."""
    try:
        return work()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        stop(prog, str(error).splitlines(), alone=isinstance(error, OwnError))
    except OSError as error:
        if not is_of_a_place(error):
            raise
        stop(
            prog,
            [f"{error.filename or 'writing'}: {error.strerror}"],
            1 if error.errno in PASSING_FAULTS else 2,
        )
    except ModuleNotFoundError as error:
        line = missing_package(error)
        if line is None:
            raise
        stop(prog, [line])
    except KeyboardInterrupt:
        return 130


def recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flags out of those that a training recorded, which may be of another version.

    Raises ValueError with name and fault.
    """
    known = {}
    for name, value in values.items():
        if name in FLAGS and not (value is None and FLAGS[name].default is not None):
            try:
                known[name] = convert(FLAGS[name], value)
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
    return known


def add_defaults(given: Mapping[str, Any]) -> Namespace:
    """All flags: the given values over the defaults. Short model names become long ones; data_seed follows
    seed.
    """
    values = {**{name: flag.default for name, flag in FLAGS.items()}, **given}
    values["model"] = ALIASES.get(values["model"], values["model"])
    if values["data_seed"] is None:
        values["data_seed"] = values["seed"]
    return Namespace(**values)


def check(args: Namespace) -> list[Problem]:
    """A line for each combination of values that cannot work."""
    problems: list[Problem] = []

    def wrong(line: str, *flags: str) -> None:
        problems.append(Problem(line, *flags))

    row = VARIANTS[args.model]
    middle = args.n_layer - args.n_layer_begin - args.n_layer_end
    if middle < (1 if row.loop else 0):
        wrong(
            f"--n_layer_begin {args.n_layer_begin} + --n_layer_end {args.n_layer_end} leave no layer of"
            f" --n_layer {args.n_layer} between them",
            "n_layer_begin",
            "n_layer_end",
            "n_layer",
        )
    if args.n_embd % args.n_head:
        wrong(f"--n_embd {args.n_embd} is not divisible by --n_head {args.n_head}", "n_embd", "n_head")
    elif args.positional_encoder == "rotary" and (args.n_embd // args.n_head) % 2:
        wrong(
            f"rotary positions need an even head width, but --n_embd {args.n_embd} / --n_head {args.n_head} ="
            f" {args.n_embd // args.n_head}",
            "n_embd",
            "n_head",
        )
    if row.loop and args.min_repeat > args.n_repeat:
        wrong(
            f"--min_repeat {args.min_repeat} is more than --n_repeat {args.n_repeat}",
            "min_repeat",
            "n_repeat",
        )
    for name in ("eval_length_factor", "training_length_factor"):
        factors = getattr(args, name)
        if factors is None:
            continue
        if row.routes and len(factors) != args.n_repeat - 1:
            wrong(
                f"--{name} needs n_repeat - 1 = {args.n_repeat - 1} values, not {len(factors)}",
                name,
                "n_repeat",
            )
        if any(later > earlier for earlier, later in pairwise(factors)):
            wrong(f"--{name} must not increase: a token that has stopped cannot go on again", name)
    if args.router_threshold is not None and len(args.router_threshold) not in (1, args.n_repeat - 1):
        wrong(
            f"--router_threshold needs one value or n_repeat - 1 = {args.n_repeat - 1}, not"
            f" {len(args.router_threshold)}",
            "router_threshold",
            "n_repeat",
        )
    if args.dropout >= 1:
        wrong("--dropout must be below 1", "dropout")
    if args.opt == "adamw" and (args.beta1 >= 1 or args.beta2 >= 1):
        wrong("--beta1 and --beta2 must be below 1", "beta1", "beta2")
    if args.scheduler == "wsd" and args.warmup_percent + args.decay_percent > 1:
        wrong(
            f"--warmup_percent {args.warmup_percent} + --decay_percent {args.decay_percent} are more than the"
            " whole run",
            "warmup_percent",
            "decay_percent",
        )
    if args.device not in ("auto", "cpu", "cuda") and not (
        args.device.startswith("cuda:") and args.device[5:].isdigit()
    ):
        wrong(f"--device must be auto, cpu, cuda or cuda:N, not {args.device!r}", "device")
    for name in ("exp_name", "run_prefix"):
        reason = bad_name(getattr(args, name)) if getattr(args, name) is not None else None
        if reason:
            wrong(f"--{name} {reason}", name)
    if args.exp_name is not None and any(
        len(part.encode()) > MAX_COMPONENT for part in args.exp_name.split("/")
    ):
        wrong(f"--exp_name must stay under {MAX_COMPONENT + 1} bytes", "exp_name")
    if not args.dataset or bad_name(Path(args.dataset).name):
        wrong(f"--dataset {args.dataset!r} is not a folder name", "dataset")
    return problems


def check_world_size(args: Namespace, world_size: int) -> None:
    """Raises UserError where the micro-batches of a step cannot be shared evenly."""
    if args.acc_steps % world_size:
        raise UserError(
            f"--acc_steps {args.acc_steps} is not divisible by {world_size} processes: each runs acc_steps /"
            f" processes micro-batches of --batch_size {args.batch_size} a step"
        )


def unused_settings(args: Namespace) -> list[str]:
    """A line for each setting that was changed and has no effect on this model."""
    row = VARIANTS[args.model]

    def changed(name: str) -> bool:
        return getattr(args, name) != FLAGS[name].default

    said = [name for name in FLAGS if name in OBSOLETE and changed(name)]
    if args.min_repeat == args.n_repeat:  # as the published commands have it
        said = [name for name in said if name != "min_repeat"]
    lines = [f"--{name} has no effect: the flag is accepted for old command lines" for name in said]
    if not row.routes:
        lines += [
            f"--{name} has no effect on {args.model}: it routes no tokens"
            for name in ("eval_length_factor", "training_length_factor", "routing", "router_threshold")
            if changed(name)
        ]
    lines += [
        f"--keep_steps {step} is beyond --iterations {args.iterations}: there will be no checkpoint of that"
        " step"
        for step in sorted(set(args.keep_steps or ()))
        if step > args.iterations
    ]
    if not row.depth_emb and changed("depth_embedding"):
        lines.append(f"--depth_embedding has no effect on {args.model}")
    return lines


def parse_args(argv: Sequence[str] | None = None, prog: str = "main.py") -> Namespace:
    """Every flag of main.py as a Namespace. On bad input: one line per problem on stderr, exit 2."""
    given, problems = parse(
        argv, prog=prog, description="Train a CoTFormer-family language model; run it again to resume."
    )
    args = add_defaults({**SELFTEST, **given} if given.get("selftest_resume") else given)
    faulty = frozenset[str]().union(*(problem.flags for problem in problems))  # their defaults were not meant
    problems += [problem for problem in check(args) if not problem.flags & faulty]
    if problems:
        stop(prog, problems)
    return args
