"""The tokenizer of an exported model, as files that transformers and tokenizers load without internet.

files, words = tokenizer_files(vocabulary_of(state, args), settings.sequence_length)
"""

from __future__ import annotations

import json
from typing import Any

from config.flags import CHARACTERS, GPT2
from data.bpe import cached_path, gpt2
from data.vocabulary import Vocabulary
from errors import UserError

NAME = "<|endoftext|>"  # how GPT-2's vocabulary writes the token between documents


def tokenizer_files(known: Vocabulary, longest: int) -> tuple[dict[str, Any], str]:
    """Name -> content (JSON) of each file, and a sentence about them; no files where the vocabulary is
    unknown or cannot be put so.

    longest: tokens that the model takes.
    """
    if known.tokenizer == GPT2:
        try:
            content, special = _byte_pairs(), {"eos_token": NAME, "pad_token": NAME}
        except UserError as error:
            return {}, f"No tokenizer is in this folder: {error}."
        words = "The tokenizer in this folder is GPT-2's byte-pair encoding. Documents end with token 50256."
    elif known.tokenizer == CHARACTERS and known.characters:
        if any("\ud800" <= character <= "\udfff" for character in known.characters):
            return (
                {},
                (
                    "No tokenizer is in this folder: tokens are characters, and some are lone surrogates,"
                    " which its format cannot hold."
                ),
            )
        content, special = _characters(known.characters), {}
        words = (
            "The tokenizer in this folder takes each character as a token and refuses those that the training"
            " data did not have; no token is left for padding or for the end of a document."
        )
    elif known.tokenizer is None:
        return (
            {},
            (
                "No tokenizer is in this folder: neither the checkpoint nor its dataset says what the tokens"
                " stand for."
            ),
        )
    else:
        return (
            {},
            (
                f"No tokenizer is in this folder: the tokens are those of {known.tokenizer}, which this"
                " export does not know."
            ),
        )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **special,
    }
    return {"tokenizer.json": content, "tokenizer_config.json": settings}, words


def _tokenizer(
    model: dict[str, Any], split: dict[str, Any], decoder: dict[str, Any], added: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _byte_pairs() -> dict[str, Any]:
    """GPT-2's, from the two files of ranks that tiktoken reads. Raises UserError where they are not here."""
    gpt2()
    numbers = json.loads(cached_path("encoder.json").read_text(encoding="utf-8"))
    merges = [line for line in cached_path("vocab.bpe").read_text(encoding="utf-8").split("\n")[1:] if line]
    end = numbers[NAME]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = {
        "id": end,
        "content": NAME,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return _tokenizer(
        {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": numbers,
            "merges": merges,
        },
        level,
        level,
        [added],
    )


def _characters(characters: str) -> dict[str, Any]:
    """One token a character. `unk_token` is no token: a character that there is none for is an error, not
    a gap.
    """
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    model = {
        "type": "WordLevel",
        "vocab": {character: number for number, character in enumerate(characters)},
        "unk_token": "",
    }
    return _tokenizer(model, split, {"type": "Fuse"}, [])
