"""Hooks that measure a training, for Python and for --hook: speed, floating-point operations, the gap between
training and validation, the noise of gradients.

    fit(objective, source, ..., hooks=[ThroughputMonitor(), FLOPCounter(5e6), MetricsLogger()])
    python main.py ... --hook optim.monitors:ValTracker --hook optim.monitors:MetricsLogger

main.py's own rows have tokens per second and the share of a GPU's peak already, each --log_freq steps; these
count over all runs of a training, and for any source. What one has measured at the present step is in its
`metrics`, and a row of metrics.jsonl.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import fmean, pstdev
from typing import Any

from errors import UserError
from optim.evaluation import Evaluation
from optim.evaluations import AT_END, DURING
from optim.hooks import COMPLETE, Hook, Run, Stop
from optim.reporting import log, peak_flops

Clock = Callable[[], float]  # seconds


def _items(run: Run | None, step: int) -> int:
    """What a run counts (tokens, samples), of a step, from 1."""
    assert run is not None, "joined() has been called"
    return run.args.batch_size * run.args.acc_steps * run.parts.work(step - 1).items


class Monitor(Hook):
    """metrics: what it has measured at the present step, by name. kind: of its rows."""

    kind = "monitor"

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}
        self.run: Run | None = None

    def joined(self, run: Run) -> None:
        """As Hook.joined."""
        self.run = run

    def write(self, step: int, timed: Mapping[str, Any]) -> None:
        """The row of a step. timed: those of the metrics that depend on the clock."""
        if self.run is not None:
            plain = {name: value for name, value in self.metrics.items() if name not in timed}
            self.run.reporter.row({"kind": self.kind, "step": step, **plain, "time": dict(timed)}, [])


class ThroughputMonitor(Monitor):
    """steps_per_sec and tokens_per_sec over the last steps, every log_interval of them, evaluations between
    steps included; tokens_processed, over all runs of the training.
    """

    kind = "throughput"

    def __init__(
        self, log_interval: int = 10, tokens_per_step: int | None = None, clock: Clock = time.monotonic
    ) -> None:
        """tokens_per_step: None takes what the run counts (tokens, samples), without a run none."""
        super().__init__()
        self.log_interval, self.tokens_per_step, self.clock = log_interval, tokens_per_step, clock
        self.tokens = 0
        self.seconds: deque[float] = deque(maxlen=log_interval)  # of the last steps

    def started(self, step: int) -> None:
        """As Hook.started."""
        if not self.tokens:
            self.tokens = sum(self._tokens(past) or 0 for past in range(1, step + 1))
        self.at = self.clock()

    def stepped(self, step: int, loss: float) -> None:
        """As Hook.stepped."""
        now = self.clock()
        seconds, self.at = now - self.at, now
        self.seconds.append(seconds)
        self.metrics, timed, tokens = {}, {}, self._tokens(step)
        if tokens is not None:
            self.tokens += tokens
            self.metrics["tokens_processed"] = self.tokens
        if step % self.log_interval or seconds <= 0:
            return
        timed["steps_per_sec"] = len(self.seconds) / sum(self.seconds)
        if tokens is not None:
            timed["tokens_per_sec"] = timed["steps_per_sec"] * tokens
        self.metrics |= timed
        self.write(step, timed)

    def _tokens(self, step: int) -> int | None:
        """Of a step, from 1; None where they are not known."""
        if self.tokens_per_step is not None or self.run is None:
            return self.tokens_per_step
        return _items(self.run, step)

    def state(self) -> dict[str, Any]:
        """As Hook.state."""
        return {"tokens": self.tokens}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """As Hook.take_up."""
        self.tokens = state["tokens"]


class FLOPCounter(Monitor):
    """total_flops of all steps, over all runs and processes, and a budget that ends the training as complete;
    every log_interval steps tflops_per_sec of this run, and mfu, their share of the hardware's peak.
    """

    kind = "flops"

    def __init__(
        self,
        flops_per_step: float | None = None,
        log_interval: int = 10,
        flop_budget: float | None = None,
        hardware_peak_tflops: float | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """flops_per_step: None takes that of the network, where it is known. hardware_peak_tflops: of all
        processes; None: of a known GPU's data sheet, times the processes.
        """
        super().__init__()
        self.flops_per_step, self.log_interval, self.budget = flops_per_step, log_interval, flop_budget
        self.peak, self.clock = hardware_peak_tflops, clock
        self.total = 0.0

    def joined(self, run: Run) -> None:
        """As Hook.joined. Raises UserError where the work of a step is not known."""
        super().joined(run)
        if self.flops_per_step is None and not run.parts.flops_per_item:
            raise UserError("the floating-point operations of a step are not known: give flops_per_step")
        peak = peak_flops(run.world.device)
        if self.peak is None and peak is not None:
            self.peak = peak * run.world.size / 1e12

    def started(self, step: int) -> Stop | None:
        """As Hook.started."""
        if not self.total:
            self.total = sum(map(self._of_step, range(1, step + 1)), 0.0)
        self.began, self.before = self.clock(), self.total
        return self._stop()

    def _of_step(self, step: int) -> float:
        """Of a step, from 1."""
        if self.flops_per_step is not None:
            return self.flops_per_step
        run = self.run
        assert run is not None, "joined() has been called"
        return _items(run, step) * run.parts.work(step - 1).flops_per_item

    def _stop(self) -> Stop | None:
        if self.budget is None or self.total < self.budget:
            return None
        reason = f"{self.total:.4g} floating-point operations of a budget of {self.budget:.4g} are done"
        return Stop(COMPLETE, reason)

    def stepped(self, step: int, loss: float) -> Stop | None:
        """As Hook.stepped."""
        self.total += self._of_step(step)
        self.metrics = {"total_flops": self.total}
        seconds = self.clock() - self.began
        if step % self.log_interval == 0 and seconds > 0:
            timed = {"tflops_per_sec": (self.total - self.before) / seconds / 1e12}
            if self.peak is not None:
                timed["mfu"] = timed["tflops_per_sec"] / self.peak
            self.metrics |= timed
            self.write(step, timed)
        return self._stop()

    def state(self) -> dict[str, Any]:
        """As Hook.state."""
        return {"total": self.total}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """As Hook.take_up."""
        self.total = state["total"]


class ValTracker(Monitor):
    """The loss of an evaluation before the first step (init_val_loss), at each evaluation (val_loss), the
    best of these, and train_val_gap: the loss of the step before an evaluation, less that of the evaluation.
    """

    kind = "validation"

    def __init__(self, quantity: str = "val_loss") -> None:
        """quantity: of the first evaluation that measures it."""
        super().__init__()
        self.quantity = quantity
        self.init: float | None = None
        self.best = math.inf
        self.train_loss = math.nan

    def joined(self, run: Run) -> None:
        """As Hook.joined. Raises UserError where nothing measures the quantity."""
        super().joined(run)
        measuring = [each for each in run.parts.evaluations if self.quantity in each.quantities]
        if not measuring:
            raise UserError(f"the validation tracker finds no evaluation that measures {self.quantity}")
        self.evaluation: Evaluation = measuring[0]

    def started(self, step: int) -> None:
        """As Hook.started."""
        run = self.run
        if run is None:
            return
        if step:  # a pause at this step comes before a hook hears of its evaluation
            self.best = min(self.best, run.world.broadcast(self._written(DURING, step)))
            return

        def should_stop() -> bool:
            run.watchdog.beat()
            return run.stopper.poll()

        measured = self.evaluation.run(False, should_stop, lambda: None)
        if measured is None:
            return
        if run.world.is_main:
            measured.recorded()
        self.init = float(run.world.broadcast(measured.values)[self.quantity])
        self.metrics = self._initial()
        self.write(step, {})

    def _written(self, kind: str, step: int) -> float:
        """What metrics.jsonl has of an evaluation, on the main process; infinite where it has nothing."""
        experiment = self.run.experiment if self.run is not None else None
        name = f"{kind}@{self.evaluation.name}" if self.evaluation.name else kind
        row = None if experiment is None else experiment.metrics.row(name, step)
        value = None if row is None else row.get(self.quantity)
        return math.inf if value is None else value

    def _initial(self) -> dict[str, Any]:
        return {} if self.init is None else {"init_val_loss": self.init}

    def stepped(self, step: int, loss: float) -> None:
        """As Hook.stepped."""
        self.train_loss = loss
        self.metrics = self._initial()

    def evaluated(self, step: int, name: str, values: Mapping[str, Any]) -> None:
        """As Hook.evaluated."""
        if name != self.evaluation.name:
            return
        value = float(values[self.quantity])
        if value < self.best:
            self.best = value
        gap = self.train_loss - value
        self.metrics = {
            **self._initial(),
            "val_loss": value,
            "best_val_loss": self.best,
            "train_val_gap": gap,
        }
        self.write(step, {})

    def ended(self, step: int, reason: str) -> None:
        """As Hook.ended: the evaluation at the end counts for the best, on the main process."""
        self.best = min(self.best, self._written(AT_END, step))
        log.info(f"best {self.quantity} of all evaluations: {self.best:.6g}")

    def state(self) -> dict[str, Any]:
        """As Hook.state."""
        return {"init": self.init, "best": self.best, "train_loss": self.train_loss}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """As Hook.take_up."""
        self.init, self.best, self.train_loss = state["init"], state["best"], state["train_loss"]


class GradientNoise(Monitor):
    """gradient_noise: standard deviation over mean of the last gradient norms, of all parameters and before
    clipping. Steps whose gradient was not used do not count.
    """

    kind = "gradient_noise"

    def __init__(self, window: int = 20, log_interval: int = 10) -> None:
        super().__init__()
        self.log_interval = log_interval
        self.norms: deque[float] = deque(maxlen=window)

    def add(self, norm: float) -> float | None:
        """Take in a norm; returns the noise, None before there are two norms, or where all are 0."""
        self.norms.append(norm)
        mean = fmean(self.norms)
        return pstdev(self.norms) / mean if len(self.norms) > 1 and mean > 0 else None

    def stepped(self, step: int, loss: float) -> None:
        """As Hook.stepped."""
        assert self.run is not None, "joined() has been called"
        steps = self.run.steps
        if not (steps.skipped or steps.overflows):
            self.metrics = {"gradient_noise": self.add(float(steps.meter.last))}
        if step % self.log_interval == 0 and self.metrics:
            self.write(step, {})

    def state(self) -> dict[str, Any]:
        """As Hook.state."""
        return {"norms": list(self.norms)}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """As Hook.take_up."""
        self.norms.extend(state["norms"])


class MetricsLogger(Hook):
    """A line of the log every log_interval steps, and after each evaluation: the loss, and what the monitors
    before it have measured.
    """

    def __init__(self, log_interval: int = 10) -> None:
        self.log_interval, self.loss = log_interval, math.nan

    def joined(self, run: Run) -> None:
        """As Hook.joined."""
        self.monitors = [hook for hook in run.parts.hooks if isinstance(hook, Monitor)]

    def stepped(self, step: int, loss: float) -> None:
        """As Hook.stepped."""
        self.loss = loss
        if step % self.log_interval == 0:
            self._log(step)

    def evaluated(self, step: int, name: str, values: Mapping[str, Any]) -> None:
        """As Hook.evaluated."""
        self._log(step)

    def _log(self, step: int) -> None:
        words = [f"step {step}", f"loss {self.loss:.4f}"]
        for monitor in self.monitors:
            words += [f"{name} {value:.6g}" for name, value in monitor.metrics.items() if value is not None]
        log.info("  ".join(words))
