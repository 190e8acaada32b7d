"""What data.inspect says of examples for fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.bins import META, beside, map_tokens, read_meta, sha256
from data.examples import (
    BYTE,
    ChatExamples,
    Examples,
    ExampleSplits,
    PairExamples,
    PromptExamples,
    open_examples,
)
from data.tokenizer import Tokenizer, open_tokenizer, text_of
from data.vocabulary import described
from errors import UserError

SHOWN_CHARACTERS, SHOWN_EXAMPLES = 300, 3


def problems_of_examples(folder: Path) -> list[str]:
    """What is wrong with the files: checksums against meta.json, and whether they fit each other."""
    meta, wrong = read_meta(folder), []
    for split, stated in meta["splits"].items():
        for ending in ("bin", *beside(meta)):
            path = folder / f"{split}.{ending}"
            key = "sha256" if ending == "bin" else f"{ending}_sha256"
            try:
                if sha256(map_tokens(path, dtype=BYTE)) != stated.get(key):
                    wrong.append(f"{path} has another SHA-256 than {META} says")
            except UserError as error:
                wrong.append(str(error))
    if not wrong:
        try:
            open_examples(folder)
        except UserError as error:
            wrong.append(str(error))
    return wrong


def lines_of_examples(splits: ExampleSplits[Any], generator: np.random.Generator) -> Iterator[str]:
    """Lengths of the training examples, what of them is counted, and some of them."""
    examples = splits.train
    yield _lengths("lengths", examples.lengths)
    yield from _shares(examples)
    tokenizer = open_tokenizer(described(splits.meta))
    if tokenizer is None:
        yield f"examples   not shown: the tokenizer {splits.meta.get('tokenizer')!r} is not known here"
        return
    for number in sorted(generator.choice(len(examples), min(SHOWN_EXAMPLES, len(examples)), replace=False)):
        yield f"--- example {number + 1} of {len(examples):,}, {examples.lengths[number]:,} tokens"
        yield from _segments(examples, int(number), tokenizer, splits.stop)


def _lengths(name: str, lengths: NDArray[np.int64]) -> str:
    middle, longest = np.median(lengths), lengths.max()
    return f"{name:<10} median {middle:,.0f}, mean {lengths.mean():,.1f}, longest {longest:,} tokens"


def _shares(examples: Examples) -> Iterator[str]:
    if isinstance(examples, ChatExamples):
        counted = examples.counts
        yield _lengths("answers", counted)
        yield f"counted    {counted.sum() / examples.tokens.size:.1%} of the tokens, the rest is masked"
    if isinstance(examples, PairExamples):
        for place, name in enumerate(("prompts", "chosen", "rejected")):
            yield _lengths(name, np.diff(examples.begins)[place::3])
    if isinstance(examples, PromptExamples):
        answered = sum(examples.example(number).answer is not None for number in range(len(examples)))
        yield f"answers    {answered:,} of {len(examples):,} prompts have one"


def _segments(examples: Examples, number: int, tokenizer: Tokenizer, stop: int) -> Iterator[str]:
    """The segments of an example as texts, each after what it is."""
    names = ("prompt", "chosen", "rejected")
    for place, segment in enumerate(examples.segments(number)):
        tokens = examples.segment(segment).tolist()
        name = names[place] if not isinstance(examples, ChatExamples) else "masked"
        end = ""
        if examples.counted[segment]:
            name = name.replace("masked", "counted")
            tokens, end = tokens[:-1], f" [token {stop}]"
        yield f"[{name}] {_shown(text_of(tokenizer, tokens))}{end}"
    if isinstance(examples, PromptExamples):
        answer = examples.example(number).answer
        yield "[no answer]" if answer is None else f"[answer] {_shown(answer)}"


def _shown(text: str) -> str:
    return text[:SHOWN_CHARACTERS] + ("..." if len(text) > SHOWN_CHARACTERS else "")
