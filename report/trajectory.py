"""The validation curve of a training, what the paper's model reached, and where the re-run of that model was
at the same steps.

    python -m report trajectory EXPERIMENT [--output reports]

Writes reports/trajectory_NAME.png, .pdf and .json, and prints a few lines. EXPERIMENT is a folder or a name;
it may be in training. Only the drawing needs more than Python itself: status.py uses the rest.
"""

from __future__ import annotations

import math
from argparse import Namespace
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import config
from config.identity import effective_batch
from errors import UserError
from optim.evaluations import UNNAMED, Evaluated, Row, by_kind, evaluations
from optim.names import METRICS
from optim.reader import Record, read_rows
from report.paper import Rerun, Value, paper_value, rerun_trajectory, rerun_value, setting, trajectory_tokens
from report.rows import ROWS, rows_of

OPENWEBTEXT2 = ("owt2", "openwebtext2")
# of trainings whose way is known, in steps
KNOWN_LENGTHS = frozenset(row.steps for row in ROWS if rerun_trajectory(row.rerun))
# times the lowest value: the first steps are far above it, and would leave no room for what follows
SHOWN = 4
Points = tuple[tuple[int, float], ...]  # steps and perplexities, in order of step


@dataclass(frozen=True)
class Yardstick:
    """Other trainings of a model: the paper's and the re-run's final perplexity, and the re-run's during its
    training.
    """

    label: str
    steps: int
    paper: Value
    rerun: Rerun | None
    points: Points

    def at(self, step: int) -> float | None:
        """The re-run's perplexity at a step, between two of its points by a power law; None outside of
        them.
        """
        steps = [each for each, _ in self.points]
        after = bisect_left(steps, step)
        if after == len(steps) or (after == 0 and steps[0] != step):
            return None
        if steps[after] == step:
            return self.points[after][1]
        (begin, high), (end, low) = self.points[after - 1 : after + 1]
        share = math.log(step / begin) / math.log(end / begin)
        return math.exp((1 - share) * math.log(high) + share * math.log(low))

    def text_at(self, step: int) -> str:
        """`at` as text, empty where it is not known."""
        there = self.at(step)
        if there is None:
            return ""
        return f"{there:.2f}" if step in dict(self.points) else f"about {there:.2f}"


def yardstick_of(args: Namespace) -> Yardstick | None:
    """For the model of some flags; None where the paper has none of its architecture.

    Of several rows the one with the same depth embedding comes first.
    """
    rows = sorted(rows_of(args, args.iterations), key=lambda row: not row.exact_embedding)
    if not rows:
        return None
    row, rerun = rows[0], next((each.rerun for each in rows if each.rerun), None)
    return Yardstick(
        row.label, row.steps, paper_value(row.paper), rerun_value(rerun), rerun_trajectory(rerun)
    )


def differences(args: Namespace, yardstick: Yardstick) -> list[str]:
    """Settings that make the values during training not comparable."""
    data = "openwebtext2" if Path(args.dataset).name in OPENWEBTEXT2 else args.dataset
    pairs = (
        ("data", data, "openwebtext2"),
        ("steps", args.iterations, yardstick.steps),
        ("sequence length", args.sequence_length, setting("sequence_length")),
        ("effective batch", effective_batch(vars(args)), setting("effective_batch")),
    )
    return [f"{name} {ours} instead of {papers}" for name, ours, papers in pairs if ours != papers]


def flags_of(recorded: Row | None) -> Namespace | None:
    """All flags, from those that a training recorded; None where they are not known."""
    try:
        return None if recorded is None else config.add_defaults(config.recorded(recorded))
    except ValueError:
        return None


def remark(recorded: Row | None, step: int, perplexity: float) -> str | None:
    """One line on how a training compares with the re-run at this step; None where the two cannot be
    compared.

    recorded: the flags that the training recorded.
    """
    args = flags_of(recorded)
    yardstick = None if args is None else yardstick_of(args)
    if args is None or yardstick is None or differences(args, yardstick) or not yardstick.text_at(step):
        return None
    text = (
        f"{yardstick.label}: validation perplexity {perplexity:.2f} at step {step:,}; the re-run had"
        f" {yardstick.text_at(step)} there"
    )
    return (
        text
        if yardstick.paper.perplexity is None
        else f"{text}, the paper {yardstick.paper.perplexity:.2f} at the end"
    )


