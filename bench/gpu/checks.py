"""The parts of bench/gpu.sh that tell whether something is right. Each prints a line of JSON for a row.

python -m bench.gpu.checks equal --device cuda --dtype bfloat16
python -m bench.gpu.checks losses --device cpu --dtype float16 --tiny
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
import tempfile
import warnings
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.common import autocast, flags, flags_of_gpt
from bench.gpu.reference import case_args, cases, fill
from bench.gpu.rows import FAIL, PASS, SKIPPED, attempt, need, run_one, tell
from data.batch import Batch, PlainSource
from distributed.world import World
from models import make_model_from_args
from models.transformer import Transformer
from models.trials import flash_trouble
from models.variants import ALIASES, VARIANTS
from optim.checkpoint import load_checkpoint
from optim.fit import fit
from optim.hooks import PAUSE, Hook, Stop
from optim.names import FINAL
from optim.objectives import NextToken
from optim.optimizers import make_optimizer
from optim.outcome import Kind
from optim.selftest import differing, leaves
from optim.setup import need_compiler
from optim.step import OptimizerStep

LOSS_SCALE = 2.0**10  # an exact factor that keeps gradients within the range of float16
ROUNDING = 1e-3  # that a way may be off beyond twice what the reference is off in the same dtype
# nats, by which a loss may be off from the authors', who computed in float32 (TF32 products round to 10 bits)
LOSS_LIMITS = {"float32": 2e-3, "bfloat16": 0.05, "float16": 0.01}
WAITS = {"bfloat16": 1, "float16": 2}  # for the device, that a step may have
GPT = "gpt"  # of modern blocks, as the recipe has it
WAITING = ("base", "lncot", "adm")
RESUME_STEPS = 6
LEAVING = (0.6, 0.3)  # shares of the tokens that go on, where a router chooses
FURTHER = ((0.8, 0.5), (0.4, 0.2))
# rounding may choose other tokens to leave, and then nothing could be compared
STAYING = (1.0, 1.0)


def small(
    name: str, device: str, tiny: bool, shares: Sequence[float] | None = LEAVING, **more: Any
) -> Namespace:
    """Flags of a small model, one of the nine or GPT. shares: of the tokens that go on after each pass, of
    models that route; None: drawn in each step.
    """
    # a length that is no width: torch.compile takes equal sizes for one, and compiles again where they part
    shape = {"n_layer": 6, "n_repeat": 3, "n_embd": 256, "n_head": 4, "sequence_length": 192}
    shape |= {"vocab_size": 1024, "batch_size": 4}
    if tiny:
        shape |= {"n_layer": 4, "n_embd": 32, "n_head": 2, "sequence_length": 24, "vocab_size": 64}
    if name == GPT:
        shape |= {"n_layer": 2 if tiny else 4}
        return flags_of_gpt(device="cpu" if device == "cpu" else "cuda", **{**shape, **more})
    variant = VARIANTS[ALIASES.get(name, name)]
    depth = "linear_learned" if variant.depth_emb else None
    return flags(
        model=name,
        depth_embedding=depth,
        training_length_factor=list(shares) if shares and variant.routes else None,
        device="cpu" if device == "cpu" else "cuda",
        **{**shape, **more},
    )


def tokens(args: Namespace, device: str) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shape = (2, args.batch_size, args.sequence_length)
    inputs, targets = torch.randint(0, args.vocab_size, shape, generator=draw).to(device)
    return inputs, targets


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one forward and backward pass, in float32 on the CPU. hidden: None where it is not compared."""

    hidden: Tensor | None
    loss: float
    gradients: dict[str, Tensor]

    def off(self, truth: Outcome) -> dict[str, float]:
        """By how much this is off, relative to the size of what it should be."""
        names = truth.gradients.keys()
        assert names == self.gradients.keys(), "the same parameters have gradients"
        mine, theirs = (
            torch.cat([each.gradients[name].flatten() for name in names]) for each in (self, truth)
        )
        forward = {}
        if self.hidden is not None and truth.hidden is not None:
            forward["forward"] = relative(self.hidden, truth.hidden)
        return {
            **forward,
            "loss": abs(self.loss - truth.loss) / abs(truth.loss),
            "gradients": relative(mine, theirs),
        }


