"""The rows of the paper's tables as data, which of them a model is, and what models are called on paper.

    rows_of(args, steps=40000)      # by what the flags say; folder names play no part
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass

import config
from models.variants import ALIASES, VARIANTS
from report.paper import setting

ANY = "any"  # depth embedding: the paper's is not recorded for the row
PAPER_SEEDS = 3

NAMES: dict[str, str] = {
    "base": "Standard",
    "but_full_depth": "Block Universal",
    "cotformer_full_depth": "CoTFormer",
    "cotformer_full_depth_lnmid_depthemb": "LN-CoTFormer",
    ALIASES["adm"]: "Adaptive LN-CoTFormer",
    ALIASES["but_mod"]: "Adaptive LN-Block Universal",
    ALIASES["but_mod"] + "_for_mac_compute": "Adaptive LN-Block Universal",
    "pondernet": "PonderNet",
    "but_halting_freeze_input_on_stop": "Stick breaking",
}


@dataclass(frozen=True)
class Row:
    """One line of a table. `paper`: where its number stands in paper.json; `rerun`: that of the re-run."""

    table: str
    label: str
    model: str
    n_layer: int
    paper: tuple[str, ...]
    n_repeat: int = 1
    n_layer_begin: int = 0
    n_layer_end: int = 0
    steps: int = 40000
    depth_embedding: str | None = None
    exact_embedding: bool = False  # False: a model with another depth embedding is the row all the same, with a remark
    rerun: str | None = None

    def args(self) -> Namespace:
        """The flags of the row's model, as the paper trained it."""
        return config.add_defaults({
            "model": self.model, "n_layer": self.n_layer, "n_layer_begin": self.n_layer_begin, "n_layer_end": self.n_layer_end,
            "n_repeat": self.n_repeat, "n_embd": setting("n_embd"), "n_head": setting("n_head"), "vocab_size": setting("vocab_size"),
            "sequence_length": setting("sequence_length"), "depth_embedding": None if self.depth_embedding == ANY else self.depth_embedding})


def _table1() -> list[Row]:
    rows = [Row("Table 1", f"Standard {n}", "base", n, ("table1", "standard", str(n))) for n in (12, 24, 48)]
    for family, alias in (("block_universal", "but"), ("cotformer", "cot")):
        for n in (12, 24):
            for repeats in (2, 3, 5):
                size = f"{n}x{repeats}"
                rerun = f"cotformer_{size}" if alias == "cot" and (n == 12 or repeats == 5) else None
                rows.append(Row("Table 1", f"{NAMES[ALIASES[alias]]} {size}", ALIASES[alias], n, ("table1", family, size), repeats, rerun=rerun))
    return rows


def _deep(table: str, label: str, alias: str, *paper: str, steps: int = 40000, embedding: str | None = None, exact: bool = False,
          rerun: str | None = None) -> Row:
    """A model of 2 -> 21 x 5 -> 1 layers."""
    return Row(table, label, ALIASES[alias], 24, paper, 5, 2, 1, steps, embedding, exact, rerun)


ROWS: tuple[Row, ...] = (
    *_table1(),
    Row("Table 2", "CoTFormer 24x5", ALIASES["cot"], 24, ("table2", "cotformer_24x5"), 5, rerun="cotformer_24x5"),
    _deep("Table 2", "+ reserved layers, 2+21x5+1", "cot", "table2", "reserved_2_21x5_1", rerun="reserved_40k"),
    _deep("Table 2", "+ layer norm (LN-CoTFormer)", "lncot", "table2", "layer_norm_2_21x5_1", rerun="ln_cotformer_40k"),
    Row("Table 2", "Standard 48", "base", 48, ("table2", "standard_48")),
    _deep("Table 4", "LN-CoTFormer, no depth embedding", "lncot", "table4_depth_embedding", "ln_cotformer", "n_repeat_5", exact=True),
    _deep("Table 4", "LN-CoTFormer, depth embedding", "lncot", "table4_depth_embedding", "plus_depth_embedding", "n_repeat_5",
          embedding="linear_learned", exact=True),
    _deep("Table 4", "Adaptive, no depth embedding", "adm", "table4_depth_embedding", "ln_cotformer", "adaptive", exact=True),
    _deep("Table 4", "Adaptive, depth embedding", "adm", "table4_depth_embedding", "plus_depth_embedding", "adaptive",
          embedding="linear_learned", exact=True),
    _deep("Section 5", "LN-CoTFormer, 60k steps", "lncot", "section5_60k", "ln_cotformer", steps=60000, embedding=ANY,
          rerun="ln_cotformer_60k_extended_from_40k"),
    _deep("Section 5", "Adaptive, full compute, 60k steps", "adm", "section5_60k", "adaptive_full_compute", steps=60000, embedding=ANY,
          rerun="adaptive_60k"),
)
TABLES = tuple(dict.fromkeys(row.table for row in ROWS))


def architecture(args: Namespace) -> tuple[object, ...]:
    """What makes two models one row: variant, layers, repeats and widths."""
    looped = (args.n_layer_begin, args.n_layer_end, args.n_repeat) if VARIANTS[args.model].loop else ()
    return args.model, args.n_layer, *looped, args.n_embd, args.n_head, args.vocab_size


def is_architecture_of(row: Row, args: Namespace) -> bool:
    return architecture(args) == architecture(row.args()) and not (row.exact_embedding and args.depth_embedding != row.depth_embedding)


def rows_of(args: Namespace, steps: int) -> list[Row]:
    """The rows that a model trained for `steps` belongs to: of those with its architecture, the ones with the nearest number of steps."""
    found = [row for row in ROWS if is_architecture_of(row, args)]
    nearest = min((abs(row.steps - steps), row.steps) for row in found)[1] if found else None
    return [row for row in found if row.steps == nearest]


def shape(args: Namespace) -> str:
    """Layers on paper: `24 layers`, `12x5 layers` or `2+21x5+1 layers`."""
    if not VARIANTS[args.model].loop:
        return f"{args.n_layer} layers"
    middle = args.n_layer - args.n_layer_begin - args.n_layer_end
    begin, end = (f"{args.n_layer_begin}+", f"+{args.n_layer_end}") if middle < args.n_layer else ("", "")
    return f"{begin}{middle}x{args.n_repeat}{end} layers"


def title(args: Namespace) -> str:
    return f"{NAMES[args.model]}, {shape(args)}, width {args.n_embd}"