def curve_of(one: Evaluated, at_end: bool = False) -> Points:
    """Validation perplexities by step, of an evaluation during training or at its end."""
    found = one.by_step("val_pp", at_end).items()
    return tuple((step, row["val_pp"]) for step, row in found if row["val_pp"] > 0)


def nearest(curve: Points, step: int) -> tuple[int, float]:
    return min(curve, key=lambda point: abs(point[0] - step))


def lines(name: str, args: Namespace | None, yardstick: Yardstick | None, curve: Points) -> list[str]:
    """What the picture shows, in words."""
    step, perplexity = curve[-1]
    if args is None:
        return [
            f"{name}: step {step:,}, perplexity {perplexity:.2f}; neither a checkpoint nor summary.json tells"
            " what model that is"
        ]
    if yardstick is None:
        return [
            f"{name}: step {step:,} of {args.iterations:,}, perplexity {perplexity:.2f}; the paper has no"
            " model of this architecture"
        ]
    found = [f"{name}: {yardstick.label}, step {step:,} of {args.iterations:,}", final_values(yardstick)]
    found += [f"not comparable on the way: {line}" for line in differences(args, yardstick)]
    if not yardstick.points:
        return [
            *found,
            (
                f"perplexity {perplexity:.2f} at step {step:,}; of this model no re-run's values on the way"
                " are known"
            ),
        ]
    reached = [nearest(curve, each) for each, _ in yardstick.points if each <= step]
    for reached_step, ours in dict.fromkeys([*reached, curve[-1]]):
        there = yardstick.text_at(reached_step)
        found.append(
            f"at step {reached_step:>6,} you are at {ours:.2f}"
            + (f", the re-run of this model was at {there} there" if there else "")
        )
    return [*found, f"the re-run's values on the way are of {trajectory_tokens():,} validation tokens"]


def final_values(yardstick: Yardstick) -> str:
    paper, rerun = yardstick.paper, yardstick.rerun
    sem = "" if paper.sem is None else f" +- {paper.sem:.2f}"
    parts = []
    if paper.perplexity is not None:
        parts.append(f"the paper's model had {paper.perplexity:.2f}{sem} after {yardstick.steps:,} steps")
    if rerun is not None:
        parts.append(f"a re-run had {rerun.perplexity:.2f} [{rerun.low:.2f}, {rerun.high:.2f}]")
    return "; ".join(parts) or "neither the paper nor the re-run tells this model's perplexity"


def draw_yardstick(axis: Any, yardstick: Yardstick) -> dict[str, Any]:
    """Draw what is known of the model beside the training; returns the numbers."""
    from report.figures import BLACK, ORANGE

    paper, rerun = yardstick.paper.perplexity, yardstick.rerun
    if paper is not None:
        axis.axhline(
            paper,
            color=BLACK,
            linestyle="--",
            linewidth=0.8,
            label=f"paper, {yardstick.steps:,} steps: {paper:.2f}",
        )
    if rerun is not None:
        axis.errorbar(
            [yardstick.steps],
            [rerun.perplexity],
            [[rerun.perplexity - rerun.low], [rerun.high - rerun.perplexity]],
            color=ORANGE,
            marker="D",
            label=f"re-run: {rerun.perplexity:.2f}",
        )
    if yardstick.points:
        axis.plot(
            *zip(*yardstick.points, strict=True),
            color=ORANGE,
            marker="s",
            linestyle=":",
            label="re-run on its way",
        )
    return {
        "row": yardstick.label,
        "steps": yardstick.steps,
        "paper": paper,
        "rerun_on_its_way": yardstick.points,
        "rerun": None if rerun is None else [rerun.perplexity, rerun.low, rerun.high],
    }


