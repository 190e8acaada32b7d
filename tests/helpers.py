"""The weights that reference values were made with, and tiny models."""

from pathlib import Path

import numpy as np
import torch

import config
import models
from bench.gpu.reference import fill

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
