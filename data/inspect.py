"""Show a prepared dataset: counts, checksums, three random documents or examples, and the lengths of all.

python -m data.inspect data/datasets/stdlib [--seed 0] [--png FILE]

Of genomes, which the recipe coalescence is trained on, it shows counts, scenarios and checksums, and an
example as a picture:

python -m data.inspect data/datasets/processed [--draw N [-o FILE] [--split test]]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.programs import Arguments, guarded
from data.bins import (
    META,
    Tokens,
    beside,
    check_format,
    dtype_of,
    ends_of,
    is_prepared,
    map_tokens,
    read_meta,
    sha256,
)
from data.example_view import lines_of_examples, problems_of_examples
from data.examples import open_examples
from data.genomes.inspect import draw
from data.genomes.inspect import show as show_genomes
from data.genomes.store import is_genomes
from data.tokenizer import Tokenizer, open_tokenizer, text_of
from data.vocabulary import described
from drawing import load_matplotlib
from errors import UserError
from files import replace_atomically

SHOWN_CHARACTERS, SHOWN_DOCUMENTS = 300, 3


def problems_of(folder: Path, check_documents: int = SHOWN_DOCUMENTS) -> list[str]:
    """What is wrong with the bins: counts and checksums against meta.json, and whether sampled parts decode.

    Raises UserError where they do not.
    """
    meta, wrong = read_meta(folder), []
    if not meta.get("splits"):
        return [f"{folder / META} does not describe the bins: nothing to compare with"]
    if beside(meta):
        return problems_of_examples(folder)
    tokenizer, end = open_tokenizer(described(meta)), meta.get("end_of_text")
    for name, stated in meta["splits"].items():
        path = folder / f"{name}.bin"
        tokens = map_tokens(path, dtype=dtype_of(meta))
        if tokens.size != stated.get("tokens"):
            wrong.append(f"{path} holds {tokens.size} tokens, {META} says {stated.get('tokens')}")
            continue
        if sha256(tokens) != stated.get("sha256"):
            wrong.append(f"{path} has another SHA-256 than {META} says")
            continue
        ends = None if end is None else ends_of(tokens, end)
        if ends is not None and (
            ends.size != stated.get("documents") or not ends.size or ends[-1] != tokens.size - 1
        ):
            wrong.append(f"{path} holds {ends.size} documents, {META} says {stated.get('documents')}")
        if tokenizer is not None:
            for part in _sample(tokens, ends, check_documents):
                text_of(tokenizer, part.tolist())
    return wrong


def _sample(tokens: Tokens, ends: NDArray[np.int64] | None, count: int) -> Iterator[Tokens]:
    """Documents, spread evenly; parts where nothing says where a document ends."""
    if ends is None:
        for begin in np.linspace(0, tokens.size - 1, count).astype(int):
            yield tokens[begin : begin + SHOWN_CHARACTERS]
        return
    for number in np.linspace(0, ends.size - 1, min(count, ends.size)).astype(int):
        yield tokens[ends[number - 1] + 1 if number else 0 : ends[number]]


def histogram(lengths: NDArray[np.int64], unit: str, title: str, path: Path) -> None:
    """Lengths of documents or examples in tokens, as a picture."""
    load_matplotlib()
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    bins = np.geomspace(1, max(10, lengths.max() + 1), 50).tolist()
    axes.hist(np.maximum(lengths, 1), bins=bins, color="#0072B2")
    axes.axvline(float(np.median(lengths)), color="#D55E00", label=f"median {np.median(lengths):,.0f}")
    axes.axvline(float(lengths.mean()), color="#009E73", linestyle="--", label=f"mean {lengths.mean():,.0f}")
    one = unit.removesuffix("s")
    axes.set(xscale="log", xlabel=f"length of a {one} (tokens)", ylabel=unit, title=title)
    axes.legend(frameon=False)
    replace_atomically(
        path, lambda temporary: figure.savefig(temporary, dpi=150, format=path.suffix[1:] or "png")
    )
    pyplot.close(figure)


def show(folder: Path, seed: int, png: Path | None) -> int:
    """Print everything; 0 where the bins are right, 1 where they are not. Raises UserError."""
    if not is_prepared(folder):
        raise UserError(f"{folder} is not prepared: it lacks train.bin or val.bin")
    meta = read_meta(folder)
    unit = "examples" if beside(meta) else "documents"
    print(f"folder     {folder}\ntokenizer  {meta.get('tokenizer', 'unknown')}")
    if beside(meta):
        print(f"format     {meta['format']}, answers end with token {meta.get('stop')}")
    for name in ("train", "val"):
        path = folder / f"{name}.bin"
        tokens, stated = map_tokens(path, dtype=dtype_of(meta)), meta.get("splits", {}).get(name, {})
        documents = f"{stated['documents']:,} {unit}, " if "documents" in stated else ""
        check_format(path, tokens, meta)
        largest = stated.get("largest_token", "unknown")
        print(f"{name:<10} {documents}{tokens.size:,} tokens, largest {largest}")
    wrong = []
    if not meta.get("splits"):
        verdict = f"none: {META} does not describe the bins"
    else:
        wrong = problems_of(folder)
        verdict = "WRONG" if wrong else "right"
    print(f"checksums  {verdict}")
    for line in wrong:
        print(f"           {line}")
    generator = np.random.default_rng(seed)
    if not beside(meta):
        show_text(folder, meta, generator, png)
    elif not wrong:
        splits = open_examples(folder)
        for line in lines_of_examples(splits, generator):
            print(line)
        draw_lengths(folder, splits.train.lengths, "examples", png)
    return 1 if wrong else 0


def show_text(folder: Path, meta: dict[str, Any], generator: np.random.Generator, png: Path | None) -> None:
    """Documents of running text, or excerpts where nothing says where a document ends."""
    train = map_tokens(folder / "train.bin", dtype=dtype_of(meta))
    tokenizer = open_tokenizer(described(meta))
    if "end_of_text" in meta:
        ends = ends_of(train, meta["end_of_text"])
        if ends.size:
            show_documents(train, ends, tokenizer, meta.get("tokenizer"), generator)
            draw_lengths(folder, lengths_of(ends), "documents", png)
    elif tokenizer:
        show_excerpts(train, tokenizer, generator)


def lengths_of(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of documents, without the tokens that end them."""
    return np.diff(ends, prepend=-1) - 1


