"""How many bytes of text a token stands for, so that losses of different tokenizers can be compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.bpe import END_OF_TEXT, gpt2
from errors import UserError


def token_sizes(meta: dict[str, Any], vocab_size: int) -> np.ndarray | None:
    """Bytes (int64) of each token id, for the tokenizer that meta.json names; None where it names none, or
    one that is not available.

    The end of a document is no text: it has 0 bytes, though it is predicted and its loss counts.
    """
    if meta.get("tokenizer") == "gpt2":
        try:
            pieces = map(gpt2().decode_single_token_bytes, range(END_OF_TEXT))
        except UserError:  # no ranks, as on a node without internet: the rest of an evaluation needs none
            return None
        sizes = [len(piece) for piece in pieces]
    elif meta.get("tokenizer") == "char":
        characters = meta.get("characters")
        if not isinstance(characters, str):
            return None
        sizes = [len(character.encode(errors="surrogatepass")) for character in characters]
    else:
        return None
    return np.array([*sizes, *[0] * (vocab_size - len(sizes))], dtype=np.int64)
