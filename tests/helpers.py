"""The weights that reference values were made with, tiny models and small checkpoints."""

from pathlib import Path

import numpy as np
import torch

import config
import models
from bench.gpu.reference import fill
from optim.checkpoint import save_checkpoint

DATA = Path(__file__).resolve().parent / "data"
PEER = DATA / "peer"
TINY = (
    "--n_layer",
    "3",
    "--n_layer_begin",
    "1",
    "--n_layer_end",
    "1",
    "--n_repeat",
    "3",
    "--n_embd",
    "32",
    "--n_head",
    "4",
    "--sequence_length",
    "16",
    "--vocab_size",
    "64",
    "--device",
    "cpu",
)


def tiny_args(model, *flags, **values):
    """Settings of a tiny model: flags as on a command line, values as Python objects."""
    args = config.parse_args(["--model", model, *TINY, *flags])
    vars(args).update(values)
    return args


def tiny_model(model, *flags, seed=5, **values):
    """A tiny model with reference weights, in evaluation mode."""
    return fill(models.make_model_from_args(tiny_args(model, *flags, **values)), seed).eval()


def tokens(*shape, seed=0, vocab=64):
    return torch.from_numpy(np.random.RandomState(seed).randint(0, vocab, shape))


def small_state(step=3):
    torch.manual_seed(step)
    return {
        "itr": step,
        "model": {"a.weight": torch.randn(5, 7), "b": torch.arange(4)},
        "rng": [{"words": [1, 2**40], "gauss": None}],
        "args": {"lr": 0.1, "name": "x", "factors": [0.5, 0.25], "bias": False},
    }


def same(one, other):
    """Equal down to types and bits of tensors."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def saved(path, state=None):
    save_checkpoint(path, state or small_state())
    return path
