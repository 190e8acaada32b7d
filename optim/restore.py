"""From a checkpoint to the model and data that it was trained with: what every program that reads one does
first.

    def run(restored: Restored, given: dict[str, Any]) -> None: ...
    sys.exit(with_checkpoint("eval.py", "Measure the perplexity.", OWN_FLAGS, None, run))
"""

from __future__ import annotations

import glob
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import config
import distributed
from config.identity import INHERITED
from config.mixture import names_of_sources
from config.recipe import DEFAULT_RECIPE, flags_of, recipes
from config.schema import PATH_OR_NAME, Flag
from config.tokenizers import BYTES, GPT2
from config.values import Problem
from errors import UserError
from files import try_to_write, write_json
from optim.coalescence import public
from optim.coalescence.cache import cached
from optim.foreign import foreign_of
from optim.library_folder import file_of
from optim.peek import newest_first, peek

if TYPE_CHECKING:
    from data.bins import Splits
    from data.text import TextData

CHECKPOINT = Flag(
    "checkpoint",
    str,
    None,
    "experiment's folder or name (its newest valid checkpoint is taken), or a checkpoint file; "
    "names are looked for in $RESULTS_DIR and ./exps",
)
TOKENIZER = Flag(
    "tokenizer",
    str,
    None,
    f"tokenizer, where neither the checkpoint nor its dataset names one: {GPT2}, {BYTES}, or a file"
    " tokenizer.json, also a copy of one that is gone (None: the named one)",
    names=PATH_OR_NAME,
)


# beside --dataset, and like it no setting of another dataset
OF_THE_DATA = ("data_dir", "missing_sources", "normalise_weights")


@dataclass(frozen=True)
class Restored:
    """An opened checkpoint. args: every flag of the training, overridden by those of this call; given: the
    names of the latter.
    """

    path: Path
    state: dict[str, Any]
    args: Namespace
    world: Any
    given: frozenset[str] = frozenset()

    def data(self) -> TextData:
        """Its data. Raises UserError where they are not prepared, or were made by another tokenizer than the
        model's.
        """
        from data.vocabulary import need_same_tokens
        from optim.dataset import open_data

        data = open_data(self.args, self.world)
        for splits in data.parts.values():
            need_same_tokens(self.state, splits.meta, splits.folder)
        return data

    def splits(self) -> Splits:
        """Its dataset. Raises UserError as `data` does, and for a mixture of several."""
        names = names_of_sources(self.args.dataset)
        if names:
            raise UserError(
                "this reads one dataset, and the model was trained on a mixture: give --dataset, one of"
                f" {', '.join(names)}"
            )
        return self.data().first

    def model(self) -> Any:
        """The network with the checkpoint's weights, on its device, in evaluation mode."""
        from models import make_model_from_args
        from models.weights import load_weights

        model, state = make_model_from_args(self.args), self.state["model"]
        if "rope_base" in self.given:  # the file's angles are of the base that it was trained with
            state = {name: value for name, value in state.items() if not name.endswith(".wpe.freqs")}
        load_weights(model, state)
        return model.to(self.world.device).eval()


def by_name(flag: str, name: str, results: str | None = None) -> Path:
    """The experiment <results>/<dataset>/<model>/NAME, or a file in it; an existing path is taken literally.

    NAME may begin with the model, or with dataset and model, where it is not unique. results: looked below,
    beside $RESULTS_DIR and exps. Raises UserError.
    """
    if os.path.exists(name):
        return Path(name)
    places = [os.environ.get("RESULTS_DIR") or "exps", "exps", results or "exps"]
    bases = list({place.resolve(): place for place in map(Path, places)}.values())
    is_plain = not name.startswith("/") and not {"", ".", ".."} & set(name.split("/"))
    matches: set[str] = set()
    if is_plain:
        for base in map(str, bases):
            for above in ("*/*/", "*/", ""):
                matches |= {*glob.glob(f"{glob.escape(base)}/{above}{glob.escape(name)}")}
    found = sorted(map(Path, matches))
    if len(found) > 1:
        raise UserError(f"{flag} {name}: several experiments have this name: {', '.join(map(str, found))}")
    if not found:
        known = {path.name for base in bases for path in base.glob("*/*/*")}
        raise UserError(
            f"{flag} {name}: no such file or folder, nor an experiment below"
            f" {' or '.join(map(str, bases))}{config.nearest(name, known)}"
        )
    return found[0]


def find_checkpoint(name: str | None, flag: str = "--checkpoint", results: str | None = None) -> Path:
    """The file that --checkpoint means: a file, the newest in a folder, or that of an experiment by its name,
    for which it looks below `results`, too.

    Raises UserError.
    """
    from optim.checkpoint import newest_valid

    if name is None:
        raise UserError(f"{flag} is needed: an experiment's folder or name, or a checkpoint file")
    path = file_of(by_name(flag, name, results))
    if path.is_dir():
        newest, notes = newest_valid(path)
        for note in notes:
            print(f"warning: {note}", file=sys.stderr)
        if newest is None:
            raise UserError(f"{flag} {path}: no ckpt.pt or ckpt_N.pt in this folder")
        return newest
    if not path.is_file():
        raise UserError(f"{flag} {path}: no such file or folder")
    return path


def output_folder(given: str | None, checkpoint: Path, prints: bool) -> Path | None:
    """Where a program writes its results, tried before the work: --output_dir, or beside the checkpoint.

    prints: the results are printed too, so a checkpoint in a read-only folder is no problem: returns None
    after a note. Raises UserError.
    """
    folder = Path(given or checkpoint.parent)
    try:
        try_to_write(folder)
    except OSError as error:
        if given is None and prints:
            print(
                f"note: cannot write to {folder}: {error.strerror}; the results are printed only,"
                " --output_dir keeps them",
                file=sys.stderr,
            )
            return None
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; give {'another' if given else 'an'} --output_dir"
        ) from None
    return folder