def relative(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


def outcome(model: Transformer, args: Namespace, device: str, dtype: str) -> Outcome:
    """Of a model in training mode."""
    inputs, targets = tokens(args, device)
    torch.manual_seed(0)
    with autocast(device, dtype):
        out = model(inputs, targets=targets)
    (out["loss"] * LOSS_SCALE).backward()
    found = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return Outcome(out["hidden"].detach().float().cpu(), float(out["loss"].detach()), found)


def model_of(args: Namespace, device: str) -> Transformer:
    return fill(make_model_from_args(args), 1).to(device).train()


def truth_of(args: Namespace, device: str) -> Outcome:
    """By the reference in float32, without TF32."""
    torch.set_float32_matmul_precision("highest")
    try:
        return outcome(model_of(args, device), args, device, "float32")
    finally:
        torch.set_float32_matmul_precision("high")


def tell_as_near(name: str, found: Outcome, reference: Outcome, truth: Outcome, more: str = "") -> None:
    """A way must be about as near to the truth as the reference is in the same dtype, and both be numbers."""
    mine, theirs = found.off(truth), reference.off(truth)
    is_near = all(mine[what] <= 2 * theirs[what] + ROUNDING < math.inf for what in mine)
    words = [f"{what} off by {mine[what]:.2g} (reference {theirs[what]:.2g})" for what in mine]
    tell(name, PASS if is_near else FAIL, value=mine["gradients"], note=", ".join(words) + more)


# the parts


def equal(given: Namespace) -> None:
    """Fast attention against the reference, of every model: forward and gradients."""
    device, dtype = given.device, given.dtype

    def kernels() -> None:
        trouble = flash_trouble(torch.device(device), getattr(torch, dtype), 16 if given.tiny else 64)
        verdict = PASS if trouble is None else FAIL
        tell(f"flash attention pass by pass, {dtype}", verdict, note=trouble or "")

    def one(name: str) -> None:
        ways = ("fast", "reference")
        args = {way: small(name, device, given.tiny, STAYING, attention=way) for way in ways}
        found = {way: outcome(model_of(args[way], device), args[way], device, dtype) for way in args}
        truth = truth_of(args["reference"], device)
        tell_as_near(f"{short(name)}, {dtype}", found["fast"], found["reference"], truth)

    attempt(f"flash attention pass by pass, {dtype}", kernels)
    for name in VARIANTS:
        attempt(f"{short(name)}, {dtype}", lambda name=name: one(name))  # type: ignore[misc]


def short(name: str) -> str:
    """A model's short name, where it has one."""
    return next((alias for alias, long in ALIASES.items() if long == name), name)


def losses(given: Namespace) -> None:
    """Losses of the reference cases against the authors', in evaluation and in training."""
    device, dtype = given.device, given.dtype
    of_model = defaultdict(list)
    for case in cases():
        of_model[short(case_args(case).model)].append(case)

    def one(name: str) -> None:
        worst = max(loss_off(case, device, dtype) for case in of_model[name])
        limit = LOSS_LIMITS[dtype]
        verdict = PASS if worst <= limit else FAIL
        note = f"{len(of_model[name])} cases"
        tell(f"{name}, {dtype}", verdict, value=worst, unit="nats", target=f"at most {limit:g}", note=note)

    for name in of_model:
        attempt(f"{name}, {dtype}", lambda name=name: one(name))  # type: ignore[misc]


def loss_off(case: dict[str, Any], device: str, dtype: str) -> float:
    """The larger difference of the losses in evaluation and training, in nats; inf where one is no number."""
    ids = torch.tensor(case["ids"], device=device)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    model = fill(make_model_from_args(case_args(case)), case["seed"]).to(device)
    off = [0.0]
    for mode in ("eval", "train"):
        expected = case[mode]
        if expected is None or expected["loss"] is None:
            continue
        with torch.no_grad(), autocast(device, dtype):
            found = model.train(mode == "train")(inputs, targets=targets)["loss"]
        off.append(abs(float(found) - expected["loss"]))
    return max(off) if all(map(math.isfinite, off)) else math.inf


def compiled(given: Namespace) -> None:
    """Compiled blocks against those that are not, of one model; and that nothing is compiled again, neither
    at the same shapes nor, where tokens leave, at other numbers of them.
    """
    device, dtype = given.device, given.dtype
    name = f"{given.model}, {dtype}"

    def work() -> None:
        need(need_compiler, torch.device(device))
        torch._dynamo.reset()
        before = graph_count()
        args = small(given.model, device, given.tiny, STAYING)
        eager = outcome(model_of(args, device), args, device, dtype)
        model = model_of(args, device)
        model.compile_blocks()
        found = outcome(model, args, device, dtype)
        graphs = graph_count() - before
        note = f"; {graphs} graphs"
        again = compiled_by(lambda: [outcome(model, args, device, dtype) for _ in range(3)])
        if model.settings.variant.variable_tokens:
            leave(model, LEAVING)
            first = compiled_by(lambda: outcome(model, args, device, dtype))
            note += f", {first} more when tokens first leave"
            for shares in FURTHER:
                leave(model, shares)
                again += compiled_by(lambda: outcome(model, args, device, dtype))
        if again or not graphs:
            tell(name, FAIL, note=f"{again} graphs were compiled again{note}")
            return
        truth = truth_of(small(given.model, device, given.tiny, STAYING, attention="reference"), device)
        tell_as_near(name, found, eager, truth, note)

    attempt(name, work)


def leave(model: Transformer, shares: tuple[float, ...]) -> None:
    """Have these shares of the tokens go on after each pass, in training."""
    model.settings = dataclasses.replace(model.settings, training_length_factor=shares)


def compiled_by(work: Callable[[], object]) -> int:
    """How many graphs are compiled while `work` runs."""
    before = graph_count()
    work()
    return graph_count() - before


def graph_count() -> int:
    return int(torch._dynamo.utils.counters["stats"].get("unique_graphs", 0))


class RandomTokens(PlainSource):
    """Samples of a training on made-up tokens."""

    def __init__(self, args: Namespace) -> None:
        self.args = args

    def samples(self, step: int, first: int, count: int) -> Batch:
        draw = torch.Generator().manual_seed(first)
        shape = (2, count, self.args.sequence_length)
        inputs, targets = torch.randint(0, self.args.vocab_size, shape, generator=draw)
        return Batch({"inputs": inputs, "targets": targets}, targets.numel())


def optimizer_step(args: Namespace, device: torch.device) -> OptimizerStep:
    """The loop's step, of a model that begins with reference weights."""
    network = fill(make_model_from_args(args), 1)
    objective: nn.Module = NextToken(network).to(device).train()
    return OptimizerStep(args, World(device), objective, make_optimizer(network, args), RandomTokens(args))


def waits_of(work: Callable[[], object]) -> int:
    """How often `work` waits for the device, as CUDA itself counts it."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in told)


def waits(given: Namespace) -> None:
    """How often a step of the loop waits for the device."""
    device, dtype = given.device, given.dtype

    def one(name: str) -> None:
        args = small(name, device, given.tiny, acc_steps=2, dtype=dtype)
        steps = optimizer_step(args, torch.device(device, 0))
        steps.take(0)  # makes the optimiser's state
        found = waits_of(lambda: steps.take(1))
        limit = WAITS[dtype]
        verdict = PASS if found <= limit else FAIL
        tell(f"{name}, {dtype}", verdict, value=found, unit="waits a step", target=f"at most {limit}")

    for name in WAITING:
        if device == "cpu":
            tell(f"{name}, {dtype}", SKIPPED, note="only CUDA has waits to count")
        else:
            attempt(f"{name}, {dtype}", lambda name=name: one(name))  # type: ignore[misc]


def learns(given: Namespace) -> None:
    """Steps of the loop on the same samples: the loss falls, and no step is skipped for good."""
    device, dtype = given.device, given.dtype

    def one(name: str) -> None:
        args = small(name, device, given.tiny, acc_steps=2, dtype=dtype, lr=1e-3)
        steps = optimizer_step(args, torch.device(device))
        found = []
        for _ in range(12):
            loss, _ = steps.take(0)
            found.append(float(loss))
        before, after = found[0], statistics.median(found[-3:])
        note = f"loss {before:.3f} -> {after:.3f} in {len(found)} steps, {steps.meter.overflows} overflows"
        verdict = PASS if after < before < math.inf else FAIL
        tell(f"{name}, {dtype}", verdict, value=after, unit="nats", note=note)

    for name in ALIASES:
        attempt(f"{name}, {dtype}", lambda name=name: one(name))  # type: ignore[misc]


class PauseOnce(Hook):
    """Ends a run in the middle, as a job's end does."""

    def stepped(self, step: int, loss: float) -> Stop | None:
        return Stop(PAUSE, "half of the steps are taken") if step == RESUME_STEPS // 2 else None


def reads_back(path: Path) -> dict[str, Any]:
    """All values of a checkpoint, by name."""
    state = load_checkpoint(path)
    del state["args"]  # which hold the folder
    return leaves(state)


def differing_note(calm: dict[str, Any], resumed: dict[str, Any]) -> dict[str, str]:
    """Verdict and note of a row that asks for the same bits."""
    wrong = differing(calm, resumed)
    note = f"{', '.join(wrong[:3])} differ" if wrong else f"{len(calm)} values of the same bits"
    return {"verdict": FAIL if wrong else PASS, "note": note}


def resume(given: Namespace) -> None:
    """A training that pauses and is gone on with, under --deterministic, against one that does not. The
    shares of tokens that go on are drawn.
    """
    device, dtype = given.device, given.dtype

    def final(name: str, folder: Path, runs: Sequence[tuple[list[Hook], Kind]]) -> dict[str, Any]:
        """All values of the last checkpoint. runs: hooks of each, and how it must end."""
        # dropout draws from the generator; without it attention goes pass by pass
        args = small(name, device, given.tiny, None, dropout=0.1 if name == "base" else 0.0)
        settings = {"batch_size": args.batch_size, "acc_steps": 2, "lr": 1e-3, "deterministic": True}
        for hooks, kind in runs:
            objective = NextToken(fill(make_model_from_args(args), 1).train())
            source = RandomTokens(args)
            _, ended = fit(
                objective,
                source,
                steps=RESUME_STEPS,
                hooks=hooks,
                folder=folder,
                device=device,
                dtype=dtype,
                **settings,
            )
            assert ended.kind == kind, f"a run that had to end as {kind} ended as {ended.kind}"
        return reads_back(folder / FINAL)

    def one(name: str) -> None:
        with tempfile.TemporaryDirectory() as place, redirect_stdout(sys.stderr):
            whole = ([], Kind.FINISHED)
            calm = final(name, Path(place) / "calm", [whole])
            resumed = final(name, Path(place) / "resumed", [([PauseOnce()], Kind.PAUSED), whole])
        tell(f"{name}, {dtype}", **differing_note(calm, resumed))

    for name in (*ALIASES, "base", "pondernet"):
        attempt(f"{name}, {dtype}", lambda name=name: one(name))  # type: ignore[misc]


PARTS: dict[str, Callable[[Namespace], None]] = {
    "equal": equal,
    "losses": losses,
    "compiled": compiled,
    "waits": waits,
    "learns": learns,
    "resume": resume,
}


if __name__ == "__main__":
    run_one(__doc__, PARTS)