@dataclass(frozen=True)
class Way:
    """The perplexities of one evaluation: during training, and at its end on the whole split."""

    name: str
    curve: Points
    final: Points

    def numbers(self) -> dict[str, Points]:
        return {"curve": self.curve, "final": self.final}


def draw(
    folder: Path, stem: str, title: str, yardstick: Yardstick | None, way: Way, others: Sequence[Way]
) -> None:
    """Writes the picture and its numbers. way: of the evaluation that is compared; others: of the rest."""
    from matplotlib.ticker import LogFormatter

    from report.figures import BLUE, GREEN, ONE_COLUMN, PURPLE, SKY, legend, panels, plain, save

    figure, axes = panels(1, 1, width=ONE_COLUMN * 1.4, height=3.2 + 0.09 * len(others))
    axis = axes[0, 0]
    colors, styles = (BLUE, GREEN, PURPLE, SKY), ("-", "--", "-.", ":")
    for number, each in enumerate((way, *others)):
        dashes, color = divmod(number, len(colors))
        label, of_stars = "this training", "this training, whole split"
        if others or each.name:
            # a label that begins with _ is not shown
            label, of_stars = f" {each.name or UNNAMED}", "_" if number else "whole split"
        style = styles[dashes % len(styles)]
        axis.plot(*zip(*each.curve, strict=True), color=colors[color], linestyle=style, label=label)
        if each.final:
            axis.plot(
                *zip(*each.final, strict=True),
                color=colors[color],
                marker="*",
                markersize=8,
                linestyle="",
                label=of_stars,
            )
    data: dict[str, Any] = {"experiment": title, **way.numbers()}
    if others or way.name:
        data |= {"evaluation": way.name, "others": {each.name: each.numbers() for each in others}}
    if yardstick is not None:
        data |= draw_yardstick(axis, yardstick)
    axis.set(xlabel="optimiser step", ylabel="validation perplexity", yscale="log")
    low, high = axis.get_ylim()
    last = max(each.curve[-1][1] for each in (way, *others))
    axis.set_ylim(top=min(high, max(SHOWN * low, SHOWN / 2 * last)))
    axis.yaxis.set_major_formatter("{x:g}")
    # fewer labels the more decades there are
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axis.set_title(plain(title if yardstick is None else f"{title}\n{yardstick.label}"))
    legend(figure, axes, axis.get_legend_handles_labels()[1], columns=2)
    save(figure, folder, stem, data)


def write(experiment: Path, output: Path) -> None:
    """Draw the trajectory of an experiment and print it in words. Raises UserError."""
    from report.figures import checkpoint_name

    problems: list[str] = []
    found = evaluations(by_kind(read_rows(experiment / METRICS, problems)))
    every = {name: Way(name, curve_of(one), curve_of(one, at_end=True)) for name, one in found.items()}
    ways = {name: way for name, way in every.items() if way.curve}
    lacking = [name or UNNAMED for name in found if name not in ways]
    if not ways:
        none = f"{experiment} holds no evaluation yet"
        if lacking:
            none = f"{experiment} holds no perplexity during training, only {', '.join(lacking)}"
        raise UserError("; ".join([none, *problems]))
    record = Record(experiment, problems)
    best = record.best
    name = best.evaluation if best is not None and best.evaluation in ways else next(iter(ways))
    way, others = ways[name], [each for each in ways.values() if each.name != name]
    args = flags_of(record.flags)
    yardstick = None if args is None else yardstick_of(args)
    print(*lines(checkpoint_name(str(experiment.resolve())), args, yardstick, way.curve), sep="\n")
    if others or name:
        print(f"these are of {name or UNNAMED}")
    for each in others:
        step, perplexity = each.curve[-1]
        print(f"{each.name or UNNAMED}: perplexity {perplexity:.2f} at step {step:,}")
    if lacking:
        print(f"without a perplexity during training: {', '.join(lacking)}")
    title = experiment.resolve().name
    draw(output, f"trajectory_{title}", title, yardstick, way, others)
