"""The authors' models and what they computed (tests/data/reference), for tests and benchmarks alike."""

from __future__ import annotations

import gzip
import json
import zlib
from argparse import Namespace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import config

FILE = Path(__file__).resolve().parents[2] / "tests" / "data" / "reference" / "official_models.json.gz"
Model = TypeVar("Model", bound=nn.Module)
Case = dict[str, Any]


def reference_weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The weights of the reference are a function of the parameter's name."""
    generator = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)
    draws = np.asarray(generator.standard_normal(shape)).astype("f4")
    if name.endswith("weight") and len(shape) == 1:
        return torch.from_numpy(1 + np.float32(0.1) * draws)
    scale = 0.05 if name.endswith("bias") else 0.5 if "mod_router" in name else 0.08
    return torch.from_numpy(np.asarray(np.float32(scale) * draws))


def fill(model: Model, seed: int) -> Model:
    """Give every parameter its reference weight, so that no bias, norm or gate stands at a neutral value."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(reference_weight(name, tuple(parameter.shape), seed))
    return model


def cases() -> list[Case]:
    """Each with a model's command line, a seed of weights, tokens, and what the authors' model computed."""
    found: list[Case] = json.loads(gzip.decompress(FILE.read_bytes()))["cases"]
    return found


def case_args(case: Case) -> Namespace:
    """Its flags; training shares are those that the authors' model drew."""
    args = config.parse_args(case["argv"])
    vars(args).update(
        case["extra"],
        eval_length_factor=case["eval_length_factor"],
        training_length_factor=(case["train"] or {}).get("training_length_factor"),
    )
    return args