def shown(text: str) -> str:
    return text[:SHOWN_CHARACTERS] + ("..." if len(text) > SHOWN_CHARACTERS else "")


def show_documents(
    train: Tokens,
    ends: NDArray[np.int64],
    tokenizer: Tokenizer | None,
    name: str | None,
    generator: np.random.Generator,
) -> None:
    """Lengths of the documents in words, and the beginnings of some."""
    lengths = lengths_of(ends)
    print(
        f"lengths    median {np.median(lengths):,.0f}, mean {lengths.mean():,.0f}, longest"
        f" {lengths.max():,} tokens"
    )
    if tokenizer is None:
        print(f"documents  not shown: the tokenizer {name!r} is not known here")
        return
    for number in sorted(generator.choice(ends.size, min(SHOWN_DOCUMENTS, ends.size), replace=False)):
        text = text_of(tokenizer, train[ends[number] - lengths[number] : ends[number]].tolist())
        print(f"--- document {number + 1} of {ends.size:,}, {lengths[number]:,} tokens\n{shown(text)}")


def show_excerpts(train: Tokens, tokenizer: Tokenizer, generator: np.random.Generator) -> None:
    """Parts of a text in which nothing says where a document ends."""
    for begin in sorted(generator.choice(train.size, min(SHOWN_DOCUMENTS, train.size), replace=False)):
        text = text_of(tokenizer, train[begin : begin + SHOWN_CHARACTERS].tolist())
        print(f"--- from token {begin:,} of {train.size:,}\n{shown(text)}")


def draw_lengths(folder: Path, lengths: NDArray[np.int64], unit: str, png: Path | None) -> None:
    """A picture of the lengths of documents or examples in tokens. Raises OSError where `png`, a file that
    was asked for, cannot be written.
    """
    place = png or folder / f"{unit.removesuffix('s')}_lengths.png"
    title = f"{folder.name}: {lengths.size:,} training {unit}, {lengths.sum():,} tokens"
    try:
        histogram(lengths, unit, title, place)
        print(f"--- picture of the lengths: {place}")
    except OSError as error:
        if png is not None:
            raise
        print(f"--- no picture of the lengths: {place}: {error.strerror} (--png FILE puts it elsewhere)")


def main(argv: list[str] | None = None) -> int:
    parser = Arguments(
        prog="data.inspect",
        description="Show counts, checksums, documents and lengths of a prepared dataset.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of random documents [0]")
    parser.add_argument("--png", type=Path, default=None, help="where to draw the histogram [in the folder]")

    parser.add_argument("--draw", type=int, default=None, metavar="N", help="genomes: draw this example")
    parser.add_argument("-o", "--output", type=Path, default=None, help="picture of --draw [example_N.png]")
    parser.add_argument(
        "--split", choices=["train", "test"], default="train", help="genomes: of --draw [train]"
    )

    def work() -> int:
        args = parser.parsed(argv)
        if is_genomes(args.folder):
            if args.draw is not None:
                draw(args.folder, args.split, args.draw, args.output or Path(f"example_{args.draw}.png"))
            return show_genomes(args.folder)
        if args.draw is not None:
            raise UserError(f"--draw {args.draw}: {args.folder} holds no prepared genomes")
        return show(args.folder, args.seed, args.png)

    return guarded("data.inspect", work)


if __name__ == "__main__":
    sys.exit(main())
