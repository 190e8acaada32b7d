"""Learning rates, and where asked for momentum and weight decay, as a closed form of the step, in legs: one
for the run as planned, one more for each extension.

A leg rises from a start rate to a top rate and then falls to the end rate at its last step. `cos` and
`linear` are the authors' OneCycleLR to the last digit, which ends at lr / 100 / final_div_factor; `wsd` stays
at the top until its final decay; `none` stays at lr. `warmup_cos` rises from 0 in --warmup_steps, falls along
a cosine to --min_lr, which it reaches after its last step, or --decay_steps after its first, and stays
there. `trapezoid` rises to lr in the first --warmup_ratio of the steps and falls to --final_lr_frac of it in
the last --warmdown_ratio, with lr in its first and the end rate after its last step. `cosine`, `linear_decay`
and `constant` (LIBRARY) rise from 1e-7 in --warmup_steps; then they fall to 0 after the last step, or stay. A
group with a multiple of the rate rises from 1e-7 too.

Groups with `full_decay` decay by the share of it that `Schedule.decay_share` gives, linear down to 0 after
the last step; those with `momentum_course` have a momentum that rises in a number of steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from config.groups.optimiser import SCHEDULERS
from errors import UserError
from optim.experiment import Lineage

if TYPE_CHECKING:
    from torch.optim import Optimizer

START_DIVISOR = 100.0
WARMUP_COS, TRAPEZOID = "warmup_cos", "trapezoid"
COSINE, LINEAR_DECAY, CONSTANT = "cosine", "linear_decay", "constant"
LIBRARY = (COSINE, LINEAR_DECAY, CONSTANT)
LIBRARY_START = 1e-7
IN_STEPS = (
    WARMUP_COS,
    *LIBRARY,
)  # their warm-up is given in steps, and their end rate comes after the last one
WAYS_TO_EXTEND = (
    "say what the learning rate should do: --extend continue (from where it is to its end value), --extend"
    " restart (warm up again first) or --extend rejoin (go over to the rates of a run that was planned this"
    " long)"
)


@dataclass(frozen=True)
class Leg:
    """Steps [begin, end) of a run. `rise`: the step, counted from `start`, at which the top is reached (may
    be negative: no rise).

    origin: the step at which its course starts, where that is not `begin`: one that rejoins a longer plan is
    under way already. decay: share of the weight decay at `start`, where that is not all of it.
    """

    begin: int
    end: int
    start_rate: float
    top_rate: float
    rise: float
    origin: int | None = None
    decay: float | None = None

    @property
    def start(self) -> int:
        return self.begin if self.origin is None else self.origin

    @property
    def peak(self) -> int:
        """The step of the run at which this leg reaches its top rate, or begins to fall."""
        return max(self.begin, self.start + max(0, math.ceil(self.rise)))

    def as_json(self) -> dict[str, Any]:
        """Without fields that are None: the hashes of metrics rows are of this text (`Lineage`)."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Shape:
    """The flags that a schedule is made of. Of IN_STEPS alone: warmup_steps, min_lr; of WARMUP_COS,
    where it is not the length of the run, decay_steps; of `trapezoid` alone: warmup_ratio, warmdown_ratio,
    final_lr_frac. decay_schedule: None where the decay is constant.
    """

    scheduler: str
    lr: float
    warmup_percent: float
    final_div_factor: float
    decay_percent: float
    warmup_steps: int | None = None
    min_lr: float | None = None
    warmup_ratio: float | None = None
    warmdown_ratio: float | None = None
    final_lr_frac: float | None = None
    decay_schedule: str | None = None
    decay_steps: int | None = None

    @property
    def start_rate(self) -> float:
        if self.scheduler in LIBRARY:
            return LIBRARY_START
        return 0.0 if self.scheduler in (WARMUP_COS, TRAPEZOID) else self.lr / START_DIVISOR

    @property
    def end_rate(self) -> float:
        if self.final_lr_frac is not None:
            return self.lr * self.final_lr_frac
        return self.start_rate / self.final_div_factor if self.min_lr is None else self.min_lr

    def rise(self, steps: int) -> float:
        """The step of a leg of so many steps at which its rate is at the top; -1: it does not rise."""
        if self.warmup_ratio is not None:
            return round(self.warmup_ratio * steps) - 1
        return self.warmup_percent * steps - 1 if self.warmup_steps is None else self.warmup_steps

    def as_json(self) -> dict[str, Any]:
        """Without what it does not have, as a leg's."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def rate(self, leg: Leg, step: int) -> float:
        """Rate used at a step of a leg."""
        if self.scheduler == "none":
            return self.lr
        if self.scheduler == TRAPEZOID:
            return self._trapezoid(leg, min(step, leg.end) - leg.start)
        end = leg.end if self.scheduler in IN_STEPS else leg.end - 1  # the step of the end rate
        if self.decay_steps is not None:
            end = leg.start + self.decay_steps
        local, last = min(step, end) - leg.start, end - leg.start
        if local <= leg.rise:
            share = local / leg.rise if leg.rise > 0 else 1.0
            return _between(leg.start_rate, leg.top_rate, share, is_cosine=self.scheduler == "cos")
        if self.scheduler == CONSTANT:
            return leg.top_rate
        fall_from = leg.rise
        if self.scheduler == "wsd":
            fall_from = max(leg.rise, last - self.decay_percent * leg.end)
        if local <= fall_from:
            return leg.top_rate
        share = (local - fall_from) / (last - fall_from) if last > fall_from else 1.0
        is_cosine = self.scheduler in ("cos", WARMUP_COS, COSINE)
        return _between(leg.top_rate, self.end_rate, share, is_cosine)

    def group_rate(self, leg: Leg, step: int, multiple: float) -> float:
        """Rate at a step of a leg, of a group with a multiple of the rate."""
        if self.scheduler not in LIBRARY:
            return self.rate(leg, step) * multiple
        start = leg.start_rate if leg.start_rate == LIBRARY_START else leg.start_rate * multiple
        return self.rate(replace(leg, start_rate=start, top_rate=leg.top_rate * multiple), step)

    def _trapezoid(self, leg: Leg, local: int) -> float:
        """Rate at a step of a leg, counted from its start. Where warm-up and warm-down overlap, it jumps."""
        assert self.warmdown_ratio is not None, "a trapezoid has a warm-down"
        if local <= leg.rise:
            share = (local + 1) / (leg.rise + 1)
            return _between(leg.start_rate, leg.top_rate, share, is_cosine=False)
        last = leg.end - leg.start
        fall = round(self.warmdown_ratio * leg.end)
        if leg.start:  # of an extension, which may be shorter than its warm-down, and begins without a jump
            fall = min(fall, last - 1 - round(leg.rise))
        if local <= last - fall:
            return leg.top_rate
        return _between(self.end_rate, leg.top_rate, (last - local) / fall, is_cosine=False)

    def decay_share(self, leg: Leg, step: int) -> float:
        """Share of the weight decay at a step of a leg, for groups whose decay is scheduled."""
        if self.decay_schedule is None:
            return 1.0
        full = 1.0 if leg.decay is None else leg.decay
        return full * (1 - (min(step, leg.end) - leg.start) / (leg.end - leg.start))

    def planned(self, iterations: int) -> Leg:
        """The one leg of a run that is planned for so many steps."""
        return Leg(0, iterations, self.start_rate, self.lr, self.rise(iterations))


def _between(a: float, b: float, share: float, is_cosine: bool) -> float:
    if is_cosine:
        return b + (a - b) / 2.0 * (math.cos(math.pi * share) + 1)
    return (b - a) * share + a


def momentum_at(course: tuple[float, float, int], step: int) -> float:
    """Momentum at a step of a run, whatever its length. course: from, to, steps on the way."""
    start, end, steps = course
    share = min(step / steps, 1.0)
    return (1 - share) * start + share * end


class Schedule:
    """Sets the rate of every parameter group, and momentum and decay of those where they are scheduled;
    `step()` after each optimiser step.
    """

    def __init__(self, optimizer: Optimizer, shape: Shape, iterations: int) -> None:
        self.optimizer, self.shape, self.taken = optimizer, shape, 0
        self.legs = [shape.planned(iterations)]
        self._apply()

    @property
    def horizon(self) -> int:
        return self.legs[-1].end

    def rate_at(self, step: int) -> float:
        """Rate used at a step (0-based) of the run."""
        return self.shape.rate(self._leg(step), step)

    def decay_share_at(self, step: int) -> float:
        """Share of the weight decay at a step (0-based) of the run."""
        return self.shape.decay_share(self._leg(step), step)

    def _leg(self, step: int) -> Leg:
        return next((leg for leg in reversed(self.legs) if leg.begin <= step), self.legs[0])

    def _apply(self) -> None:
        leg, share = self._leg(self.taken), self.decay_share_at(self.taken)
        for group in self.optimizer.param_groups:
            group["lr"] = self.shape.group_rate(leg, self.taken, group.get("rate", 1.0))
            if "full_decay" in group:
                group["weight_decay"] = group["full_decay"] * share
            if "momentum_course" in group:
                group["momentum"] = momentum_at(group["momentum_course"], self.taken)

    def step(self) -> None:
        self.taken += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Rate of each parameter group at the coming step."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def plan(self) -> dict[str, Any]:
        """The whole course of the rate: shape and legs, as plain data."""
        return {"shape": self.shape.as_json(), "legs": [leg.as_json() for leg in self.legs]}

    def state_dict(self) -> dict[str, Any]:
        return {**self.plan(), "taken": self.taken}

    def lineage(self) -> Lineage:
        """Which metrics rows belong to this course of the rate, and which to another one."""
        shape, legs = self.shape.as_json(), self.plan()["legs"]
        begins = [leg.begin for leg in self.legs]
        contents = [json.dumps([shape, legs[: n + 1]]) for n in range(len(legs))]
        return Lineage(begins, contents)

    def load_state_dict(self, state: dict[str, Any], extend: str | None = None) -> str | None:
        """Resume a run's schedule. Returns a line about the rates before and after if this extends it.

        Raises UserError where it cannot (`resumed_legs`).
        """
        iterations = self.horizon
        self.legs, self.taken = resumed_legs(state, self.shape, iterations, extend), int(state["taken"])
        line = self._extend(iterations, extend) if extend is not None and iterations > self.horizon else None
        self._apply()
        return line

    def _extend(self, iterations: int, how: str) -> str:
        old_leg, begin = self.legs[-1], self.taken
        now = self.rate_at(max(begin - 1, 0))
        decay = None if self.shape.decay_schedule is None else self.decay_share_at(max(begin - 1, 0))
        rise_left = old_leg.start + old_leg.rise - begin
        if how == "rejoin":
            leg = replace(self.shape.planned(iterations), begin=begin, origin=0)
        elif how == "restart":
            leg = Leg(begin, iterations, now, self.shape.lr, self.shape.rise(iterations - begin))
        elif rise_left >= 0:
            leg = Leg(begin, iterations, now, old_leg.top_rate, rise_left, decay=decay)
        else:
            leg = Leg(begin, iterations, now, now, -1.0, decay=decay)
        before = old_leg.end
        self.legs = [*self.legs, leg]
        marks = sorted({begin, leg.peak, (begin + iterations) // 2, iterations - 1})
        ahead = ", ".join(f"{self.rate_at(step):.3g} at {step}" for step in marks)
        return (
            f"extended from {before} to {iterations} steps ({how}): learning rate before {now:.3g} at"
            f" {max(begin - 1, 0)}; after: {ahead}"
        )

    def describe(self) -> str:
        """The rate at the start, at its peak and at the end, for the first lines of a run."""
        peak = 0 if self.shape.scheduler == "none" else self.legs[-1].peak
        line = f"learning rate ({self.shape.scheduler}): {self.rate_at(0):.3g} at the start,"
        end = f" {self.rate_at(self.horizon - 1):.3g} at the end"
        if peak >= self.horizon:
            return f"{line}{end}: the warm-up of {peak} steps is longer than the run"
        return f"{line} {self.rate_at(peak):.3g} at the peak (step {peak}),{end}"


def resumed_legs(state: Mapping[str, Any], shape: Shape, iterations: int, extend: str | None) -> list[Leg]:
    """The legs of a run, from its schedule's state in a checkpoint, before any extension.

    Raises UserError where the file's settings differ, or where its horizon does and `extend` does not say
    what the rate should do.
    """
    mine = asdict(shape)
    for name, value in state.get("shape", {}).items():
        if mine.get(name) != value:
            raise UserError(
                f"--{name} is {mine.get(name)}, but the checkpoint was trained with {value}; give that, or"
                " another --exp_name"
            )
    if not state.get("legs"):
        raise UserError(
            "the schedule in the checkpoint was not written by this training loop: the file cannot be resumed"
        )
    legs, taken = [Leg(**leg) for leg in state["legs"]], int(state["taken"])
    planned = legs[-1].end
    if iterations < taken:
        raise UserError(
            f"--iterations {iterations} is less than the {taken} steps that the experiment has made"
        )
    if iterations < planned:
        raise UserError(
            f"--iterations {iterations} is less than the {planned} that the experiment was planned for; give"
            " another --exp_name"
        )
    if iterations > planned and extend is None:
        raise UserError(
            f"--iterations {iterations} is more than the {planned} that the experiment was planned for;"
            f" {WAYS_TO_EXTEND}"
        )
    return legs


def shape_of(args: Any) -> Shape:
    """What the flags say of the schedule. Raises ValueError for a scheduler that does not exist."""
    if args.scheduler not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {args.scheduler!r}; there are: {', '.join(SCHEDULERS)}")
    lr = args.lr * getattr(args, "rate_scale", 1.0)  # which some recipes have
    shape = Shape(args.scheduler, lr, args.warmup_percent, args.final_div_factor, args.decay_percent)
    if args.scheduler == WARMUP_COS:
        decay_steps = getattr(args, "decay_steps", None)  # which some recipes have
        min_lr = lr / 10 if args.min_lr is None else args.min_lr
        shape = replace(shape, warmup_steps=args.warmup_steps, min_lr=min_lr, decay_steps=decay_steps)
    if args.scheduler in LIBRARY:
        shape = replace(shape, warmup_steps=args.warmup_steps, min_lr=0.0)
    if args.scheduler == TRAPEZOID:
        ratios = {name: getattr(args, name) for name in ("warmup_ratio", "warmdown_ratio", "final_lr_frac")}
        shape = replace(shape, **ratios)
    if args.decay_schedule != "constant":
        shape = replace(shape, decay_schedule=args.decay_schedule)
    return shape


def make_scheduler(optimizer: Optimizer, args: Any) -> Schedule:
    """The schedule that --scheduler and its companions ask for, at step 0."""
    return Schedule(optimizer, shape_of(args), args.iterations)
