"""What goes on inside the layers: --layer_norms N writes a row of metrics.jsonl every N steps.

    {"kind": "layers", "step": N, "gradient_norm": {"transformer.h.0": ..., "transformer.h.1": ..., ...}, ...}

gradient_norm    L2 norm over a layer's parameters, before clipping
weight_norm      the same of the weights after the step
effective_rank   exp of the entropy of the normalised singular values, mean over the layer's matrices
activation_norm  mean L2 norm of a layer's output, over the positions of the first step's first two samples
attention_entropy  nats, mean over heads and queries of the same samples; plain softmax, not the fast kernel
gradient_noise   standard deviation over mean of the last steps' gradient norms

A layer is the part of the network up to the last number of a parameter's name, or else the module that holds
it; they are sorted as numbers. A layer that runs several times has @1, @2 and so on after its name. The
training is left as it is: the samples are read beside it, without dropout, and all generators are put back.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distributed.world import World
from models.attention import AttentionPlan, KeyValue
from models.layers import Block
from optim.hooks import Hook, Run
from optim.monitors import GradientNoise
from optim.setup import autocaster

KIND = "layers"
SAMPLES = 2  # of the computation that activations and attention are looked at in
NOISE_STEPS = 20


def layer_of(parameter: str) -> str:
    """The layer that a parameter belongs to, by its name."""
    parts = parameter.split(".")[:-1]
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1] if numbers else parts) or parameter


def in_order(layer: str) -> list[tuple[int, str]]:
    """Sorts names of layers, numbers in them as numbers."""
    return [_sortable(part) for part in layer.replace("@", ".").split(".")]


def _sortable(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (-1, part)


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the singular values over their sum (Roy and Vetterli 2007); 0 for zeros."""
    values = torch.linalg.svdvals(matrix.detach().float() if matrix.dtype != torch.float64 else matrix)
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp().nan_to_num(0.0))


def attention_entropy(q: Tensor, passes: list[KeyValue], mask: Tensor | None) -> float:
    """Mean entropy in nats of the attention of queries (B, H, T, Dh) to the keys of passes, each (B, H or G,
    K, Dh). mask (B or 1, 1, T, K): True where a query sees a key; None: causal order over one pass.
    """
    keys = torch.cat([key for key, _ in passes], dim=2).float()
    keys = keys.repeat_interleave(q.shape[1] // keys.shape[1], dim=1)
    scores = q.float() @ keys.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, K)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return float(torch.special.entr(weights).sum(-1).mean())


@contextmanager
def undisturbed(objective: nn.Module, world: World, compiled: bool) -> Iterator[None]:
    """No gradients, no dropout, no compiled programs of other shapes, attention of the reference; then
    modules and generators are as they were.
    """
    network: Any = objective.network
    settings = getattr(network, "settings", None)
    was_training = {module: module.training for module in objective.modules()}
    with ExitStack() as restored:
        restored.enter_context(torch.random.fork_rng([world.device] if world.device.type == "cuda" else []))
        restored.enter_context(torch.no_grad())
        if compiled:
            restored.enter_context(torch.compiler.set_stance("force_eager"))
        objective.eval()
        if settings is not None:
            network.settings = replace(settings, attention="reference")
        try:
            yield
        finally:
            if settings is not None:
                network.settings = settings
            for module, training in was_training.items():
                module.training = training


