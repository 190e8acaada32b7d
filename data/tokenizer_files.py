"""The tokenizer of an exported model, as files that transformers and tokenizers load without internet.

files, words = tokenizer_files(vocabulary_of(state, args), settings.sequence_length)
"""

from __future__ import annotations

from typing import Any

from config.tokenizers import TOKENIZER_FILE
from data.tokenizer import open_tokenizer
from data.vocabulary import Vocabulary
from errors import UserError


def tokenizer_files(known: Vocabulary, longest: int) -> tuple[dict[str, Any], str]:
    """Name -> content (JSON) of each file, and a sentence about them; no files where the vocabulary is
    unknown or cannot be put so.

    longest: tokens that the model takes.
    """
    if known.tokenizer is None:
        why = "neither the checkpoint nor its dataset says what the tokens stand for"
        return {}, f"No tokenizer is in this folder: {why}."
    try:
        tokenizer = open_tokenizer(known)
        if tokenizer is None:
            raise UserError(f"the tokens are those of {known.tokenizer}, which this export does not know")
        stored = tokenizer.stored()
    except UserError as error:
        return {}, f"No tokenizer is in this folder: {error}."
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **stored.special,
    }
    return {TOKENIZER_FILE: stored.content, "tokenizer_config.json": settings}, stored.words
