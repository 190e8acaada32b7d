"""Show a prepared dataset: counts, checksums, three random documents, and the lengths of its documents.

python -m data.inspect data/datasets/stdlib [--seed 0] [--png FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.flags import CHARACTERS, GPT2
from data.bins import META, SCAN_TOKENS, check_format, is_prepared, map_tokens, read_meta
from drawing import load_matplotlib
from errors import UserError
from files import replace_atomically

SHOWN_CHARACTERS = 300


def slices(tokens: NDArray[np.uint16]) -> Iterator[NDArray[np.uint16]]:
    for begin in range(0, tokens.size, SCAN_TOKENS):
        yield tokens[begin : begin + SCAN_TOKENS]


def sha256(tokens: NDArray[np.uint16]) -> str:
    digest = hashlib.sha256()
    for part in slices(tokens):
        digest.update(part.data)
    return digest.hexdigest()


def ends_of(tokens: NDArray[np.uint16], end_of_text: int) -> NDArray[np.int64]:
    """Places of the tokens that end documents."""
    return np.concatenate(
        [
            np.flatnonzero(part == end_of_text) + begin * SCAN_TOKENS
            for begin, part in enumerate(slices(tokens))
        ]
    )


def decoder(meta: dict[str, Any]) -> Any:
    """A function from tokens to text, None for a tokenizer that is not known here.

    It raises UserError for tokens that it does not know.
    """
    if meta.get("tokenizer") == CHARACTERS:
        characters = meta["characters"]
    elif meta.get("tokenizer") != GPT2:
        return None
    else:
        from data.bpe import gpt2

        characters, encoding = None, gpt2()

    def decode(tokens: list[int]) -> str:
        try:
            if characters is None:
                return encoding.decode(tokens)
            return "".join(characters[token] for token in tokens)
        except (KeyError, IndexError):
            raise UserError(
                "the bins hold tokens that their tokenizer does not know; prepare the dataset again"
            ) from None

    return decode


def problems_of(folder: Path, check_documents: int = 3) -> list[str]:
    """What is wrong with the bins: counts and checksums against meta.json, and whether sampled documents
    decode.
    """
    meta, wrong = read_meta(folder), []
    if not meta.get("splits"):
        return [f"{folder / META} does not describe the bins: nothing to compare with"]
    decode = decoder(meta)
    for name, described in meta["splits"].items():
        path = folder / f"{name}.bin"
        tokens = map_tokens(path)
        if tokens.size != described.get("tokens"):
            wrong.append(f"{path} holds {tokens.size} tokens, {META} says {described.get('tokens')}")
        elif sha256(tokens) != described.get("sha256"):
            wrong.append(f"{path} has another SHA-256 than {META} says")
        elif "end_of_text" in meta:
            ends = ends_of(tokens, meta["end_of_text"])
            if ends.size != described.get("documents") or not ends.size or ends[-1] != tokens.size - 1:
                wrong.append(f"{path} holds {ends.size} documents, {META} says {described.get('documents')}")
            for number in (
                np.linspace(0, ends.size - 1, min(check_documents, ends.size)).astype(int) if decode else ()
            ):
                decode(tokens[ends[number - 1] + 1 if number else 0 : ends[number]].tolist())
    return wrong


def histogram(lengths: NDArray[np.int64], title: str, path: Path) -> None:
    """Document lengths in tokens, as a picture."""
    load_matplotlib()
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    bins = np.geomspace(1, max(10, lengths.max() + 1), 50).tolist()
    axes.hist(np.maximum(lengths, 1), bins=bins, color="#0072B2")
    axes.axvline(float(np.median(lengths)), color="#D55E00", label=f"median {np.median(lengths):,.0f}")
    axes.axvline(float(lengths.mean()), color="#009E73", linestyle="--", label=f"mean {lengths.mean():,.0f}")
    axes.set(xscale="log", xlabel="length of a document (tokens)", ylabel="documents", title=title)
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
    print(f"folder     {folder}\ntokenizer  {meta.get('tokenizer', 'unknown')}")
    for name in ("train", "val"):
        path = folder / f"{name}.bin"
        tokens, described = map_tokens(path), meta.get("splits", {}).get(name, {})
        documents = f"{described['documents']:,} documents, " if "documents" in described else ""
        check_format(path, tokens, meta)
        print(
            f"{name:<10} {documents}{tokens.size:,} tokens, largest"
            f" {described.get('largest_token', 'unknown')}"
        )
    wrong = []
    if not meta.get("splits"):
        verdict = f"none: {META} does not describe the bins"
    else:
        wrong = problems_of(folder)
        verdict = "WRONG" if wrong else "right"
    print(f"checksums  {verdict}")
    for line in wrong:
        print(f"           {line}")
    train = map_tokens(folder / "train.bin")
    ends = ends_of(train, meta["end_of_text"]) if "end_of_text" in meta else np.array([], dtype=np.int64)
    if ends.size:
        decode = decoder(meta)
        lengths = np.diff(ends, prepend=-1) - 1
        print(
            f"lengths    median {np.median(lengths):,.0f}, mean {lengths.mean():,.0f}, longest"
            f" {lengths.max():,} tokens"
        )
        if decode is None:
            print(f"documents  not shown: the tokenizer {meta.get('tokenizer')!r} is not known here")
        for number in (
            ()
            if decode is None
            else sorted(np.random.default_rng(seed).choice(ends.size, min(3, ends.size), replace=False))
        ):
            begin = ends[number] - lengths[number]
            text = decode(train[begin : ends[number]].tolist())
            more = "..." if len(text) > SHOWN_CHARACTERS else ""
            print(
                f"--- document {number + 1} of {ends.size:,}, {lengths[number]:,}"
                f" tokens\n{text[:SHOWN_CHARACTERS]}{more}"
            )
        place = png or folder / "document_lengths.png"
        try:
            histogram(
                lengths, f"{folder.name}: {ends.size:,} training documents, {train.size:,} tokens", place
            )
            print(f"--- picture of the lengths: {place}")
        except OSError as error:
            if png is not None:
                raise
            print(f"--- no picture of the lengths: {place}: {error.strerror} (--png FILE puts it elsewhere)")
    return 1 if wrong else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="data.inspect",
        description="Show counts, checksums, documents and lengths of a prepared dataset.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of random documents [0]")
    parser.add_argument("--png", type=Path, default=None, help="where to draw the histogram [in the folder]")
    args = parser.parse_args(argv)
    try:
        return show(args.folder, args.seed, args.png)
    except UserError as error:
        print(f"data.inspect: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"data.inspect: error: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
