"""The rows of the paper's tables as data, what trains them, which of them a model is, and what models are
called on paper.

    rows_of(args, steps=40000)      # by what the flags say; folder names play no part
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import config
from models.variants import ALIASES, VARIANTS
from report.paper import paper_value, setting

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
    """One line of a table. job: what trains it: settings for the environment, the package, its words.

    paper: the key of its number in paper.json, empty where the paper gives none; rerun: that of the re-run.
    more: flags of the model that are not the defaults, in addition to those with a field.
    """

    table: str
    label: str
    job: str
    model: str
    n_layer: int
    paper: tuple[str, ...]
    n_repeat: int = 1
    n_layer_begin: int = 0
    n_layer_end: int = 0
    steps: int = 40000
    depth_embedding: str | None = None
    # False: a model with another depth embedding is the row all the same, with a remark
    exact_embedding: bool = False
    rerun: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def args(self) -> Namespace:
        """The flags of the row's model, as the paper trained it."""
        return config.add_defaults(
            {
                "model": self.model,
                "n_layer": self.n_layer,
                "n_layer_begin": self.n_layer_begin,
                "n_layer_end": self.n_layer_end,
                "n_repeat": self.n_repeat,
                "n_embd": setting("n_embd"),
                "n_head": setting("n_head"),
                "vocab_size": setting("vocab_size"),
                "sequence_length": setting("sequence_length"),
                "depth_embedding": None if self.depth_embedding == ANY else self.depth_embedding,
                **self.more,
            }
        )

    @property
    def package(self) -> str:
        """The folder of iridis/ that trains it."""
        return next(word for word in self.job.split() if "=" not in word)

    @property
    def command(self) -> str:
        return self.job.replace(self.package, f"bash iridis/{self.package}/job.sh", 1)


def _base(table: str, alias: str, size: str, *paper: str, rerun: str | None = None) -> Row:
    """A model of base-train: `base` and its layers, or `but` or `cot` and its layers x repeats."""
    layers, _, repeats = size.partition("x")
    model = ALIASES.get(alias, alias)
    return Row(
        table,
        f"{NAMES[model]} {size}",
        f"base-train {alias} {size}",
        model,
        int(layers),
        paper,
        int(repeats or 1),
        rerun=rerun,
    )


def _table1() -> list[Row]:
    rows = [_base("Table 1", "base", size, "table1", "standard", size) for size in ("12", "24", "48")]
    for family, alias in (("block_universal", "but"), ("cotformer", "cot")):
        for size in ("12x2", "12x3", "12x5", "24x2", "24x3", "24x5"):
            rows.append(
                _base(
                    "Table 1",
                    alias,
                    size,
                    "table1",
                    family,
                    size,
                    rerun=f"cotformer_{size}" if alias == "cot" else None,
                )
            )
    return rows


def _deep(
    table: str,
    label: str,
    job: str,
    alias: str,
    *paper: str,
    steps: int = 40000,
    embedding: str | None = None,
    exact: bool = False,
    rerun: str | None = None,
    **more: Any,
) -> Row:
    """A model of 2 -> 21 x 5 -> 1 layers."""
    return Row(
        table, label, job, ALIASES.get(alias, alias), 24, paper, 5, 2, 1, steps, embedding, exact, rerun, more
    )


