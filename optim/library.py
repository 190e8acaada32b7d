"""The training library's names of settings and measures, for training from Python and from config files.

    rows = fit(objective, source, **TrainConfig(max_steps=200, optimizer="lion").settings()).metrics
    TrainConfig.read("library.json").write("flags.json")    # then: python main.py gpt --config flags.json

docs/library.md has the table of settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import config
from config.flags import FLAGS
from errors import UserError
from files import read_json, write_json

# the library's name of a setting -> the flag
FLAG_OF = {
    "learning_rate": "lr",
    "weight_decay": "weight_decay",
    "warmup_steps": "warmup_steps",
    "max_steps": "iterations",
    "batch_size": "batch_size",
    "grad_accumulation_steps": "acc_steps",
    "max_grad_norm": "grad_clip",
    "eval_interval": "eval_freq",
    "log_interval": "log_freq",
    "checkpoint_interval": "save_checkpoint_freq",
    "optimizer": "opt",
    "lr_schedule": "scheduler",
    "compile_step": "compile",
    "seed": "seed",
}
SCHEDULES = {"cosine": "cosine", "linear": "linear_decay", "constant": "constant"}  # of --scheduler
# flags that each optimiser of the library has besides: it decays every parameter, or none with adafactor
OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"beta1": 0.9, "beta2": 0.999},
    "lion": {"beta1": 0.9, "beta2": 0.99},
    "adafactor": {"weight_decay": 0.0, "adafactor_eps": 1e-30},
    "sgd": {"beta1": 0.9},
}


@dataclass(frozen=True)
class TrainConfig:
    """A training's settings under the library's names, with its defaults. max_grad_norm: 0 or less turns
    clipping off.

    Raises ValueError, which names the setting, for a value that it cannot have.
    """

    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup_steps: int = 100
    max_steps: int = 1000
    batch_size: int = 32
    grad_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    eval_interval: int = 100
    log_interval: int = 10
    checkpoint_interval: int = 500
    optimizer: str = "adamw"
    lr_schedule: str = "cosine"
    compile_step: bool = True
    seed: int = 42

    def __post_init__(self) -> None:
        self.flags()

    @classmethod
    def read(cls, path: Path | str) -> TrainConfig:
        """Of a JSON object with the library's names. Raises UserError for another file, ValueError for a name
        or value.
        """
        content = read_json(Path(path))
        if content is None:
            raise UserError(f"{path}: no such file")
        known = [field.name for field in fields(cls)]
        for name in content:
            if name not in known:
                raise ValueError(f"{path}: unknown setting {name!r}{config.nearest(name, known)}")
        return cls(**content)

    def flags(self) -> dict[str, Any]:
        """The flags of main.py, by name."""
        _need("optimizer", self.optimizer, OPTIMIZERS)
        _need("lr_schedule", self.lr_schedule, SCHEDULES)
        given = asdict(self)
        given["lr_schedule"] = SCHEDULES[self.lr_schedule]
        if isinstance(self.max_grad_norm, int | float) and self.max_grad_norm < 0:
            given["max_grad_norm"] = 0.0
        values = {}
        for name, flag in FLAG_OF.items():
            try:
                values[flag] = config.convert(FLAGS[flag], given[name])
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        return {**values, "decayed": "all", **OPTIMIZERS[self.optimizer]}

    def settings(self) -> dict[str, Any]:
        """The keywords of optim.fit.fit."""
        values = self.flags()
        return {"steps": values.pop("iterations"), **values}

    def write(self, path: Path | str) -> None:
        """Write a file for `python main.py [RECIPE] --config FILE`."""
        write_json(Path(path), {"flags": self.flags()})


def _need(name: str, value: Any, choices: Mapping[str, Any]) -> None:
    """Raises ValueError for a value that is not among the choices."""
    if not isinstance(value, str) or value not in choices:
        known = config.nearest(str(value), choices)
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}{known}")


# measures


def mean_nats(batch_mean_nats: Sequence[float], batch_tokens: Sequence[int]) -> float:
    """Mean loss of a token over batches, each with its mean loss in nats and its number of tokens.

    Raises ValueError where there are no tokens, or the two do not belong together.
    """
    if len(batch_mean_nats) != len(batch_tokens) or min(batch_tokens, default=0) < 0 or not sum(batch_tokens):
        raise ValueError(f"{len(batch_mean_nats)} losses need as many numbers of tokens, not {batch_tokens}")
    pairs = zip(batch_mean_nats, batch_tokens, strict=True)
    return math.fsum(nats * tokens for nats, tokens in pairs) / sum(batch_tokens)


def bits_per_byte(nats: float, bytes_per_token: float = 1.0) -> float:
    """Of a mean loss in nats a token. Raises ValueError for bytes that are not above 0."""
    if not 0 < bytes_per_token < math.inf:
        raise ValueError(f"bytes_per_token must be above 0, not {bytes_per_token}")
    return nats / (math.log(2) * bytes_per_token)


def perplexity(nats: float) -> float:
    """Of a mean loss in nats a token; infinite beyond the largest float."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k completions passes, drawn without replacement from n of which c pass:
    1 - C(n - c, k) / C(n, k).

    Raises ValueError outside 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def evaluate_pass_at_k(
    passed: Sequence[Sequence[bool | int]], k_values: Sequence[int] = (1,)
) -> dict[str, float]:
    """{"pass@k": mean over the problems that have at least k completions, 0 where none has}.

    passed: of each problem, whether each completion passes. Raises ValueError for a k below 1.
    """
    found = {}
    for k in k_values:
        scores = [pass_at_k(len(each), sum(map(bool, each)), k) for each in passed if len(each) >= k]
        found[f"pass@{k}"] = math.fsum(scores) / max(len(scores), 1)
    return found
