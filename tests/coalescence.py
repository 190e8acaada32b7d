"""Made-up pairs, trainings on them, and a checkpoint in the public code's names."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.genomes.features import SCALES
from data.genomes.made_up import make_up
from data.genomes.store import Layout
from models.coalescence.network import CoalescenceTransformer
from models.coalescence.settings import TINY, AdapterSettings
from tests.programs import python

WINDOWS = 12
# name of a set -> base pairs of a window, samples, whether some of each window is missing
SETS = {
    "w2000": (2000, 10, False),
    "w200": (200, 10, False),
    "w200_missing": (200, 10, True),
    "n6": (2000, 6, False),
    "n6_missing": (200, 6, True),
}


def write_sets(folder: Path, names: Any = SETS, pairs: int = 40) -> Path:
    for name in names:
        window, samples, masked = SETS[name]
        layout = Layout(window, window * WINDOWS, samples, SCALES, masked)
        make_up(folder / name, layout, {"train": pairs, "test": 9}, seed=3)
    return folder


def command(results: Path, dataset: Path, *flags: object, processes: int = 1) -> list[str]:
    """A training as main.py takes it, in the public code's spellings."""
    own = ["coalescence", "--dataset-path", dataset, "--log-dir", results, "--exp_name", "run"]
    small = ["--model", "tiny_narrow", "--batch-size", 4, "--grad-accum", 2, "--log_freq", 1]
    words = [*python(processes), "main.py", *own, *small, *flags]
    return [str(word) for word in words]


def network(
    preset: str = "tiny_narrow", seed: int = 1, adapter: AdapterSettings | None = None
) -> CoalescenceTransformer:
    torch.manual_seed(seed)
    return CoalescenceTransformer(replace(TINY[preset].settings(WINDOWS), adapter=adapter))


@contextmanager
def its_module() -> Iterator[type]:
    """The public code's class of settings, as if that were installed."""
    module = types.ModuleType("cxt.config")
    kind = type("ModelConfig", (), {"__module__": "cxt.config"})
    module.ModelConfig = kind  # type: ignore[attr-defined]
    sys.modules |= {"cxt": types.ModuleType("cxt"), "cxt.config": module}
    try:
        yield kind
    finally:
        del sys.modules["cxt"], sys.modules["cxt.config"]


def write_public(path: Path, weights: dict[str, Any], **fields: Any) -> Path:
    """A Lightning checkpoint. weights: under the public code's names; fields: of its settings."""
    with its_module() as kind:
        config = kind()
        vars(config).update(fields)
        content = {
            "state_dict": weights,
            "pytorch-lightning_version": "2.6.1",
            "global_step": 7,
            "epoch": 1,
            "hyper_parameters": {"gpt_config": config, "training_config": {"max_lr": 3e-4}},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
    return path


def its_names(network: CoalescenceTransformer) -> dict[str, Any]:
    """A network's weights as the public code keeps them."""
    found = {}
    for name, value in network.state_dict().items():
        of_backbone = name.startswith(("transformer.", "lm_head."))
        wrapped = "backbone." if network.adapter is not None and of_backbone else ""
        found[f"model.{wrapped}{name}"] = value
    return found