ROWS: tuple[Row, ...] = (
    *_table1(),
    _base("Figure 2", "but", "12x6", "figure2_read_off", "block_universal", "12x6"),
    _base("Figure 2", "but", "12x15", "figure2_read_off", "block_universal", "12x15"),
    _base("Figure 2", "cot", "12x15", rerun="cotformer_12x15"),
    _base("Table 2", "cot", "24x5", "table2", "cotformer_24x5", rerun="cotformer_24x5"),
    _deep(
        "Table 2",
        "+ reserved layers, 2+21x5+1",
        "cot-res-train",
        "cot",
        "table2",
        "reserved_2_21x5_1",
        rerun="reserved_40k",
    ),
    _deep(
        "Table 2",
        "+ layer norm (LN-CoTFormer)",
        "ablation-train lncot-no-embedding",
        "lncot",
        "table2",
        "layer_norm_2_21x5_1",
        rerun="ln_cotformer_40k",
    ),
    _base("Table 2", "base", "48", "table2", "standard_48"),
    _deep(
        "Table 4",
        "LN-CoTFormer, no depth embedding",
        "ablation-train lncot-no-embedding",
        "lncot",
        "table4_depth_embedding",
        "ln_cotformer",
        "n_repeat_5",
        exact=True,
    ),
    _deep(
        "Table 4",
        "LN-CoTFormer, depth embedding",
        "lncot-train",
        "lncot",
        "table4_depth_embedding",
        "plus_depth_embedding",
        "n_repeat_5",
        embedding="linear_learned",
        exact=True,
    ),
    _deep(
        "Table 4",
        "Adaptive, no depth embedding",
        "ablation-train adm-no-embedding",
        "adm",
        "table4_depth_embedding",
        "ln_cotformer",
        "adaptive",
        exact=True,
    ),
    _deep(
        "Table 4",
        "Adaptive, depth embedding",
        "ITERATIONS=40000 adm-train --name adm_40k",
        "adm",
        "table4_depth_embedding",
        "plus_depth_embedding",
        "adaptive",
        embedding="linear_learned",
        exact=True,
    ),
    _deep(
        "Table 5",
        "Stick breaking",
        "ablation-train stick-breaking",
        "but_halting",
        "table5_adaptive_methods_10k",
        "stick_breaking",
        steps=10000,
        depth_random_method="sb_act",
    ),
    _deep(
        "Table 5",
        "PonderNet",
        "ablation-train pondernet",
        "pondernet",
        "table5_adaptive_methods_10k",
        "pondernet",
        steps=10000,
        ponder_lambda_p=0.4,
        ponder_kl_div_loss_weight=0.2,
    ),
    _deep(
        "Table 5",
        "Mixture of Repeats",
        "ablation-train mixture-of-repeats",
        "but_mod",
        "table5_adaptive_methods_10k",
        "mixture_of_repeats",
        steps=10000,
        disable_ln_mid=True,
    ),
    _base("Table 6", "base", "24", "table6_pause_tokens", "standard_24"),
    _base("Table 6", "but", "24x5", "table6_pause_tokens", "block_universal_24"),
    _base("Table 6", "cot", "24x5", "table6_pause_tokens", "cotformer_24", rerun="cotformer_24x5"),
    _base("Table 6", "base", "48", "table6_pause_tokens", "standard_48"),
    _deep(
        "Section 5",
        "LN-CoTFormer, 60k steps",
        "ITERATIONS=60000 lncot-train --name lncot_60k",
        "lncot",
        "section5_60k",
        "ln_cotformer",
        steps=60000,
        embedding=ANY,
        rerun="ln_cotformer_60k_extended_from_40k",
    ),
    _deep(
        "Section 5",
        "Adaptive, full compute, 60k steps",
        "adm-train",
        "adm",
        "section5_60k",
        "adaptive_full_compute",
        steps=60000,
        embedding=ANY,
        rerun="adaptive_60k",
    ),
)
TABLES = tuple(dict.fromkeys(row.table for row in ROWS))
NOTES: dict[str, str] = {
    "Figure 2": "The paper's values are read off the figure.",
    "Table 2": (
        "lncot-train adds the depth embedding (Table 4); its model is in the row of the LN-CoTFormer"
        " nevertheless, with a remark."
    ),
    "Table 5": (
        "10,000 steps. The loss of stick breaking depends on how a batch is cut: 4 micro-batches of 32"
        " sequences, as published."
    ),
    "Table 6": (
        "The paper's 24 layers with pause tokens"
        f" ({paper_value(('table6_pause_tokens', 'pause_tokens_24')).perplexity}) are no model here."
    ),
    "Section 5": (
        "Whether the paper's models have a depth embedding is not recorded; those of the packages have."
    ),
}


def architecture(args: Namespace) -> tuple[object, ...]:
    """Two models with the same value are the same row: variant, layers, repeats and widths."""
    looped = (args.n_layer_begin, args.n_layer_end, args.n_repeat) if VARIANTS[args.model].loop else ()
    return args.model, args.n_layer, *looped, args.n_embd, args.n_head, args.vocab_size


def is_architecture_of(row: Row, args: Namespace) -> bool:
    return architecture(args) == architecture(row.args()) and not (
        row.exact_embedding and args.depth_embedding != row.depth_embedding
    )


def rows_of(args: Namespace, steps: int) -> list[Row]:
    """The rows that a model trained for `steps` belongs to: of those with its architecture, the ones with
    the nearest number of steps.
    """
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