def keep_result(place: Path | None, name: str, content: dict[str, Any], words: str) -> None:
    """Write a program's JSON into the folder that `output_folder` returned, if any, and print its path.

    Raises UserError.
    """
    if place is None:
        return
    try:
        write_json(place / name, content)
    except OSError as error:
        raise UserError(f"cannot write {place / name}: {error.strerror}") from None
    print(f"{words}{place / name}")


def trained_settings(
    path: Path, state: dict[str, Any], given: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Flags of the training: from the checkpoint, else from summary.json beside it (the authors'
    checkpoints).

    given: those of this call, which suffice where nothing is recorded and they name the model. Raises
    UserError.
    """
    from optim.names import SUMMARY
    from optim.reader import Record

    if not isinstance(state.get("itr"), int | None):
        raise UserError(f"{path} is damaged: its step (itr) is no whole number")
    args = state.get("args")
    if args is None:
        args = (Record(path.parent).summary or {}).get("args", {} if given.get("model") else None)
    if not isinstance(args, dict):
        raise UserError(
            f"{path} holds no settings and there is no {SUMMARY} with them beside it; put it there, "
            "or, for programs that take flags of main.py, give --model and the rest (--config FILE)"
        )
    try:
        return config.recorded(args)
    except ValueError as error:
        raise UserError(f"the settings of {path} cannot be used: {error}") from None


def resolve(prog: str, path: Path, state: dict[str, Any], given: dict[str, Any]) -> Namespace:
    """All flags for this program: defaults, then the training run's, then those given here.

    Exits 2 on bad ones.
    """
    trained = trained_settings(path, state, given)
    inherited = {name: value for name, value in trained.items() if name in INHERITED or name == "recipe"}
    # they say together which data these are
    same_data = [None, *names_of_sources(trained["dataset"])] if "dataset" in trained else []
    if given.get("dataset") in same_data:
        inherited |= {name: trained[name] for name in OF_THE_DATA if name in trained}
    flags = flags_of(trained)
    explicit = {name: value for name, value in given.items() if name in flags}
    args = config.add_defaults({**inherited, "track": None, **explicit})
    problems = config.check(args)
    if problems:
        config.stop(prog, problems)
    known = {name: value for name, value in vars(args).items() if name in ("model", "recipe", "dataset")}
    notes = config.unused_settings(config.add_defaults({**known, **explicit}))
    length = getattr(args, "eval_seq_length", None)  # of texts
    if length is not None and length > args.sequence_length:
        notes.append(
            f"the model was trained on {args.sequence_length} tokens; positions beyond them are new to it"
        )
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    if length is not None:
        args.trained_length, args.sequence_length = args.sequence_length, length
    return args


def _in_cache(prog: str, name: str | None) -> str | None:
    """The file that a name means in the cache of checkpoints of the recipe coalescence, else the name. Exits
    2 where there are several.
    """
    try:
        found = None if name is None or os.path.exists(name) else cached(name)
    except UserError as error:
        config.stop(prog, [str(error)])
    return name if found is None else str(found)


def _recipe_in(name: str | None) -> str:
    """The recipe of the checkpoint that a command line names, whose flags and spellings it may have.

    The default one where none can be read: what is wrong is said later.
    """
    if name is None:
        return DEFAULT_RECIPE
    try:
        path = file_of(by_name("--checkpoint", name))
    except UserError:
        return DEFAULT_RECIPE
    if path.is_dir():
        path = next(iter(newest_first(path)), path)
    state = peek(path) or {}
    kind = foreign_of(state)
    if public.is_file(path):
        return public.RECIPE
    if kind is not None:
        return kind.recipe
    args = state.get("args")
    recipe = args.get("recipe") if isinstance(args, dict) else None
    return recipe if recipe in list(recipes()) else DEFAULT_RECIPE


def with_checkpoint(
    prog: str,
    description: str,
    own: Mapping[str, Sequence[Flag]],
    argv: Sequence[str] | None,
    run: Callable[[Restored, dict[str, Any]], None],
    preset: Mapping[str, Any] = MappingProxyType({}),
    of_text: bool = True,
) -> int:
    """Parse, open the checkpoint, join the other processes, run, and leave; returns the exit code.

    own: the program's flags in addition to those of main.py; `run` gets them converted, with their defaults.
    preset: values that override the training's and are overridden by those given now. of_text: checkpoints of
    recipes whose data are no text are refused.
    """
    given, problems = config.parse(argv, prog=prog, description=description, extra=own)
    name = _in_cache(prog, given.get("checkpoint"))
    recipe = _recipe_in(name)
    if recipe != DEFAULT_RECIPE:
        given, problems = config.parse(argv, prog=prog, description=description, extra=own, recipe=recipe)
    if of_text and recipes()[recipe].wanted is not None:
        line = f"--checkpoint {given['checkpoint']} is of recipe {recipe}, and this reads networks of text"
        problems = [Problem(line, "checkpoint")]
    if problems:
        config.stop(prog, problems)
    own_values = {flag.name: given.get(flag.name, flag.default) for flags in own.values() for flag in flags}

    def work() -> int:
        from optim.opening import open_checkpoint
        from optim.setup import set_precision

        path = find_checkpoint(name)
        state = open_checkpoint(path)
        args = resolve(prog, path, state, {**preset, **given})
        with distributed.start(args.distributed_backend, args.device) as world:
            set_precision(args.deterministic)
            run(Restored(path, state, args, world, frozenset(given)), own_values)
        return 0

    return config.guarded(prog, work)
