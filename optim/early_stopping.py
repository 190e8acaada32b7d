"""Early stopping: ends a training whose tracked quantity no longer improves.

    python main.py ... --early_stop 5:0.001 --track val_loss
    fit(objective, source, ..., evaluations=[...], hooks=[EarlyStopping(5, 0.001, "score@mine")])

It counts evaluations, not steps. Its state is in the checkpoint, and follows from the rows of metrics.jsonl
where that has none or is behind, so a run that is stopped, killed or given --early_stop later ends at the
step of one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from errors import UserError
from optim.evaluations import DURING, split_name
from optim.hooks import COMPLETE, Hook, Run, Stop
from optim.tracked import LOWER, full_name


class EarlyStopping(Hook):
    """best: the best value so far, infinite before the first; wait: evaluations since then without an
    improvement, which is a value below best - min_delta (above best + min_delta, where higher is better); NaN
    never is.
    """

    def __init__(self, patience: int = 5, min_delta: float = 0.001, quantity: str = "val_loss") -> None:
        """quantity: QUANTITY, or QUANTITY@EVALUATION. Raises ValueError for a patience below 1, or a
        negative min_delta.
        """
        if patience < 1 or not 0 <= min_delta < math.inf:
            raise ValueError(f"patience {patience} must be at least 1, min_delta {min_delta} at least 0")
        self.patience, self.min_delta, self.tracked = patience, min_delta, quantity
        self.quantity, self.evaluation = split_name(quantity)
        self.sign = 1
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self.best, self.wait = math.inf, 0
        self.counted = 0  # step of the last evaluation that is in the count

    def joined(self, run: Run) -> None:
        """As Hook.joined. Raises UserError where nothing measures the quantity."""
        self.run = run
        all_known = {each.name: each.quantities for each in run.parts.evaluations}
        self.quantity, self.evaluation = split_name(full_name(self.tracked, all_known))
        known = all_known.get(self.evaluation, {})
        if self.quantity not in known:
            raise UserError(f"early stopping by {self.tracked}: nothing measures that; give --track")
        self.sign = 1 if known[self.quantity] == LOWER else -1
        self.best = self.sign * math.inf

    def count(self, step: int, value: float) -> Stop | None:
        """Take in an evaluation."""
        self.counted = step
        if self.sign * value < self.sign * self.best - self.min_delta:
            self.best, self.wait = value, 0
            return None
        self.wait += 1
        if self.wait < self.patience:
            return None
        reason = f"no better {self.tracked} than {self.best:.6g} in {self.wait} evaluations (early stopping)"
        return Stop(COMPLETE, reason)

    def started(self, step: int) -> Stop | None:
        """As Hook.started: count the evaluations that this run's checkpoint does not know of."""
        answer = None
        for evaluated, value in self.run.world.broadcast(self._rows(step)):
            answer = self.count(evaluated, value)
        return answer

    def _rows(self, step: int) -> list[tuple[int, float]]:
        """Steps and values of the evaluations after the last counted one, up to a step, on the main one."""
        if self.run.experiment is None:
            return []
        kind = f"{DURING}@{self.evaluation}" if self.evaluation else DURING
        found = []
        for row in self.run.experiment.metrics.rows():
            if row["kind"] == kind and self.counted < row["step"] <= step:
                value = row.get(self.quantity)
                found.append((row["step"], math.nan if value is None else value))
        return found

    def evaluated(self, step: int, name: str, values: Mapping[str, Any]) -> Stop | None:
        """As Hook.evaluated."""
        return self.count(step, float(values[self.quantity])) if name == self.evaluation else None

    def _settings(self) -> list[Any]:
        return [self.tracked, self.min_delta]

    def state(self) -> dict[str, Any]:
        """As Hook.state."""
        return {"best": self.best, "wait": self.wait, "counted": self.counted, "settings": self._settings()}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """As Hook.take_up. What other settings counted is counted anew, from the rows of metrics.jsonl."""
        if state["settings"] == self._settings():
            self.best, self.wait, self.counted = state["best"], state["wait"], state["counted"]
