"""The quantity that decides which checkpoint is the best one. Needs no torch: flags are checked by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from config.groups.objective import DPO, SFT
from config.mixture import names_of_sources
from errors import UserError
from optim.evaluations import split_name

LOWER, HIGHER = "lower", "higher"  # which of two values of a quantity is the better one
BITS_PER_BYTE = "val_bpb"  # measured only where the tokenizer is known
# of a split of tokens
HELD_OUT = {"val_loss": LOWER, "val_pp": LOWER, "val_acc": HIGHER, BITS_PER_BYTE: LOWER}

ANSWERS = {name: HELD_OUT[name] for name in ("val_loss", "val_pp", "val_acc")}  # of the tokens that count
PAIRS = "pairs"  # name of this evaluation
# of pairs of completions
PREFERENCES = {"val_loss": LOWER, "val_margin": HIGHER, "val_acc": HIGHER, "val_policy_acc": HIGHER}
# what a training on examples measures: quantities of each evaluation by its name, the main one first
OF_EXAMPLES: dict[str, dict[str, Mapping[str, str]]] = {SFT: {"": ANSWERS}, DPO: {PAIRS: PREFERENCES}}


def evaluations_of(dataset: str, objective: str) -> dict[str, Mapping[str, str]]:
    """What --track may name, of main.py's trainings: quantities of each evaluation by its name, which is that
    of a mixture's source. Raises UserError.
    """
    if objective in OF_EXAMPLES:
        return OF_EXAMPLES[objective]
    return dict.fromkeys(names_of_sources(dataset) or [""], HELD_OUT)


def main_quantity(objective: str) -> str:
    """That of an objective on one dataset which --early_stop takes where --track names none."""
    name, quantities = next(iter(OF_EXAMPLES.get(objective, {"": HELD_OUT}).items()))
    quantity = next(iter(quantities))
    return f"{quantity}@{name}" if name else quantity


class Tracked:
    """The best value so far of one quantity of one evaluation: --track QUANTITY, or QUANTITY@EVALUATION.

    A value is better only if it is finite and strictly better, so that of equal ones the first stays.
    """

    def __init__(self, wanted: str, known: Mapping[str, Mapping[str, str]], every: int) -> None:
        """known: quantities and their better directions, of each evaluation by its name. every: steps between
        evaluations.

        Raises UserError where nothing measures that quantity.
        """
        self.wanted = wanted
        self.quantity, self.evaluation = split_name(wanted)
        self.value: float | None = None
        self.step = 0
        quantities = known.get(self.evaluation, {})
        if self.quantity not in quantities:
            choices = []
            for which, names in known.items():
                of = f"@{which}" if which else ""
                choices += [f"{name}{of}" for name in names]
            there_are = ", ".join(choices) or "none"
            is_unknown = self.quantity == BITS_PER_BYTE and bool(quantities)
            why = " (the tokenizer of these data is not known here)" if is_unknown else ""
            raise UserError(f"--track {wanted}: nothing measures that{why}; there are: {there_are}")
        if not every:
            raise UserError(f"--track {wanted} needs evaluations during training: give --eval_freq")
        self.sign = 1 if quantities[self.quantity] == LOWER else -1

    def improves(self, evaluation: str, values: Mapping[str, Any], step: int) -> bool:
        """Whether these values of an evaluation at a step are the best so far; if so, they are remembered."""
        if evaluation != self.evaluation:
            return False
        value = float(values[self.quantity])
        is_better = self.value is None or self.sign * value < self.sign * self.value
        if not math.isfinite(value) or not is_better:
            return False
        self.value, self.step = value, step
        return True

    def state(self) -> dict[str, Any]:
        """Of a checkpoint and a summary."""
        return {"quantity": self.wanted, "value": self.value, "step": self.step}

    def take_up(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint. Another quantity than it tracked begins anew."""
        if state is not None and state.get("quantity") == self.wanted:
            self.value, self.step = state["value"], state["step"]

    def forget(self) -> None:
        self.value, self.step = None, 0
