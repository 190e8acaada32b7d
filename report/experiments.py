"""The page of the paper's experiments: what trains each row of its tables, a forecast of its GPU hours, and
its values beside the re-run's.

    python -m report.experiments --output docs/experiments.md      # the page of the repository
    python -m report.experiments exps iridis                       # with our own values; prints it
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config import guarded
from config.schema import Flag
from files import write_atomically
from models.variants import ALIASES, VARIANTS
from report.command import paths_and_flags
from report.compare import Result, compare
from report.paper import paper, paper_value, rerun_value, setting
from report.render import between, notes, of_rerun, table, two
from report.rows import ANY, ROWS, TABLES, Row

PROG = "python -m report.experiments"
OUTPUT = (Flag("output", str, None, "file to write (None: print it)"),)
COLUMNS = (
    "model",
    "command",
    "main.py",
    "steps",
    "L4 hours",
    "paper",
    "re-run",
    "re-run's 95% interval",
    "ours",
    "95% interval over texts",
)
CODE = ("command", "main.py")
GPU = "L4"
# trainings of the re-run whose time is known, which set the utilisation of the models like them
TIMED = {"fixed": "ln_cotformer_40k", "routed": "adaptive_60k"}
SHAPE = ("n_layer", "n_layer_begin", "n_layer_end", "n_repeat")


def flag_words(row: Row) -> str:
    """The flags of main.py that make the row's model; one whose depth embedding is not recorded has that
    of the packages.
    """
    args = row.args()
    shape = SHAPE if VARIANTS[row.model].loop else SHAPE[:1]
    values: dict[str, Any] = {name: getattr(args, name) for name in shape if getattr(args, name) != 0}
    if row.depth_embedding is not None:
        values["depth_embedding"] = "linear_learned" if row.depth_embedding == ANY else row.depth_embedding
    alias = next((short for short, name in ALIASES.items() if name == row.model), row.model)
    return " ".join(
        [f"--model {alias}", *(_flag(name, value) for name, value in {**values, **row.more}.items())]
    )


def _flag(name: str, value: Any) -> str:
    return f"--{name}" if value is True else f"--{name} {value}"


def training_flops(row: Row) -> float:
    """Useful floating-point operations of the row's training."""
    from models.macs import training_flops_per_token
    from models.settings import ModelSettings

    tokens = row.steps * setting("effective_batch") * setting("sequence_length")
    return training_flops_per_token(ModelSettings.from_args(row.args())) * tokens


def like(row: Row) -> str:
    """Which of the timed trainings a row is like."""
    return "routed" if VARIANTS[row.model].routes else "fixed"


def utilisation(kind: str) -> float:
    """Share of the GPU's peak that the re-run's training of this kind reached, on 2 GPUs."""
    from optim.reporting import PEAK_FLOPS

    row = next(row for row in ROWS if row.rerun == TIMED[kind] and like(row) == kind)
    hours = 2 * paper()["rerun_on_l4"]["wall_hours_2xL4"][TIMED[kind]]
    return training_flops(row) / (hours * 3600 * PEAK_FLOPS[GPU])


def gpu_hours(row: Row) -> float:
    """A forecast, at the utilisation of the most similar training of the re-run."""
    from optim.reporting import PEAK_FLOPS

    return training_flops(row) / (3600 * PEAK_FLOPS[GPU] * utilisation(like(row)))


def head() -> list[str]:
    from optim.reporting import PEAK_FLOPS

    hours, values = paper()["rerun_on_l4"]["wall_hours_2xL4"], paper()["setting"]
    total = sum({row.command: gpu_hours(row) for row in ROWS}.values())
    paragraphs = [
        (
            "Made by `python -m report.experiments --output docs/experiments.md`; with folders of results it"
            " also shows our own values."
        ),
        (
            "One line for each model of the paper's tables. All trainings share the settings in"
            f" `iridis/train.sh`: width {values['n_embd']}, {values['n_head']} heads,"
            f" {values['sequence_length']} tokens, {values['effective_batch']} sequences a step, AdamW at"
            f" {values['lr']:g}, warm-up over the first fifth of the steps. Values are perplexities on the"
            " validation split of OpenWebText2: the paper's are means of 3 seeds, the re-run's are of one"
            " seed and its intervals over batches. Evaluate by `eval-base` (Tables 1, 4, 5, 6 and Figures 2,"
            " 3), `eval-cot-res`, `eval-lncot` and `eval-adm`; the whole split took the re-run about"
            f" {paper()['rerun_on_l4']['evaluation_minutes_L4']} minutes a model on an L4."
        ),
        (
            "**L4 hours** are a forecast for one GPU (two take half as long). It assumes 6 floating-point"
            " operations a token for each of the model's multiply-accumulates (2 each, and the backward pass"
            " costs twice the forward pass; causal attention only, the head on every token; routed models at"
            " the expected shares of their random draws; PonderNet's exits as one; no recomputation), a peak"
            f" of {PEAK_FLOPS[GPU] / 1e12:.0f} TFLOP/s in bfloat16, and the utilisation that the re-run"
            f" reached on 2 x L4: {utilisation('fixed'):.0%} by the LN-CoTFormer in {hours[TIMED['fixed']]}"
            f" hours for models of fixed depth and those that halt, {utilisation('routed'):.0%} by the"
            f" adaptive one in {hours[TIMED['routed']]} hours for those with routers. The trainings of this"
            f" page, each counted once, take {total:,.0f} hours."
        ),
    ]
    return ["# Experiments", "", *(line for text in paragraphs for line in (*textwrap.wrap(text, 130), ""))]


def cells(result: Result) -> list[str]:
    row, rerun, group = result.row, result.rerun, result.group
    ours = ["", ""] if group is None else [two(group.perplexity), between(group.interval)]
    if result.decisive:
        ours[1] = f"{ours[1]} (not comparable: {'; '.join(result.decisive)})"
    return [
        row.label,
        row.command,
        flag_words(row),
        f"{row.steps:,}",
        f"{gpu_hours(row):.0f}",
        two(result.paper.perplexity),
        two(rerun.perplexity if rerun else None),
        of_rerun(rerun),
        *ours,
    ]


def markdown(folders: Sequence[Path] = ()) -> str:
    """The page; with our values where folders of results are given.

    Raises UserError where these hold none.
    """
    from report.collect import collect

    results = (
        compare(collect(folders)).results
        if folders
        else [Result(row, paper_value(row.paper), rerun_value(row.rerun)) for row in ROWS]
    )
    lines = head()
    for name in TABLES:
        here = [result for result in results if result.row.table == name]
        lines += [
            f"## {name}",
            "",
            *table(COLUMNS, [cells(result) for result in here], CODE),
            "",
            *notes(name, here),
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    folders, options = paths_and_flags(
        argv, PROG, "The paper's experiments as a page.", OUTPUT, "[RESULTS_FOLDER...]", needed=False
    )

    def work() -> int:
        text = markdown(folders)
        if options["output"] is None:
            print(text, end="")
        else:
            write_atomically(Path(options["output"]), text)
        return 0

    return guarded(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
