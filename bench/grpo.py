"""Does GRPO raise the reward on problems that it was not trained on? On sums of a number below 100 and one
below 10, from a network that supervised fine-tuning has taught to add, in part.

    python bench/grpo.py [--seeds 1 2 3]

Both are trained on the same sums, and the fifth that is held out is new to both. The supervised fine-tuning
ends as soon as --start of its completions of training prompts are right. A JSON line for each seed, with the
mean reward (exact sums, completions drawn at temperature 1) and pass@k of all held-out prompts before and
after, and the seconds of both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import numpy as np
import torch

import config
from bench.arithmetic import FILES, rows
from data.example_sources import PromptSet, PromptSource, SftSource
from data.examples import ExampleSplits, open_examples
from data.tokenize import main as tokenize
from distributed.world import World
from models import make_model_from_args
from optim.fit import fit
from optim.hooks import COMPLETE, Hook, Stop
from optim.objectives.grpo import Grpo, GrpoSettings, RolloutRows
from optim.objectives.sft import Sft
from optim.reward_evaluation import means_of, measure_rewards
from optim.rollouts import Rollouts

CPU = World(torch.device("cpu"))
MODEL = {
    "model": "base",
    "n_layer": 2,
    "n_embd": 64,
    "n_head": 4,
    "sequence_length": 9,  # 99+9= and four tokens: three digits and the end
    "completion_tokens": 4,
    "vocab_size": 256,
    "dropout": 0.0,
    "eval_samples": 8,
    "pass_k": [1, 8],
}
COMMON: dict[str, Any] = {"device": "cpu", "log_freq": 0, "weight_decay": 0.0, "grad_clip": 1.0}
PROBED = 300  # training prompts by whose completions the supervised fine-tuning ends
EVERY = 20  # steps between these


def write_sums(folder: Path) -> None:
    """The 1,000 sums, as the files chat.jsonl and prompts.jsonl."""
    folder.mkdir(parents=True)
    chosen = [row for row in rows(2, 10_000, 0) if re.fullmatch(r"[0-9]+\+[0-9]=", row["prompt"])]
    for name in ("chat", "prompts"):
        lines = [json.dumps({key: row[of] for key, of in FILES[name].items()}) for row in chosen]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def prepared(folder: Path, form: str) -> ExampleSplits[Any]:
    """Those examples, a fifth of them held out."""
    words = ["--name", form, "--data_dir", str(folder), "--input", str(folder / "lines" / f"{form}.jsonl")]
    code = tokenize(
        [*words, "--format", form, "--tokenizer", "bytes", "--val-share", "0.2", "--workers", "1"]
    )
    if code:
        raise SystemExit(code)
    return open_examples(folder / form, form)


class Measure:
    """Rewards of a network's completions of prompts."""

    def __init__(self, network: Any, rollouts: Rollouts, args: Any) -> None:
        self.network, self.rollouts, self.args = network, rollouts, args

    def of(self, prompts: PromptSet, count: int | None = None) -> dict[str, float]:
        """Means over all prompts, or of one completion each of so many of the first."""
        args = self.args
        if count is not None:
            args = Namespace(**{**vars(args), "eval_samples": 1, "pass_k": [1]})
        read = np.arange(len(prompts) if count is None else count)
        found = measure_rewards(self.network, self.rollouts, prompts, args, CPU, PROBED, read)
        assert found is not None, "nothing stops it"
        means = means_of(*found, args.pass_k)
        return {name: round(value, 4) for name, value in means.items()}


class Until(Hook):
    """Ends a training once the reward on training prompts is high enough."""

    def __init__(self, measure: Measure, prompts: PromptSet, enough: float) -> None:
        self.measure, self.prompts, self.enough = measure, prompts, enough
        self.steps = 0

    def stepped(self, step: int, loss: float) -> Stop | None:
        self.steps = step
        if step % EVERY or self.measure.of(self.prompts, PROBED)["reward"] < self.enough:
            return None
        return Stop(COMPLETE, f"the reward is {self.enough}")


class Shown(Hook):
    """The held-out reward while GRPO trains, on stderr."""

    def __init__(self, measure: Measure, prompts: PromptSet) -> None:
        self.measure, self.prompts = measure, prompts

    def stepped(self, step: int, loss: float) -> None:
        if step % 100 == 0:
            print(step, self.measure.of(self.prompts), file=sys.stderr, flush=True)


def trained(seed: int, given: Namespace, chat: Any, prompts: Any) -> dict[str, Any]:
    """Of a seed: what held-out prompts are worth before and after GRPO."""
    args = config.add_defaults({**MODEL, "seed": seed})
    torch.manual_seed(seed)
    network = make_model_from_args(args)
    length, most = args.sequence_length, args.completion_tokens
    source = PromptSource(prompts, length, most, seed)
    held_out = PromptSet(prompts.val, length, prompts.stop, most)
    objective = Grpo(network, source, "exact", settings=GrpoSettings(given.group_size, beta=0.0))
    measure = Measure(network, objective.rollouts, args)
    seeds = {**COMMON, "seed": seed, "data_seed": seed}
    until, began = Until(measure, source.set, given.start), time.process_time()
    sft: dict[str, Any] = {
        "steps": given.sft_steps,
        "lr": given.sft_lr,
        "batch_size": 64,
        "scheduler": "none",
    }
    fitted = fit(Sft(network), SftSource(chat, length, seed), hooks=[until], **sft, **seeds)
    if not fitted.outcome.is_done:  # a signal ends the whole measurement
        raise SystemExit(fitted.outcome.reason)
    before, middle = measure.of(held_out), time.process_time()
    hooks = [RolloutRows(objective, 0), *([Shown(measure, held_out)] if given.show else [])]
    grpo: dict[str, Any] = {
        "steps": given.steps,
        "lr": given.lr,
        "batch_size": given.batch_size,
        "beta2": 0.99,
    }
    shape: dict[str, Any] = {"scheduler": "linear_decay", "warmup_steps": 10}
    fitted = fit(objective, source, hooks=hooks, **grpo, **shape, **seeds)
    if not fitted.outcome.is_done:
        raise SystemExit(fitted.outcome.reason)
    return {
        "seed": seed,
        "sft_steps": until.steps,
        "before": before,
        "after": measure.of(held_out),
        "cpu_seconds": [round(middle - began), round(time.process_time() - middle)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO on held-out sums.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--start", type=float, default=0.22, help="reward at which sft ends [0.22]")
    parser.add_argument("--sft_steps", type=int, default=4000, help="most steps of sft [4000]")
    parser.add_argument("--sft_lr", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=700, help="of GRPO [700]")
    parser.add_argument("--batch_size", type=int, default=64, help="prompts of a step [64]")
    parser.add_argument("--group_size", type=int, default=8, help="completions of each [8]")
    parser.add_argument("--lr", type=float, default=2e-3, help="of GRPO [0.002]")
    parser.add_argument("--show", action="store_true", help="the held-out reward every 100 steps, on stderr")
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = sys.stdout  # which holds JSON alone
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(sys.stderr):
        folder = Path(temporary)
        write_sums(folder / "lines")
        chat, prompts = prepared(folder, "chat"), prepared(folder, "prompts")
        for seed in given.seeds:
            print(json.dumps(trained(seed, given, chat, prompts)), file=out, flush=True)


if __name__ == "__main__":
    main()
