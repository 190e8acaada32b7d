"""Code of the user's that is called while a training runs, and may end it.

    class Enough(Hook):
        def stepped(self, step, loss):
            if loss < 0.1:
                return Stop("complete", "the loss is below 0.1")

Give the same hooks to every process: all are called with the same values, and the main process's answer
counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from data.batch import BatchSource
    from distributed.world import World
    from optim.evaluation import Evaluation
    from optim.experiment import Experiment
    from optim.reporting import OfSample, Reporter
    from optim.step import OptimizerStep
    from optim.stopping import Stopper
    from optim.watchdog import Watchdog

COMPLETE, PAUSE = "complete", "pause"


@dataclass(frozen=True)
class Stop:
    """The request of a hook.

    kind: "complete" ends the training as finished: summary.json is written, and no further job runs. "pause"
    saves it and ends like a stop by hand: the same command resumes it, a chain does not by itself. reason:
    text for the log, outcome.json and the chain. Raises ValueError for another kind.
    """

    kind: str
    reason: str

    def __post_init__(self) -> None:
        if self.kind not in (COMPLETE, PAUSE):
            raise ValueError(f"a hook may ask for {COMPLETE!r} or {PAUSE!r}, not {self.kind!r}")


class RunParts(Protocol):
    """As optim.progress.Parts."""

    @property
    def objective(self) -> nn.Module: ...

    @property
    def source(self) -> BatchSource: ...

    @property
    def evaluations(self) -> Sequence[Evaluation]: ...

    @property
    def hooks(self) -> Sequence[Hook]: ...

    @property
    def flops_per_item(self) -> float: ...

    def work(self, step: int) -> OfSample: ...


class Run(Protocol):
    """What a hook may use of the run that calls it, from `started` on. reporter: takes rows of metrics.jsonl.
    experiment: on the main process. Long work goes in parts, after each of which `watchdog.beat` says that
    the process is alive, and `stopper.poll` (on all processes together) whether to stop. args: the flags.
    parts: objective, source, evaluations and all hooks. steps: gradient norms, and `watchers`, which are
    called when a step's gradients are complete. These are there from `joined` on.
    """

    args: Any
    world: World
    folder: Path
    steps: OptimizerStep
    experiment: Experiment | None
    reporter: Reporter
    stopper: Stopper
    watchdog: Watchdog

    @property
    def parts(self) -> RunParts: ...


class Hook:
    """Override any of the methods. One that returns a Stop ends the training after the step."""

    def joined(self, run: Run) -> None:
        """Once, before all others; to be kept by a hook that has a use for it."""

    def started(self, step: int) -> Stop | None:
        """Before the first step of this run; `step` steps were taken by earlier ones."""
        return None

    def stepped(self, step: int, loss: float) -> Stop | None:
        """After a step; loss: its mean over all processes."""
        return None

    def evaluated(self, step: int, name: str, values: Mapping[str, Any]) -> Stop | None:
        """After an evaluation during training; values: of its row in metrics.jsonl."""
        return None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this hook, such as counters, so that a resumed run continues exactly;
        plain values.
        """
        return {}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """What `state` gave, on a resume."""

    def ended(self, step: int, reason: str) -> None:
        """After the last step of this run, whatever ended it."""


def by_name(hooks: Sequence[Hook]) -> dict[str, Hook]:
    """Hooks by the names under which a checkpoint keeps their states: those of their classes, with .2, .3 and
    so on for further ones of a class. So a run may go on with other hooks than it had.
    """
    found: dict[str, Hook] = {}
    for hook in hooks:
        first = name = type(hook).__name__
        number = 1
        while name in found:
            number += 1
            name = f"{first}.{number}"
        found[name] = hook
    return found
