"""Sets evaluations beside the paper: which row each belongs to, means and errors over seeds, verdicts, what
differs.

    report = compare(collect([Path("exps")]))
    report.results          # one for each row of the paper, with or without an evaluation
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config.flags import FLAGS
from config.identity import (
    BATCH,
    changed_for_evaluation,
    cut_matters,
    effective_batch,
    is_full_compute,
    names_of,
)
from config.schema import IDENTITY
from data.bins import label
from errors import UserError
from models.variants import VARIANTS
from report.collect import Curve, Evaluation, Found
from report.pairs import Pair, pair
from report.paper import Rerun, Value, paper_value, rerun_value, setting
from report.rows import ANY, PAPER_SEEDS, ROWS, Row, architecture, is_architecture_of, rows_of, shape, title

DATASET = "openwebtext2"
SEEDS = ("seed", "data_seed")
NOTED_BESIDE = ("dtype",)  # an evaluation in another precision is the model's own, with a remark
# of the authors' code; a change of one is noted beside the row
DEFAULTS = (
    "weight_decay",
    "beta1",
    "beta2",
    "grad_clip",
    "scheduler",
    "final_div_factor",
    "dropout",
    "bias",
    "attn_bias",
    "mlp_bias",
    "norm_bias",
    "mlp_width",
    "rope_base",
    "rope_dtype",
    "scaled_init",
    "block",
    "n_kv_head",
    "window_pattern",
    "fp8",
    "fp8_recipe",
    "adafactor_eps",
    "mup_base_width",
    "depth_index",
    "adapt",
    "decayed",
    "positional_encoder",
    "attention_window_length",
    "disable_ln_mid",
    "training_length_factor",
    "halt_threshold",
    "depth_predictor_loss_coef",
    "ponder_lambda_p",
    "ponder_kl_div_loss_weight",
    "packing",
    "objective",
    "curriculum",
)
NO_SUMMARY = (
    "its training's summary.json was not found, so training settings are those that the evaluation recorded"
)

REPEAT = "another training with the same flags and the same seed was evaluated later, and is counted"
UNGROUPED = (
    "its interval is of an earlier version, which took neighbouring windows for independent: it is several"
    " times too narrow, and so is the verdict; evaluate again"
)


@dataclass(frozen=True)
class Group:
    """Evaluations of models that differ in their seed only, the newest one of each seed."""

    members: tuple[Evaluation, ...]

    @property
    def first(self) -> Evaluation:
        return self.members[0]

    @property
    def perplexity(self) -> float:
        return statistics.fmean(one.perplexity for one in self.members)

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval over texts: all seeds read the same windows, so that of their mean is the mean of
        theirs.
        """
        low, high = (
            statistics.fmean(ends) for ends in zip(*(one.interval for one in self.members), strict=True)
        )
        return low, high

    @property
    def sem(self) -> float | None:
        """Standard error over seeds; one seed has none."""
        n = len(self.members)
        return statistics.stdev(one.perplexity for one in self.members) / math.sqrt(n) if n > 1 else None


@dataclass(frozen=True)
class Result:
    """A row of the paper, and our models of it if there are any."""

    row: Row
    paper: Value
    rerun: Rerun | None
    group: Group | None = None
    decisive: tuple[str, ...] = ()  # differences that forbid a comparison
    differs: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def difference(self) -> float | None:
        if self.group is None or self.paper.perplexity is None:
            return None
        return self.group.perplexity - self.paper.perplexity

    @property
    def verdict(self) -> str:
        if self.group is None or self.paper.perplexity is None:
            return ""
        if self.decisive:
            return "not comparable"
        return verdict(self.paper.perplexity, self.group.interval)


@dataclass(frozen=True)
class Other:
    """An evaluation that is in no row, and why."""

    group: Group
    reason: str


@dataclass(frozen=True)
class Beside:
    """A model of a table, and the table's best one, compared on the same windows."""

    result: Result
    best: Result
    pair: Pair


@dataclass
class Report:
    results: list[Result]
    others: list[Other]
    curves: list[Curve]
    pairs: list[Beside] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def verdict(value: float, interval: tuple[float, float]) -> str:
    """Where the paper's value is: by how much it is beyond the nearer end of our interval."""
    low, high = interval
    beyond = max(low - value, value - high)
    return "inside the interval" if beyond <= 0 else f"outside by {beyond:.2f}"


def warmup_steps(one: Evaluation) -> int:
    """Of the training as it began: an extension does not change it."""
    if one.legs:
        return round(one.legs[0].rise + 1)
    return round(one.trained.warmup_percent * one.trained.iterations)


