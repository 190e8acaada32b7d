"""Flags of data.tokenize."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from config.formats import FORMATS
from config.programs import Arguments
from config.tokenizers import CHARACTERS, GPT2
from data.bins import DEFAULT_DATA_DIR
from data.built_in import BUILT_IN
from data.tokenizer import KINDS

VAL_SHARE, EXAMPLES_VAL_SHARE = 0.0005, 0.05  # of documents, of examples


def _named(text: str) -> str:
    """For argparse: an empty word is an unset shell variable, and would mean the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _parser() -> Arguments:
    parser = Arguments(prog="data.tokenize", description="Prepare a dataset for training.")
    parser.add_argument(
        "--name",
        type=_named,
        default="openwebtext2",
        help="name of the dataset: its folder below --data_dir [openwebtext2]",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        type=lambda text: Path(_named(text)),
        default=None,
        metavar="PATH",
        help="files or folders [the downloaded tar of --name]",
    )
    parser.add_argument(
        "--include",
        nargs="+",
        default=(),
        metavar="PATTERN",
        help="read only files of folders and tars whose name or path matches, as '*.jsonl' or 'en/*' [all]",
    )
    parser.add_argument(
        "--data_dir", "--data-dir", default=None, help=f"root of the datasets [{DEFAULT_DATA_DIR}]"
    )
    parser.add_argument(
        "--text-key",
        type=_named,
        default="text",
        help="key or column of a document's text, a.b is b within a [text]",
    )
    parser.add_argument(
        "--tokenizer",
        type=_named,
        default=None,
        metavar="NAME",
        help=f"how text becomes tokens: {', '.join(KINDS)} [char for names that end in -char, else gpt2]",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=None,
        help="the input is examples for fine-tuning, as JSON lines: chat for --objective sft (messages, or"
        " prompt and completion), pairs for dpo (prompt, chosen, rejected), prompts for grpo (prompt, answer)"
        " [documents]",
    )
    parser.add_argument("--workers", type=int, default=None, help="processes [all cores]")
    parser.add_argument("--max-bad", type=int, default=0, help="bad lines to leave out before stopping [0]")
    parser.add_argument(
        "--val-share",
        type=float,
        default=None,
        help=f"share of the documents for validation [{VAL_SHARE}; of examples {EXAMPLES_VAL_SHARE}]",
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=None,
        help="instead: share of the text, at its end, for validation; cuts a document [characters: 0.1]",
    )
    parser.add_argument(
        "--delete-raw", action="store_true", help="delete the input files once the bins are verified"
    )
    parser.add_argument("--force", action="store_true", help="prepare the dataset again if it exists")
    return parser


def parse(argv: list[str] | None) -> Namespace:
    """The command line. Raises UserError."""
    parser = _parser()
    args = parser.parsed(argv)
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")
    if args.max_bad < 0:
        parser.error("--max-bad must be at least 0")
    for flag, value in (("--val-share", args.val_share), ("--val-fraction", args.val_fraction)):
        if value is not None and not 0 < value < 1:
            parser.error(f"{flag} must be between 0 and 1")
    if args.val_share is not None and args.val_fraction is not None:
        parser.error("--val-share and --val-fraction both say what is for validation: give one of them")
    if args.format is not None:
        if args.val_fraction is not None:
            parser.error("--val-fraction cuts a document, and examples stay whole: give --val-share")
        if args.text_key != "text":
            parser.error("--text-key is of documents: the keys of examples are those of --format")
        if args.input is None:
            parser.error("--format needs --input: the files of examples")
    return args


def default_tokenizer(args: Namespace) -> str:
    """Of a command line without --tokenizer."""
    if args.name in BUILT_IN and args.input is None:
        return BUILT_IN[args.name].tokenizer
    return CHARACTERS if args.name.endswith("-char") else GPT2


def default_share(args: Namespace) -> float:
    """Of a command line without --val-share."""
    if args.format is not None:
        return EXAMPLES_VAL_SHARE
    return BUILT_IN[args.name].val_share if args.name in BUILT_IN and args.input is None else VAL_SHARE
