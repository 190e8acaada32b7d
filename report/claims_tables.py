"""The tables of the claims' page: verdicts, and Tables 1, 2, 4 and Section 5 in the paper's form."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from report.claims_cells import Setting, Trained
from report.claims_found import Absent, Finding, in_words
from report.claims_list import (
    EXTENSION,
    LN,
    LN_EMBEDDED,
    OF_ADAPTIVE,
    OF_ADAPTIVE_EMBEDDED,
    OF_LN,
    OF_LN_EMBEDDED,
    PAPER_DEPTH,
    RESERVED,
    TWICE,
    Kind,
    Pick,
)
from report.pages import Block, Heading, Items, Table, Text
from report.paper import Value, paper_value
from report.rows import NAMES
from report.verdicts import ABSENT, Verdict

FINE = 1e-3  # smaller numbers are shown with an exponent
CLAIM_COLUMNS = (
    "claim",
    "where",
    "first",
    "second",
    "seeds that agree",
    "difference, nats a token",
    "95% interval",
    "verdict",
    "p",
    "p, Holm",
    "paper's difference",
    "remarks",
)


@dataclass(frozen=True)
class Mean:
    """Over the seeds that have an evaluation. of: all seeds of the sweep."""

    perplexity: float
    sem: float | None
    loss: float
    seeds: int
    of: int

    def __str__(self) -> str:
        sem = "no SEM" if self.sem is None else f"{self.sem:.3f}"
        lacking = f" of {self.of}" if self.of > self.seeds else ""
        return f"{self.perplexity:.3f} ({sem}), {self.seeds}{lacking} seed{'s' * (self.seeds != 1)}"


def mean_of(setting: Setting, kind: Kind) -> Mean | None:
    """None where no seed has an evaluation."""
    trainings = setting.of(kind)
    found = [one.evaluation for one in trainings.values() if one.evaluation is not None]
    if not found:
        return None
    values = [one.perplexity for one in found]
    sem = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    loss = statistics.fmean(one.loss for one in found)
    return Mean(statistics.fmean(values), sem, loss, len(values), len(trainings))


def shown(setting: Setting, kind: Kind) -> str:
    """A cell: the mean, or why there is none."""
    if kind not in setting.kinds:
        return ABSENT
    mean = mean_of(setting, kind)
    return "no seed has an evaluation" if mean is None else str(mean)


def of_paper(value: Value) -> str:
    if value.perplexity is None:
        return ""
    return f"{value.perplexity:.2f}" + (f" ({value.sem:.2f})" if value.sem is not None else "")


# verdicts


def signed(value: float | None) -> str:
    return "" if value is None else f"{value:{'+.4f' if value == 0 or abs(value) >= FINE else '+.1e'}}"


def plus_minus(verdict: Verdict) -> str:
    """The mean difference and half of its interval, in nats."""
    half = signed(verdict.half).removeprefix("+")
    return signed(verdict.mean) + (f" ± {half}" if half else "")


def probability(value: float | None) -> str:
    if value is None:
        return ""
    return "below 0.0001" if value < 1e-4 else f"{value:.4f}"


def _seeds(one: Finding) -> str:
    verdict = one.verdict
    of = f" ({verdict.seeds + len(one.missing)} in the sweep)" if one.missing else ""
    return f"{verdict.agree} of {verdict.seeds}{of}"


def paper_words(paper: tuple[float, float | None] | None) -> str:
    if paper is None:
        return ""
    return signed(paper[0]) + (f" (SEM {paper[1]:.4f})" if paper[1] is not None else "")


def _row(one: Finding) -> list[str]:
    verdict = one.verdict
    interval = "" if verdict.low is None else f"{signed(verdict.low)} to {signed(verdict.high)}"
    alike = f"alike: within ±{one.margin:g}" if one.margin is not None else ""
    remarks = "; ".join(filter(None, (alike, verdict.why, one.remark, *one.missing)))
    return [
        one.claim.text,
        one.claim.where,
        one.first,
        one.second,
        _seeds(one),
        plus_minus(verdict),
        interval,
        verdict.word,
        probability(verdict.p),
        probability(one.corrected),
        paper_words(one.paper),
        remarks,
    ]


def verdict_blocks(tested: Sequence[Finding], settings: Sequence[Setting]) -> list[Block]:
    """A table for each setting that has a tested claim."""
    blocks: list[Block] = []
    for setting in settings:
        own = [_row(one) for one in tested if one.setting is setting and one.claim.where != EXTENSION]
        if own:
            blocks += [Heading(setting.label, 3)] if setting.label else []
            blocks.append(Table(CLAIM_COLUMNS, own))
    return blocks


def extension_rows(tested: Sequence[Finding]) -> list[list[str]]:
    rows = []
    for one in tested:
        if one.claim.where == EXTENSION:
            row = _row(one)
            row[1] = one.setting.label or "-"
            rows.append(row)
    return rows


def absent_block(absent: Sequence[Absent]) -> Table:
    """A line for each claim, with all its sizes."""
    by_claim: dict[str, list[Absent]] = {}
    for one in absent:
        by_claim.setdefault(one.claim.text, []).append(one)
    rows = []
    for text, own in by_claim.items():
        needs = "; ".join(one.models for one in own)
        papers = "; ".join(filter(None, (paper_words(one.paper) for one in own)))
        why = "; ".join(dict.fromkeys(one.why for one in own if one.why))
        rows.append([text, own[0].claim.where, needs, ABSENT, papers, why])
    return Table(("claim", "where", "needs", "verdict", "paper's differences", "remarks"), rows)


# tables of the paper


def table_1(setting: Setting, n: int) -> list[Block]:
    """The three families by layers and repeats."""
    blocks: list[Block] = []
    kinds = [kind for kind in setting.kinds if kind.model in ("base", "but", "cot") and not kind.reserved]
    for depth in sorted({kind.n_layer for kind in kinds}):
        here = sorted({kind.n_repeat for kind in kinds if kind.n_layer == depth})
        if not here:
            continue
        header = ["model", *(f"{depth}x{k}" if k > 1 else f"{depth}" for k in here)]
        rows = []
        for model, name in (("base", "Standard"), ("but", "Block Universal"), ("cot", "CoTFormer")):
            ours, papers = [name], [f"{name}, paper at {PAPER_DEPTH * depth / n:g} layers"]
            for k in here:
                is_none = (model == "base") != (k == 1)
                ours.append("" if is_none else shown(setting, Kind(model, depth, k, False, False)))
                papers.append("" if is_none else of_paper(Pick(model).paper(depth / n, k)))
            rows += [ours, papers] if any(papers[1:]) else [ours]
        blocks.append(Table(header, rows))
    return blocks or [Text(f"Table 1: {ABSENT}.")]


def _depths(setting: Setting, models: Sequence[str]) -> list[tuple[int, int]]:
    """Layers and repeats at which a model with reserved layers is in the setting."""
    kinds = [kind for kind in setting.kinds if kind.model in models and kind.reserved]
    return sorted({(kind.n_layer, kind.n_repeat) for kind in kinds})


def table_2(setting: Setting) -> list[Block]:
    lines = (
        ("CoTFormer", Pick("cot"), ("table2", "cotformer_24x5")),
        ("+ reserved layers", RESERVED, ("table2", "reserved_2_21x5_1")),
        ("+ layer norm (LN-CoTFormer)", LN, ("table2", "layer_norm_2_21x5_1")),
        ("+ depth embedding (Table 4)", LN_EMBEDDED, OF_LN_EMBEDDED),
        ("Standard, twice as many layers", TWICE, ("table2", "standard_48")),
    )
    rows = []
    for depth, repeats in _depths(setting, ("cot", "lncot")):
        for name, pick, place in lines:
            kind = pick.kind(depth, repeats)
            rows.append([name, in_words(kind), shown(setting, kind), of_paper(paper_value(place))])
    header = ("model", "size", "perplexity (SEM over seeds)", "paper, 24x5 or 2+21x5+1")
    return [Table(header, rows)] if rows else [Text(f"Table 2: {ABSENT}.")]


def table_4(setting: Setting) -> list[Block]:
    lines = (
        ("LN-CoTFormer", False, OF_ADAPTIVE, OF_LN),
        ("+ depth embedding", True, OF_ADAPTIVE_EMBEDDED, OF_LN_EMBEDDED),
    )
    blocks: list[Block] = []
    for depth, repeats in _depths(setting, ("lncot", "adm")):
        rows = []
        for name, embedding, adaptive, fixed in lines:
            kinds = [Kind(model, depth, repeats, True, embedding) for model in ("adm", "lncot")]
            ours = [shown(setting, kind) for kind in kinds]
            rows.append([name, *ours])
            rows.append([f"{name}, paper", *(of_paper(paper_value(place)) for place in (adaptive, fixed))])
        blocks.append(
            Table((f"{depth}x{repeats}, reserved layers", "adaptive", f"n_repeat = {repeats}"), rows)
        )
    return blocks or [Text(f"Table 4: {ABSENT}.")]


def section_5(setting: Setting, least: int) -> list[Block]:
    """least: steps of the shortest trainings of these models in the sweep."""
    if setting.steps <= least:
        return [Text(f"Section 5 (1.5 times the steps): not among trainings of {setting.steps:,} steps.")]
    rows = []
    for depth, repeats in _depths(setting, ("lncot", "adm")):
        for model, place in (("lncot", "ln_cotformer"), ("adm", "adaptive_full_compute")):
            kind = Kind(model, depth, repeats, True, True)
            paper = of_paper(paper_value(("section5_60k", place)))
            rows.append([in_words(kind), f"{setting.steps:,}", shown(setting, kind), paper])
    header = ("model", "steps", "perplexity (SEM over seeds)", "paper, 60,000 steps")
    return [Table(header, rows)] if rows else [Text(f"Section 5: {ABSENT}.")]


# what was trained


def models_table(setting: Setting) -> Table:
    """Each model with what it cost."""
    rows = []
    for kind in setting.kinds:
        trainings = list(setting.of(kind).values())
        mean, args = mean_of(setting, kind), trainings[0].args
        assert args is not None, "it is of a setting"
        steps = [one.step_seconds for one in trainings if one.step_seconds is not None]
        parameters = next((one.parameters for one in trainings if one.parameters), None)
        bits = [one.bits for one in trainings if one.bits is not None]
        rows.append(
            [
                trainings[0].name,
                in_words(kind),
                "" if mean is None else f"{mean.loss:.4f}",
                shown(setting, kind),
                f"{statistics.fmean(bits):.4f}" if bits else "",
                "" if parameters is None else f"{parameters:,}",
                f"{_macs(trainings[0]) / 1e9:.4g}",
                f"{1000 * statistics.fmean(steps):.1f}" if steps else "",
                f"{sum(one.seconds for one in trainings):,.0f}",
            ]
        )
    header = (
        "model",
        "short",
        "loss, nats a token",
        "perplexity (SEM over seeds)",
        "bits per byte",
        "parameters",
        "MACs of a sequence x 1e9",
        "ms a step, median",
        "seconds of training, all seeds",
    )
    return Table(header, rows)


def _macs(one: Trained) -> int:
    from models.macs import count_macs

    assert one.args is not None, "it is of a setting"
    return count_macs(one.args, one.args.sequence_length)


def missing_items(trainings: Sequence[Trained]) -> list[str]:
    """A line for each cell that does not count, and for what of a cell could not be used."""
    lines = []
    for one in trainings:
        if one.problem:
            lines.append(f"{one.cell.title}: {one.problem}")
        lines += [f"{one.cell.title}: {note}" for note in one.notes]
    return lines


def routing_blocks(setting: Setting) -> list[Block]:
    """Capacity and threshold routing of each adaptive model at each budget."""
    blocks: list[Block] = []
    header = (
        "routing",
        "budget",
        "MACs a token x 1e6",
        "seconds for 1,000 tokens",
        "loss, nats a token",
        "perplexity",
    )
    for one in setting.trainings:
        rows = []
        for row in one.routing:
            took = "" if row["seconds"] is None else f"{row['seconds']:.4g}"
            budget = row.get("budget")
            share = f"{budget:.3g}" if isinstance(budget, float) else str(budget)
            loss = row["loss"]
            rows.append(
                [
                    row["routing"],
                    share,
                    f"{row['macs'] / 1e6:.4g}",
                    took,
                    f"{loss:.4f}",
                    f"{math.exp(loss):.3f}",
                ]
            )
        if rows:
            blocks += [Heading(f"{one.name}, seed {one.seed}", 4), Table(header, rows)]
    return blocks


NAMES_IN_SHORT = "; ".join(
    f"{short}: {NAMES[model]}"
    for short, model in (
        ("base", "base"),
        ("but", "but_full_depth"),
        ("cot", "cotformer_full_depth"),
        ("lncot", "cotformer_full_depth_lnmid_depthemb"),
    )
)


def short_names() -> Items:
    return Items([NAMES_IN_SHORT, "adm: the adaptive LN-CoTFormer; but_mod: the adaptive LN-block universal"])
