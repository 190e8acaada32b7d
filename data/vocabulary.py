"""What the tokens of a training stand for. It is stored in the checkpoint, and never guessed from the size of
a vocabulary.

    state["vocabulary"] = asdict(described(splits.meta))       # when a checkpoint is written
    known = vocabulary_of(state, args)                         # when one is opened
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from config.mixture import names_of_sources
from config.tokenizers import GPT2, TOKENIZER_FILE
from data.bins import dataset_folder, label, read_meta
from data.bpe import END_OF_TEXT
from errors import UserError

OF_GPT2 = ("openwebtext2", "slimpajama", "stdlib")  # datasets that have no other tokens, the authors' too


@dataclass(frozen=True)
class Vocabulary:
    """tokenizer: a name in data/tokenizer.py or another's, None where it is not known. end_of_text: the token
    that ends a document, if there is one.

    characters: those of a character-level dataset, in the order of their tokens. tokenizer_file,
    tokenizer_sha256: of a user's tokenizer.json.
    """

    tokenizer: str | None = None
    end_of_text: int | None = None
    characters: str | None = None
    tokenizer_file: str | None = field(default=None, compare=False)
    tokenizer_sha256: str | None = None

    def meaning(self) -> tuple[str | None, ...]:
        """What decides which text a token stands for."""
        return self.tokenizer, self.characters, self.tokenizer_sha256


OF_BPE = Vocabulary(GPT2, END_OF_TEXT)


def described(meta: Mapping[str, Any]) -> Vocabulary:
    """As a dataset's meta.json states it, or as a checkpoint recorded it."""
    values: dict[str, Any] = {}
    for name in (each.name for each in fields(Vocabulary)):
        kind = int if name == "end_of_text" else str
        if isinstance(meta.get(name), kind):
            values[name] = meta[name]
    return Vocabulary(**values) if values.get("tokenizer") else Vocabulary()


def _folders(args: Namespace) -> list[Path]:
    """Of the dataset, or of the sources of a mixture."""
    names = names_of_sources(args.dataset) or [args.dataset]
    return [dataset_folder(name, args.data_dir) for name in names]


def vocabulary_of(state: Mapping[str, Any], args: Namespace, given: Vocabulary | None = None) -> Vocabulary:
    """The vocabulary of a checkpoint with these flags: as it records it, else as its dataset states it, else
    as the dataset's name says.

    given: by the user, for where neither checkpoint nor dataset names one, or where the file of theirs is
    gone. Raises UserError for a damaged meta.json.
    """
    recorded = state.get("vocabulary")
    known = described(recorded) if isinstance(recorded, Mapping) else Vocabulary()
    folders = _folders(args)
    for folder in folders:
        if known.tokenizer is None and folder.is_dir():
            known = described(read_meta(folder))
    if known.tokenizer is None:
        known = given or (OF_BPE if label(args.dataset) in OF_GPT2 else known)
        if known.end_of_text is not None and known.end_of_text >= args.vocab_size:
            return Vocabulary()
    beside = [str(folder / TOKENIZER_FILE) for folder in folders]
    places = [known.tokenizer_file, given and given.tokenizer_file, *beside]
    there = next((place for place in places if place and Path(place).is_file()), None)
    if known.tokenizer_file is not None and there is not None:
        known = replace(known, tokenizer_file=there)
    return known


def other_tokens(state: Mapping[str, Any], meta: Mapping[str, Any], folder: Path | str) -> str | None:
    """The tokenizations of a checkpoint and of a dataset in words, if both are known and differ; None
    otherwise.
    """
    recorded = state.get("vocabulary")
    mine, others = described(recorded) if isinstance(recorded, Mapping) else Vocabulary(), described(meta)
    if not (mine.tokenizer and others.tokenizer) or mine.meaning() == others.meaning():
        return None
    more = ""
    if mine.tokenizer == others.tokenizer:
        more = ", of other characters" if mine.characters else ", another one"
    return (
        f"the model's tokens are of the tokenizer {mine.tokenizer!r}, those in {folder} of"
        f" {others.tokenizer!r}{more}"
    )


def need_same_tokens(state: Mapping[str, Any], meta: Mapping[str, Any], folder: Path | str) -> None:
    """Raises UserError where a dataset's tokens stand for something else than those of a checkpoint, as
    far as both say.
    """
    differ = other_tokens(state, meta, folder)
    if differ:
        raise UserError(f"{differ}: a loss on them would say nothing; give a --dataset of the model's tokens")


def unknown(args: Namespace) -> UserError:
    """That nobody says what a model's tokens are."""
    return UserError(
        f"nobody says what the {args.vocab_size} tokens of this model stand for: neither its checkpoint nor"
        f" its dataset ({', '.join(map(str, _folders(args)))}) names a tokenizer that is known here;"
        f" give --data_dir, or --tokenizer, as {GPT2} where it is that"
    )