def extension(one: Evaluation) -> str | None:
    """How the schedule was extended; None where it was not.

    A training from before summaries had the legs says it by its flag.
    """
    if not one.legs:
        return one.trained.extend
    begins = [f"{leg.begin:,}" + (" by rejoin" if leg.origin is not None else "") for leg in one.legs[1:]]
    return f"at step{'s' if len(begins) > 1 else ''} {' and '.join(begins)}" if begins else None


def changed_settings(one: Evaluation) -> dict[str, str]:
    """Settings of the training that the evaluation had otherwise, but for the length, which is compared
    with the paper's.
    """
    changed = changed_for_evaluation(vars(one.args), vars(one.trained))
    if label(one.args.dataset) != label(one.trained.dataset):
        changed["dataset"] = f"--dataset {one.args.dataset} instead of {one.trained.dataset}"
    return {name: line for name, line in changed.items() if name != "sequence_length"}


def not_final(one: Evaluation) -> str | None:
    """Why an evaluation does not measure its model as the paper's tables do, None where it does."""
    if architecture(one.args) != architecture(one.trained):
        return f"evaluated as {shape(one.args)}, trained as {shape(one.trained)}"
    changed = [line for name, line in changed_settings(one).items() if name not in NOTED_BESIDE]
    if changed:
        return f"evaluated with {', '.join(changed)}"
    if not is_full_compute(one.args, one.trained):
        return "at reduced compute"
    if one.args.eval_sample_size is not None:
        return "on a part of the validation split"
    if one.steps != one.trained.iterations:
        return f"in the middle of the training: step {one.steps:,} of {one.trained.iterations:,}"
    return None


def _identity(one: Evaluation) -> tuple[Any, ...]:
    """Equal for models that differ only in their seed. A training that skipped steps equals no other."""
    trained = one.trained
    schedule = one.legs if len(one.legs) > 1 else extension(one)
    alone = (*one.seed, *one.skipped) if one.skipped else ()
    free = (*SEEDS, "dataset", *(() if cut_matters(vars(trained)) else BATCH))
    settings = [repr(getattr(trained, name)) for name in names_of(IDENTITY) if name not in free]
    return (
        label(one.args.dataset),
        one.args.sequence_length,
        effective_batch(vars(trained)),
        one.steps,
        trained.iterations,
        schedule,
        alone,
        *settings,
    )


def repeats(evaluations: Sequence[Evaluation], chosen: Sequence[Group]) -> list[Evaluation]:
    """Evaluations of other trainings than those in the groups that have the same flags and the same seed."""
    kept = {(_identity(one), one.seed): one for group in chosen for one in group.members}
    return [one for one in evaluations if kept[_identity(one), one.seed].checkpoint != one.checkpoint]


def groups(
    evaluations: Sequence[Evaluation], identity: Callable[[Evaluation], Any] = _identity
) -> list[Group]:
    """Evaluations by model; of several of one model and seed the newest counts."""
    found: dict[Any, dict[tuple[int, int], Evaluation]] = {}
    for one in sorted(evaluations, key=lambda one: (one.modified, str(one.path))):
        found.setdefault(identity(one), {})[one.seed] = one
    return [Group(tuple(by_seed[seed] for seed in sorted(by_seed))) for by_seed in found.values()]


def decisive_differences(row: Row, one: Evaluation) -> list[str]:
    """Differences that make a perplexity another quantity, or that of another training."""
    pairs = (
        ("steps", f"{one.steps:,}", f"{row.steps:,}"),
        ("data", label(one.args.dataset), DATASET),
        ("evaluated sequence length", one.args.sequence_length, setting("sequence_length")),
    )
    return [f"{name} {ours} instead of {papers}" for name, ours, papers in pairs if ours != papers]


def differences(row: Row, group: Group) -> list[str]:
    """Other settings that are not the paper's."""
    trained = group.first.trained
    pairs: list[tuple[str, Any, Any]] = [
        ("training sequence length", trained.sequence_length, setting("sequence_length")),
        ("effective batch", trained.batch_size * trained.acc_steps, setting("effective_batch")),
        ("peak learning rate", trained.lr, setting("lr")),
        ("optimiser", trained.opt, setting("optimizer").lower()),
        ("seeds", len(group.members), PAPER_SEEDS),
    ]
    if row.steps == setting("steps"):
        pairs.append(("warm-up steps", warmup_steps(group.first), setting("warmup_steps")))
    if row.depth_embedding != ANY:
        pairs.append(("depth embedding", trained.depth_embedding or "none", row.depth_embedding or "none"))
    lines = [f"{name} {ours} instead of {papers}" for name, ours, papers in pairs if ours != papers]
    published = row.args()
    for name in (*DEFAULTS, *(BATCH if cut_matters(vars(trained)) else ())):
        ours, papers = getattr(trained, name), getattr(published, name)
        if ours != papers:
            lines.append(
                f"{name} {ours} instead of {'the default ' if papers == FLAGS[name].default else ''}{papers}"
            )
    extended = extension(group.first)
    if extended is not None:
        lines.append(f"the schedule was extended ({extended}) from a shorter training")
    skipped = len(group.first.skipped)
    if skipped:
        lines.append(f"{skipped} step{'s' if skipped > 1 else ''} passed over (--on_bad_step skip)")
    return lines


