"""What the paper claims, as data: each claim names two models by their flags and, of the paper, both
perplexities.

    for claim in CLAIMS: claim.first.kind(depth, repeats)       # the model of that depth, among a sweep's

A depth is a number of layers in all. The paper's smallest, 12, stands beside a sweep's smallest standard
model, n layers, and 24 beside 2n.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from models.variants import ALIASES, VARIANTS
from report.paper import Value, paper, paper_value

PAPER_DEPTH = 12  # of the paper, for n
PAPER_REPEATS = (2, 3, 5)
MARGIN = 0.01  # nats: models closer than this are called alike; the paper's alike ones are within 0.003
SAME, MORE = "same", "more"
FAMILIES = {"base": "standard", "but": "block_universal", "cot": "cotformer"}  # of Table 1
MODELS = {**{name: alias for alias, name in ALIASES.items()}, "base": "base"}
MODELS[ALIASES["but_mod"] + "_for_mac_compute"] = "but_mod"


class Kind(NamedTuple):
    """A model, whatever its width. model: an alias, with what is odd. n_repeat: 1 of one without a loop."""

    model: str
    n_layer: int
    n_repeat: int
    reserved: bool
    embedding: bool

    @classmethod
    def of(cls, args: Namespace) -> Kind:
        is_loop = VARIANTS[args.model].loop
        name = MODELS.get(args.model, args.model)
        if VARIANTS[args.model].ln_mid and args.disable_ln_mid:
            name += " without norms between passes"
        return cls(
            name,
            args.n_layer,
            args.n_repeat if is_loop else 1,
            bool(is_loop and args.n_layer_begin + args.n_layer_end),
            args.depth_embedding is not None and VARIANTS[args.model].depth_emb,
        )


@dataclass(frozen=True)
class Pick:
    """A model of a claim. depth: its layers, as a multiple of the claim's."""

    model: str
    depth: int = 1
    reserved: bool = False
    embedding: bool = False

    def kind(self, depth: int, repeats: int) -> Kind:
        is_loop = self.model != "base"
        return Kind(self.model, depth * self.depth, repeats if is_loop else 1, self.reserved, self.embedding)

    def paper(self, ratio: float, repeats: int) -> Value:
        """The value in Table 1, or read off Figure 2; None where the paper has no such model. ratio: of the
        claim's depth to n.
        """
        layers = PAPER_DEPTH * ratio * self.depth
        size = f"{layers:g}" if self.model == "base" else f"{layers:g}x{repeats}"
        for table in ("table1", "figure2_read_off"):
            if size in paper()[table].get(FAMILIES[self.model], {}):
                return paper_value((table, FAMILIES[self.model], size))
        return Value(None, None)


@dataclass(frozen=True)
class Claim:
    """That the first model has the lower loss, or, with a margin, that both are alike.

    repeats: SAME: the same number in both, each that there is; MORE: the first has the next larger number;
    or pairs of numbers. paper: places of both values, where they are not those of Table 1. longer: of the
    trainings with more steps than the shortest. headline: the sweep is to decide it.
    """

    where: str
    text: str
    first: Pick
    second: Pick
    repeats: str | tuple[tuple[int, int], ...] = SAME
    paper: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    margin: float | None = None
    longer: bool = False
    headline: bool = False

    @property
    def has_repeats(self) -> bool:
        return {self.first.model, self.second.model} != {"base"}

    def pairs(self, repeats: Sequence[int]) -> list[tuple[int, int]]:
        """Repeats of the first and of the second model, of those that there are."""
        if not self.has_repeats:
            return [(1, 1)]
        if self.repeats == SAME:
            return [(k, k) for k in repeats]
        if self.repeats == MORE:
            return list(zip(repeats[1:], repeats, strict=False))
        assert not isinstance(self.repeats, str), "SAME and MORE are the only words"
        return list(self.repeats)

    def papers(self, ratio: float, repeats: tuple[int, int]) -> tuple[Value, Value]:
        if self.paper is not None:
            return paper_value(self.paper[0]), paper_value(self.paper[1])
        return self.first.paper(ratio, repeats[0]), self.second.paper(ratio, repeats[1])


def paper_gain(values: tuple[Value, Value]) -> tuple[float, float | None] | None:
    """By how much the paper's first model is better, nats a token, and the standard error over its seeds;
    None where it lacks one of the two.
    """
    first, second = values
    if first.perplexity is None or second.perplexity is None:
        return None
    gain = math.log(second.perplexity / first.perplexity)
    if first.sem is None or second.sem is None:
        return gain, None
    return gain, math.hypot(first.sem / first.perplexity, second.sem / second.perplexity)


LN, LN_EMBEDDED = Pick("lncot", reserved=True), Pick("lncot", reserved=True, embedding=True)
ADAPTIVE, ADAPTIVE_EMBEDDED = Pick("adm", reserved=True), Pick("adm", reserved=True, embedding=True)
RESERVED, COT, BUT = Pick("cot", reserved=True), Pick("cot"), Pick("but")
STANDARD, TWICE = Pick("base"), Pick("base", depth=2)
OF_COT = ("table2", "cotformer_24x5")
OF_RESERVED = ("table2", "reserved_2_21x5_1")
OF_TWICE = ("table2", "standard_48")
OF_BUT = ("table1", "block_universal", "24x5")
OF_LN = ("table4_depth_embedding", "ln_cotformer", "n_repeat_5")
OF_LN_EMBEDDED = ("table4_depth_embedding", "plus_depth_embedding", "n_repeat_5")
OF_ADAPTIVE = ("table4_depth_embedding", "ln_cotformer", "adaptive")
OF_ADAPTIVE_EMBEDDED = ("table4_depth_embedding", "plus_depth_embedding", "adaptive")

