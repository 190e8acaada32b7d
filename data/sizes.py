"""How many bytes of text a token stands for, so that losses of different tokenizers can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.tokenizer import sizes_of
from data.vocabulary import described
from errors import UserError


def token_sizes(meta: Mapping[str, Any], vocab_size: int) -> NDArray[np.int64] | None:
    """Bytes (int64) of each token id, for the tokenizer that meta.json names; None where it names none, or
    one that is not available.

    The end of a document is no text: it has 0 bytes.
    """
    try:
        sizes = sizes_of(described(meta))
    except (UserError, OSError):  # the rest of an evaluation needs no tokenizer
        return None
    if sizes is None:
        return None
    return np.array([*sizes, *[0] * (vocab_size - len(sizes))], dtype=np.int64)


def text_in(targets: Tensor, losses: Tensor, sizes: Tensor) -> Tensor:
    """Bytes of the targets (B, T) of each window, and nats of those without bytes: (B, 2) float64.

    losses: (B, T) in nats. sizes: (V,). Targets below 0 are none.
    """
    found = sizes[targets.clamp_min(0)].masked_fill(targets < 0, 0)
    return torch.stack([found.sum(1).double(), losses.double().masked_fill(found > 0, 0).sum(1)], dim=1)


def bits_per_byte(loss: float, n_tokens: int, texts: Tensor) -> float:
    """Of a mean loss in nats a token: exactly loss / ln 2 where each token is a byte, infinite without text.

    texts: (windows, 2) of `text_in`; losses of tokens without bytes do not count.
    """
    n_bytes, elsewhere = texts.sum(0).tolist()
    if not n_bytes:
        return math.inf
    return (loss - elsewhere / n_tokens) * (n_tokens / n_bytes) / math.log(2)
