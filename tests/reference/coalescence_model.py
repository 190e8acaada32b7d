"""Weights, inputs and tokens of the coalescence cases, from the formulas of their file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.coalescence.network import CoalescenceTransformer
from models.coalescence.settings import CHANNELS, SCALES, VOCABULARY, AdapterSettings, CoalescenceSettings
from models.weights import load_weights

FILE = "coalescence.json.gz"
Params = Sequence[tuple[str, Sequence[int], float, float]]


def weights(params: Params) -> dict[str, Tensor]:
    """Name -> weight."""
    found = {}
    for position, (name, shape, a, b) in enumerate(params):
        i = np.arange(int(np.prod(shape)), dtype=np.float64)
        values = a * np.sin((0.37 + 0.05 * position) * i * i + 0.3 * position) + b
        found[name] = torch.tensor(values.reshape(shape), dtype=torch.float32)
    return found


def inputs(q: int, *shape: int) -> Tensor:
    """Logarithms of counts plus one."""
    i = np.arange(int(np.prod(shape)), dtype=np.float64)
    counts = np.floor(4 * (0.5 + 0.5 * np.sin((0.11 + 0.01 * q) * i * i + 0.7 * q)))
    return torch.tensor(np.log1p(counts).reshape(shape), dtype=torch.float32)


def tokens(q: int, batch: int, n_windows: int, vocabulary: int = VOCABULARY) -> Tensor:
    """(batch, 1 + n_windows), the first of which begins the sequence."""
    i = np.arange(batch * n_windows, dtype=np.float64)
    bins = np.floor((vocabulary - 2) * (0.5 + 0.5 * np.sin((0.23 + 0.01 * q) * i * i + 0.2 * q)))
    y = torch.tensor(bins.clip(0, vocabulary - 3).reshape(batch, n_windows), dtype=torch.int64) + 2
    return torch.cat((torch.ones(batch, 1, dtype=torch.int64), y), dim=1)


def case_inputs(case: Any, samples: int) -> Tensor:
    return inputs(case["x_q"], case["batch"], CHANNELS, SCALES, case["n_windows"], samples)


def settings(config: Any, n_windows: int, adapter: AdapterSettings | None = None) -> CoalescenceSettings:
    """Of a case's config; without dropout."""
    assert not config.get("bias", False)
    found = CoalescenceSettings(
        n_samples=config["num_samples"],
        n_windows=n_windows,
        n_layer=config["n_layer"],
        n_head=config["n_head"],
        mask_singletons=config.get("mask_singletons", True),
        dropout=0.0,
        adapter=adapter,
        vocab_size=config.get("output_dim", VOCABULARY),
        expansion=config.get("sample_scale_embd", 2),
    )
    assert found.n_embd == config["n_embd"]
    return found


def network_of(case: Any) -> CoalescenceTransformer:
    """With the weights of a case that has params of a network alone."""
    network = CoalescenceTransformer(settings(case["config"], case["n_windows"]))
    buffer = {"transformer.bt2ls.weights": network.state_dict()["transformer.bt2ls.weights"]}
    load_weights(network, weights(case["params"]) | buffer)
    return network


def wrapped_network(case: Any, mask_token: float = 0.0) -> CoalescenceTransformer:
    """With an adapter, and the weights of a case of that group, under our names."""
    adapter = AdapterSettings(case["n_in"], case["bottleneck"], 0.0, case["last_n"])
    network = CoalescenceTransformer(settings(case["config"], case["n_windows"], adapter))
    named = {name.removeprefix("backbone."): value for name, value in weights(case["params"]).items()}
    named["mask_token"] = torch.tensor(mask_token)
    if network.mask_token is None:
        del named["mask_token"]
    named["transformer.bt2ls.weights"] = network.state_dict()["transformer.bt2ls.weights"]
    load_weights(network, named)
    return network