CLAIMS: tuple[Claim, ...] = (
    Claim("Table 1", "CoTFormer beats block universal at equal repeats", COT, BUT, headline=True),
    Claim(
        "Table 1",
        "Block universal beats the standard model of as many layers",
        BUT,
        STANDARD,
        headline=True,
    ),
    Claim("Table 1", "CoTFormer beats the standard model of as many layers", COT, STANDARD),
    Claim("Table 1", "Twice as many layers beat the standard model", TWICE, STANDARD),
    Claim("Table 1", "Standard with twice as many layers beats block universal", TWICE, BUT),
    Claim("Table 1", "Standard with twice as many layers beats CoTFormer", TWICE, COT),
    Claim("Table 1", "More repeats help block universal", BUT, BUT, MORE),
    Claim("Table 1", "More repeats help CoTFormer", COT, COT, MORE),
    Claim(
        "Figure 2",
        "CoTFormer with fewer repeats beats block universal with more",
        COT,
        BUT,
        ((3, 5), (5, 6), (5, 15)),
    ),
    Claim(
        "Table 2",
        "Reserving the first and last layers changes little",
        RESERVED,
        COT,
        paper=(OF_RESERVED, OF_COT),
        margin=MARGIN,
    ),
    Claim(
        "Table 2",
        "LN-CoTFormer beats CoTFormer with the same reserved layers",
        LN,
        RESERVED,
        paper=(OF_LN, OF_RESERVED),
    ),
    Claim("Table 2", "LN-CoTFormer beats CoTFormer", LN, COT, paper=(OF_LN, OF_COT)),
    Claim(
        "Table 2",
        "LN-CoTFormer beats the standard model of twice as many layers",
        LN,
        TWICE,
        paper=(OF_LN, OF_TWICE),
    ),
    Claim("Tables 1, 2", "LN-CoTFormer beats block universal", LN, BUT, paper=(OF_LN, OF_BUT)),
    Claim(
        "Tables 2, 4",
        "LN-CoTFormer with depth embedding beats CoTFormer",
        LN_EMBEDDED,
        COT,
        paper=(OF_LN_EMBEDDED, OF_COT),
    ),
    Claim(
        "Tables 1, 4",
        "LN-CoTFormer with depth embedding beats block universal",
        LN_EMBEDDED,
        BUT,
        paper=(OF_LN_EMBEDDED, OF_BUT),
    ),
    Claim(
        "Tables 2, 4",
        "LN-CoTFormer with depth embedding and standard with twice as many layers are alike",
        LN_EMBEDDED,
        TWICE,
        paper=(OF_LN_EMBEDDED, OF_TWICE),
        margin=MARGIN,
    ),
    Claim(
        "Table 4",
        "The depth embedding changes little in LN-CoTFormer",
        LN_EMBEDDED,
        LN,
        paper=(OF_LN_EMBEDDED, OF_LN),
        margin=MARGIN,
    ),
    Claim(
        "Table 4",
        "The depth embedding helps the adaptive model",
        ADAPTIVE_EMBEDDED,
        ADAPTIVE,
        paper=(OF_ADAPTIVE_EMBEDDED, OF_ADAPTIVE),
    ),
    Claim(
        "Table 4",
        "At full compute, LN-CoTFormer beats the adaptive model (no depth embedding)",
        LN,
        ADAPTIVE,
        paper=(OF_LN, OF_ADAPTIVE),
    ),
    Claim(
        "Table 4",
        "At full compute, LN-CoTFormer beats the adaptive model (depth embedding)",
        LN_EMBEDDED,
        ADAPTIVE_EMBEDDED,
        paper=(OF_LN_EMBEDDED, OF_ADAPTIVE_EMBEDDED),
    ),
    Claim(
        "Section 5",
        "At full compute, LN-CoTFormer beats the adaptive model after longer training too",
        LN_EMBEDDED,
        ADAPTIVE_EMBEDDED,
        paper=(("section5_60k", "ln_cotformer"), ("section5_60k", "adaptive_full_compute")),
        longer=True,
    ),
)


@dataclass(frozen=True)
class CurveClaim:
    """That at equal cost one curve of an adaptive model has the lower loss. model, curve: of each side;
    curves are `router` and `fixed_depth` of ppl_per_mac.json, `capacity` and `threshold` of routing.json.
    """

    where: str
    text: str
    first: tuple[str, str]
    second: tuple[str, str]
    cost: str = "macs"


EXTENSION = "extension"
CURVE_CLAIMS: tuple[CurveClaim, ...] = (
    CurveClaim(
        "Figure 4",
        "Routed LN-CoTFormer beats stopping all tokens after the same pass, at equal MACs",
        ("adm", "router"),
        ("adm", "fixed_depth"),
    ),
    CurveClaim(
        "Figure 4",
        "Routed LN-CoTFormer beats routed LN-block universal, at equal MACs",
        ("adm", "router"),
        ("but_mod", "router"),
    ),
    CurveClaim(
        EXTENSION,
        "Capacity routing, which sees later tokens, beats causal threshold routing, at equal MACs",
        ("adm", "capacity"),
        ("adm", "threshold"),
    ),
    CurveClaim(
        EXTENSION,
        "Capacity routing, which sees later tokens, beats causal threshold routing, at equal seconds",
        ("adm", "capacity"),
        ("adm", "threshold"),
        "seconds",
    ),
)