class _Probe:
    """Sees the outputs and the attention of layers while it is attached."""

    def __init__(self, network: nn.Module, layers: list[str]) -> None:
        self.network, self.layers = network, layers
        self.norms: dict[str, list[float]] = defaultdict(list)
        self.entropies: dict[str, list[float]] = defaultdict(list)

    def _saw(self, layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def saw(module: nn.Module, inputs: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if isinstance(states, Tensor) and states.is_floating_point():
                self.norms[layer].append(float(states.float().norm(dim=-1).mean()))

        return saw

    def _attends(self, layer: str, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watched(q: Tensor, passes: list[KeyValue], plan: AttentionPlan) -> Tensor:
            self.entropies[layer].append(attention_entropy(q, passes, plan.mask))
            return attend(q, passes, plan)

        return watched

    @contextmanager
    def attached(self) -> Iterator[None]:
        modules = dict(self.network.named_modules())
        with ExitStack() as detached:
            for layer in self.layers:
                module = modules.get(layer)
                if module is None:  # a parameter of the network itself
                    continue
                detached.callback(module.register_forward_hook(self._saw(layer)).remove)
                if isinstance(module, Block):
                    attention = module.attn
                    attention.attend = self._attends(layer, attention.attend)
                    detached.callback(delattr, attention, "attend")
            yield


def _numbered(found: Mapping[str, list[float]]) -> dict[str, float]:
    """A value for each run of a layer."""
    values = {}
    for layer, of_runs in found.items():
        for number, value in enumerate(of_runs, start=1):
            values[layer if len(of_runs) == 1 else f"{layer}@{number}"] = value
    return _in_order(values)


def _in_order(values: Mapping[str, float]) -> dict[str, float]:
    return {layer: values[layer] for layer in sorted(values, key=in_order)}


class LayerNorms(Hook):
    """Measures the network on the main process, every so many steps."""

    def __init__(self, every: int = 100) -> None:
        self.every = every
        self.noise = GradientNoise(NOISE_STEPS)
        self.gradients: dict[str, float] = {}

    def joined(self, run: Run) -> None:
        """As Hook.joined."""
        self.run = run
        self.network: nn.Module = run.parts.objective.network  # type: ignore[assignment]
        self.parameters: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.network.named_parameters():
            self.parameters[layer_of(name)].append(parameter)
        run.steps.watchers.append(self._see_gradients)

    def _see_gradients(self, step: int) -> None:
        if step % self.every == 0 and self.run.world.is_main:
            self.gradients = self._norms(lambda parameter: parameter.grad)

    def _norms(self, tensor: Callable[[nn.Parameter], Tensor | None]) -> dict[str, float]:
        """L2 norm of a tensor of each of a layer's parameters together."""
        found = {}
        for layer, parameters in self.parameters.items():
            tensors = [each for each in map(tensor, parameters) if each is not None]
            if tensors:
                found[layer] = float(nn.utils.get_total_norm(tensors))
        return _in_order(found)

    def _ranks(self) -> dict[str, float]:
        found = {}
        for layer, parameters in self.parameters.items():
            ranks = [effective_rank(parameter) for parameter in parameters if parameter.ndim == 2]
            if ranks:
                found[layer] = sum(ranks) / len(ranks)
            self.run.watchdog.beat()
        return _in_order(found)

    def stepped(self, step: int, loss: float) -> None:
        """As Hook.stepped."""
        steps = self.run.steps
        noise = None
        if not (steps.skipped or steps.overflows):
            noise = self.noise.add(float(steps.meter.last))
        if step % self.every == 0:
            self.run.world.on_main(lambda: self._write(step, noise))

    def _write(self, step: int, noise: float | None) -> None:
        run = self.run
        if run.experiment is None or run.experiment.metrics.has(KIND, step):
            return
        probe = _Probe(self.network, list(self.parameters))
        count = min(SAMPLES, run.args.batch_size * run.args.acc_steps)  # a step may be all there is
        batch = run.parts.source.samples(0, 0, count).to(run.world.device)
        autocast = autocaster(run.args.dtype, run.world.device)
        with undisturbed(run.parts.objective, run.world, run.args.compile), probe.attached(), autocast():
            run.parts.objective(batch)
        with torch.no_grad():
            weights, ranks = self._norms(lambda parameter: parameter.detach()), self._ranks()
        row = {
            "kind": KIND,
            "step": step,
            "gradient_norm": self.gradients,
            "weight_norm": weights,
            "effective_rank": ranks,
            "activation_norm": _numbered(probe.norms),
            "attention_entropy": _numbered(probe.entropies),
            "gradient_noise": noise,
        }
        run.reporter.row(row, [])
        self.gradients = {}

    def state(self) -> dict[str, Any]:
        """As Hook.state."""
        return self.noise.state()

    def take_up(self, state: Mapping[str, Any]) -> None:
        """As Hook.take_up."""
        self.noise.take_up(state)
