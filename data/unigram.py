"""What a model without context achieves: the baseline that any trained model must beat."""

from __future__ import annotations

import math

import numpy as np

from data.bins import SCAN_TOKENS, Tokens


def unigram_loss(train: Tokens, val: Tokens, vocab_size: int) -> float:
    """Cross-entropy (nats a token) of `val` under the token frequencies of `train`, each count raised by
    one.
    """
    counts = np.ones(vocab_size, dtype=np.int64)
    for begin in range(0, train.size, SCAN_TOKENS):
        counts += np.bincount(train[begin : begin + SCAN_TOKENS], minlength=vocab_size)
    seen = np.bincount(val, minlength=vocab_size)
    return float(math.log(counts.sum()) - (seen * np.log(counts)).sum() / val.size)