def remarks(row: Row, group: Group) -> list[str]:
    """What a reader must know, and what the paper's file does not state."""
    one, trained = group.first, group.first.trained
    lines = [
        f"{one.n_tokens:,} validation tokens; the paper's split is not recorded",
        f"dtype {trained.dtype}"
        + (" (bfloat16 on CUDA, float32 on a CPU)" if trained.dtype == "auto" else "")
        + f", device {trained.device}"
        + (f", {one.processes} processes" if one.processes else "")
        + "; the paper's are not recorded",
    ]
    lines += [
        f"seed {each.trained.seed} was evaluated with {line}"
        for each in group.members
        for name, line in changed_settings(each).items()
        if name in NOTED_BESIDE
    ]
    if row.steps != setting("steps"):
        lines.append(
            f"warm-up {warmup_steps(one):,} steps; the paper's for {row.steps:,} steps is not recorded"
        )
    rerun = rerun_value(row.rerun)
    if rerun is not None and rerun.accuracy is not None:
        lines.append(
            f"accuracy {statistics.fmean(each.accuracy for each in group.members):.4f}; the re-run's is"
            f" {rerun.accuracy:.4f}"
        )
    if row.paper == ("table2", "layer_norm_2_21x5_1"):
        lines.append("the paper's value is that of the model without depth embedding; Table 4 has both")
    if VARIANTS[trained.model].routes:
        lines.append(
            "routing by capacity compares scores over the whole sequence: training looked at later tokens, as"
            " in the paper; at full compute every token goes on"
        )
    if not all(each.grouped for each in group.members):
        lines.append(UNGROUPED)
    if one.processes is None:
        lines.append(NO_SUMMARY)
    return lines


def _result(row: Row, group: Group | None) -> Result:
    result = Result(row, paper_value(row.paper), rerun_value(row.rerun))
    if group is None:
        return result
    return Result(
        row,
        result.paper,
        result.rerun,
        group,
        tuple(decisive_differences(row, group.first)),
        tuple(differences(row, group)),
        tuple(remarks(row, group)),
    )


def _closeness(result: Result) -> tuple[float, ...]:
    """The group that fills the row is the one nearest to the paper's setting, then the newest."""
    assert result.group is not None, "only candidates are ranked"
    return len(result.decisive), len(result.differs), -max(one.modified for one in result.group.members)


def compare(found: Found) -> Report:
    """The report on everything that was found."""
    reasons = {one.path: not_final(one) for one in found.evaluations}
    final = groups([one for one in found.evaluations if reasons[one.path] is None])
    results = []
    placed: set[Path] = set()
    for row in ROWS:
        candidates = [
            _result(row, group) for group in final if row in rows_of(group.first.trained, group.first.steps)
        ]
        results.append(min(candidates, key=_closeness) if candidates else _result(row, None))
        placed |= {one.path for one in results[-1].group.members} if results[-1].group else set()
    others = [Other(group, _why_other(group)) for group in final if group.first.path not in placed]
    others += [
        Other(Group((one,)), REPEAT)
        for one in repeats([one for one in found.evaluations if reasons[one.path] is None], final)
    ]
    others += [
        Other(Group((one,)), reason) for one in found.evaluations if (reason := reasons[one.path]) is not None
    ]
    return Report(
        results,
        sorted(
            others,
            key=lambda other: (title(other.group.first.args), other.reason, str(other.group.first.path)),
        ),
        found.curves,
        in_pairs(results),
        list(found.problems),
    )


def in_pairs(results: Sequence[Result]) -> list[Beside]:
    """Each evaluated model of a table with its best one; without those whose windows cannot be compared.

    Of several seeds the first.
    """
    found = []
    for table in dict.fromkeys(result.row.table for result in results):
        ours = [
            (result, result.group)
            for result in results
            if result.row.table == table and result.group is not None
        ]
        best = min(ours, key=lambda each: each[1].first.perplexity, default=None)
        for result, group in ours:
            if best is not None and result is not best[0]:
                with suppress(UserError):
                    found.append(Beside(result, best[0], pair(group.first.path, best[1].first.path)))
    return found


def _why_other(group: Group) -> str:
    is_row = any(is_architecture_of(row, group.first.trained) for row in ROWS)
    return (
        "another training of this model is nearer to the paper's setting" if is_row else "no row of the paper"
    )
