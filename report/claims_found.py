"""The claims of `report.claims_list`, judged by the trainings of a sweep.

found = findings(settings_of(read_cells(sweep)))
found.tested, found.absent                      # what the sweep says; what it holds no models for
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from report.claims_cells import Points, Setting, Trained, same_text
from report.claims_list import (
    CLAIMS,
    CURVE_CLAIMS,
    EXTENSION,
    PAPER_DEPTH,
    PAPER_REPEATS,
    Claim,
    CurveClaim,
    Kind,
    paper_gain,
)
from report.verdicts import AGAINST, CONFIRMED, UNDECIDED, Verdict, holm, judge


@dataclass
class Finding:
    """A claim about two models of one setting. missing: seeds that do not count, and why. paper: how much
    better the paper's first model is, nats a token, and its standard error. corrected: p of the verdict, for
    the number of claims. spread: of a claim about curves, where they are compared.
    """

    claim: Claim | CurveClaim
    setting: Setting
    first: str
    second: str
    verdict: Verdict
    missing: list[str] = field(default_factory=list)
    paper: tuple[float, float | None] | None = None
    corrected: float | None = None
    remark: str = ""

    @property
    def margin(self) -> float | None:
        return self.claim.margin if isinstance(self.claim, Claim) else None


@dataclass(frozen=True)
class Absent:
    """A claim for which the sweep lacks a model. models: at which sizes; why: more than that."""

    claim: Claim | CurveClaim
    models: str
    paper: tuple[float, float | None] | None = None
    why: str = ""


@dataclass(frozen=True)
class Findings:
    tested: list[Finding]
    absent: list[Absent]

    def count(self, word: str) -> int:
        return sum(one.verdict.word == word for one in self.tested)


def smallest(settings: Sequence[Setting]) -> int | None:
    """n: layers of the smallest standard model; of the smallest model where there is no standard one."""
    kinds = [kind for setting in settings for kind in setting.kinds]
    standard = [kind.n_layer for kind in kinds if kind.model == "base"]
    return min(standard or [kind.n_layer for kind in kinds], default=None)


def least_steps(settings: Sequence[Setting], *models: str) -> int:
    """Of the shortest trainings of these models, as far as a setting has all of them; 0: none has."""
    steps = []
    for setting in settings:
        if {kind.model for kind in setting.kinds}.issuperset(models):
            steps.append(setting.steps)
    return min(steps, default=0)


def findings(settings: Sequence[Setting]) -> Findings:
    n = smallest(settings)
    tested: list[Finding] = []
    absent: list[Absent] = []
    for claim in CLAIMS:
        own, lacking = _of_claim(claim, settings, n)
        tested += own
        absent += lacking
    for curve in CURVE_CLAIMS:
        judged = [one for setting in settings for one in _of_curves(curve, setting)]
        tested += judged
        if not judged:
            absent.append(Absent(curve, " and ".join(dict.fromkeys((curve.first[0], curve.second[0])))))
    decided = [one for one in tested if one.verdict.p is not None]
    corrected = holm([one.verdict.p or 0.0 for one in decided])
    for finding, p in zip(decided, corrected, strict=True):
        finding.corrected = p
    return Findings(tested, absent)


def _of_claim(claim: Claim, settings: Sequence[Setting], n: int | None) -> tuple[list[Finding], list[Absent]]:
    """At every depth and number of repeats that the sweep or the paper has."""
    if n is None:
        return [], [Absent(claim, "all")]
    kinds = [kind for setting in settings for kind in setting.kinds]
    depths = sorted({kind.n_layer for kind in kinds})
    repeats = sorted({kind.n_repeat for kind in kinds if kind.n_repeat > 1})
    tested: list[Finding] = []
    for depth in depths:
        for pair in claim.pairs(repeats):
            for setting in _settings_for(claim, settings):
                finding = _judged(claim, setting, depth, pair, depth / n)
                if finding is not None:
                    tested.append(finding)
    places = {(one.first, one.second) for one in tested}
    absent = []
    for ratio, pair in _of_paper(claim):
        first, second = (
            pick.kind(round(n * ratio), k) for pick, k in zip((claim.first, claim.second), pair, strict=True)
        )
        if claim.paper is not None and tested:
            continue
        if (in_words(first), in_words(second)) not in places:
            why = _otherwise(first, second, claim, settings)
            absent.append(
                Absent(
                    claim,
                    f"{in_words(first)}, {in_words(second)}",
                    paper_gain(claim.papers(ratio, pair)),
                    why,
                )
            )
    return tested, absent


def _settings_for(claim: Claim, settings: Sequence[Setting]) -> list[Setting]:
    """Those with more steps than the shortest of both models, for a claim about longer training, and the
    shortest for the same claim without that; else all.
    """
    least = least_steps(settings, claim.first.model, claim.second.model)
    longer = {(each.first, each.second) for each in CLAIMS if each.longer}
    if claim.longer:
        return [setting for setting in settings if setting.steps > least]
    if (claim.first, claim.second) in longer:
        return [setting for setting in settings if setting.steps == least]
    return list(settings)


def _of_paper(claim: Claim) -> list[tuple[int, tuple[int, int]]]:
    """Depths, as multiples of n, and repeats at which the paper has both values."""
    if claim.paper is not None:
        return [(1, (PAPER_REPEATS[-1], PAPER_REPEATS[-1]))]
    found = []
    for ratio in (1, 2):
        for pair in claim.pairs(PAPER_REPEATS):
            if paper_gain(claim.papers(ratio, pair)) is not None:
                found.append((ratio, pair))
    return found


def _otherwise(first: Kind, second: Kind, claim: Claim, settings: Sequence[Setting]) -> str:
    """Where both models are in the sweep, but in no setting together."""
    able = _settings_for(claim, settings)
    both = [any(kind in setting.kinds for setting in able) for kind in (first, second)]
    return "both are in the sweep, but trained under different settings" if all(both) else ""


def in_words(kind: Kind) -> str:
    """`cot 12x3 reserved embedding`: as short as a list needs it."""
    size = f"{kind.n_layer}" if kind.model == "base" else f"{kind.n_layer}x{kind.n_repeat}"
    marks = " reserved" * kind.reserved + " depth embedding" * kind.embedding
    return f"{kind.model} {size}{marks}"


def _judged(
    claim: Claim, setting: Setting, depth: int, repeats: tuple[int, int], ratio: float
) -> Finding | None:
    """None where the setting lacks one of the models."""
    one, other = claim.first.kind(depth, repeats[0]), claim.second.kind(depth, repeats[1])
    first, second = setting.of(one), setting.of(other)
    if not first or not second:
        return None
    gains, missing = {}, []
    for seed in sorted({*first, *second}):
        gain, why = _gain(first.get(seed), second.get(seed))
        if gain is None:
            missing.append(f"seed {seed}: {why}")
        else:
            gains[seed] = gain
    # the paper's depths are n and 2n; a table of its own stands beside any depth
    has_paper = claim.paper is not None or ratio * PAPER_DEPTH in (PAPER_DEPTH, 2 * PAPER_DEPTH)
    papers = paper_gain(claim.papers(ratio, repeats)) if has_paper else None
    verdict = judge(gains, claim.margin)
    return Finding(claim, setting, in_words(one), in_words(other), verdict, missing, papers)


def _gain(first: Trained | None, second: Trained | None) -> tuple[float | None, str]:
    """By how much the first is better, nats a token; or why that is not known."""
    for one in (first, second):
        if one is None:
            return None, "only one of the two models has it"
        if one.evaluation is None:
            return None, f"{one.name}: {one.problem}"
    assert first is not None and second is not None, "checked above"
    assert first.evaluation is not None and second.evaluation is not None, "checked above"
    if first.evaluation.n_tokens != second.evaluation.n_tokens:
        return None, "evaluated on different numbers of tokens"
    if not same_text(first, second):
        return None, "evaluated on different texts"
    return second.evaluation.loss - first.evaluation.loss, ""


# curves


def common_range(first: Points, second: Points) -> tuple[float, float] | None:
    """Costs that both curves have; None where there are none."""
    if not first or not second:
        return None
    low, high = max(first[0][0], second[0][0]), min(first[-1][0], second[-1][0])
    return (low, high) if low < high else None


def at(points: Points, cost: float) -> float:
    """The loss at a cost, on the line between the points beside it. points: by cost."""
    before = max((point for point in points if point[0] <= cost), key=lambda point: point[0])
    after = min((point for point in points if point[0] >= cost), key=lambda point: point[0])
    if before[0] == after[0]:
        equal = [loss for own, loss in points if own == before[0]]
        return sum(equal) / len(equal)
    share = (cost - before[0]) / (after[0] - before[0])
    return before[1] + share * (after[1] - before[1])


def mean_gain(first: Points, second: Points, between: tuple[float, float]) -> float:
    """By how much the first curve is lower, on average over a range of costs that both have."""
    inner = {cost for cost, _ in (*first, *second) if between[0] < cost < between[1]}
    costs = sorted({*between, *inner})
    gains = [at(second, cost) - at(first, cost) for cost in costs]
    area = 0.0
    for k in range(1, len(costs)):
        area += (costs[k] - costs[k - 1]) * (gains[k] + gains[k - 1]) / 2
    return area / (between[1] - between[0])


def _of_curves(claim: CurveClaim, setting: Setting) -> list[Finding]:
    """For each pair of models of one shape that the setting has."""
    found = []
    for kind in setting.kinds:
        other = kind._replace(model=claim.second[0])
        if kind.model == claim.first[0] and other in setting.kinds:
            found.append(_judged_curves(claim, setting, kind, other))
    return found


def _judged_curves(claim: CurveClaim, setting: Setting, kind: Kind, other: Kind) -> Finding:
    firsts, seconds = setting.of(kind), setting.of(other)
    gains: dict[int, float] = {}
    missing: list[str] = []
    ranges: list[tuple[float, float]] = []
    for seed in sorted({*firsts, *seconds}):
        first = _points(firsts, seed, claim.first[1], claim.cost)
        second = _points(seconds, seed, claim.second[1], claim.cost)
        between = common_range(first, second)
        if between is not None:
            gains[seed] = mean_gain(first, second, between)
            ranges.append(between)
        elif first and second:
            missing.append(f"seed {seed}: the curves have no common range of {claim.cost}")
        else:
            missing.append(f"seed {seed}: {_unmeasured(firsts.get(seed), seconds.get(seed))}")
    one, two = f"{in_words(kind)} {claim.first[1]}", f"{in_words(other)} {claim.second[1]}"
    return Finding(
        claim, setting, one, two, judge(gains), missing, remark=_range_in_words(ranges, claim.cost)
    )


def _unmeasured(first: Trained | None, second: Trained | None) -> str:
    for one in (first, second):
        if one is None:
            return "only one of the two models has it"
        if one.state != "finished":
            return f"{one.name}: {one.state}"
    return "not measured at several costs"


def _points(trainings: Mapping[int, Trained], seed: int, curve: str, cost: str) -> Points:
    one = trainings.get(seed)
    return [] if one is None else one.curves.get((curve, cost), [])


def _range_in_words(ranges: Sequence[tuple[float, float]], cost: str) -> str:
    if not ranges:
        return "no common range"
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if cost == "macs":
        return f"between {low / 1e6:.3g} and {high / 1e6:.3g} million MACs a token"
    return f"between {low:.3g} and {high:.3g} seconds for 1,000 tokens"


def counts(found: Findings) -> str:
    """A sentence."""
    extensions = sum(one.claim.where == EXTENSION for one in found.tested)
    words = [
        f"{len(found.tested)} comparisons tested ({extensions} of them extensions)",
        f"{found.count(CONFIRMED)} confirmed",
        f"{found.count(AGAINST)} not confirmed (the data say the opposite)",
        f"{found.count(UNDECIDED)} undecided",
    ]
    return f"{', '.join(words)}. {len(found.absent)} comparisons are not in this sweep."
