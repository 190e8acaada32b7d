"""The report as Markdown, as a LaTeX table (needs booktabs), and as one JSON object."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import asdict
from typing import Any

from models.variants import VARIANTS
from report.collect import Curve, Evaluation, Point
from report.compare import Beside, Other, Report, Result, warmup_steps
from report.paper import Rerun, paper
from report.rows import NOTES, TABLES, title

COLUMNS = (
    "model",
    "ours",
    "95% interval over texts",
    "SEM over seeds",
    "seeds",
    "paper",
    "paper's SEM over seeds",
    "difference",
    "verdict",
    "re-run",
    "re-run's 95% interval over batches",
)
NOT_EVALUATED = "not evaluated"
SOURCES = """\
Paper: Mohtashami, Pagliardini, Jaggi: CoTFormer, ICLR 2025; perplexity on OpenWebText2, mean of 3 seeds.
Re-run: an independent reproduction with one seed on 2 x L4."""
READING = """\
Values are perplexities on the validation split. *Ours* is one model, or the mean over seeds where several
models differ only in their seed. The 95% interval is of one model over texts such as the validation split;
windows are grouped by document or in long stretches, since neighbours are alike (for several models: the mean
of their ends). The SEM is over seeds; the two kinds of spread are never in one column. The *verdict* says
whether the paper's value is inside our interval over texts, or how far beyond its nearer end it is; *not
comparable*: steps, data or evaluated length differ from the paper's. The re-run's intervals are over batches,
including neighbouring ones; those over batches of 8 and of 32 windows are not comparable."""
IN_PAIRS = """\
Each model is compared with the best one of its table by the difference of their losses on each window of the
same text. This is far sharper than comparing two intervals."""
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def two(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.2f}"


def between(ends: tuple[float, float] | None) -> str:
    if ends is not None and ends[0] == ends[1]:
        return "none: one window"
    return "" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"


def of_rerun(rerun: Rerun | None) -> str:
    """The re-run's interval, and over which batches it is where that is known."""
    if rerun is None:
        return ""
    batches = f" (batches of {rerun.windows_per_batch})" if rerun.windows_per_batch else ""
    return between((rerun.low, rerun.high)) + batches


def cells(result: Result) -> list[str]:
    """A row of the table, in the order of COLUMNS."""
    group, rerun = result.group, result.rerun
    ours = (
        [two(group.perplexity), between(group.interval), two(group.sem), str(len(group.members))]
        if group
        else [NOT_EVALUATED, "", "", ""]
    )
    return [
        result.row.label,
        *ours,
        two(result.paper.perplexity),
        two(result.paper.sem),
        two(result.difference, "+"),
        result.verdict,
        two(rerun.perplexity if rerun else None),
        of_rerun(rerun),
    ]


def escape_markdown(text: str) -> str:
    """For a cell: a folder may be called anything."""
    for character in "\\`*_<>|[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def table(header: Sequence[str], rows: Sequence[Sequence[str]], code: Container[str] = ()) -> list[str]:
    """A Markdown table; an empty cell is a dash, so that nobody looks for what was lost there. `code`:
    columns of commands.
    """
    lines = [[*header], ["---"] * len(header)]
    for row in rows:
        lines.append([_cell(cell, name in code) for name, cell in zip(header, row, strict=True)])
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cell(text: str, is_code: bool) -> str:
    if not text:
        return "-"
    return f"`{text}`" if is_code else escape_markdown(text)


def _all_details(results: Sequence[Result]) -> list[str]:
    """What differs from the paper's setting; rows of which the same is to be said share it."""
    rows_with: dict[tuple[str, ...], list[str]] = {}
    for result in results:
        rows_with.setdefault(tuple(_details(result)), []).append(f"{result.row.table}, {result.row.label}")
    return [
        line for lines, names in rows_with.items() for line in (f"**{'; '.join(names)}**", "", *lines, "")
    ]


def grouping(one: Evaluation) -> str:
    return f"by {one.grouped}" if one.grouped else "windows taken for independent"


def _details(result: Result) -> list[str]:
    """What differs from the paper's setting, and which files the row is made of."""
    assert result.group is not None, "of a row with an evaluation"
    lines = [
        f"- differs: {escape_markdown(line)}" + (" (not comparable)" if line in result.decisive else "")
        for line in (*result.decisive, *result.differs)
    ]
    lines += [f"- {escape_markdown(line)}" for line in result.remarks]
    lines += [
        f"- seed {one.trained.seed}: perplexity {one.perplexity:.4f} ({between(one.interval)},"
        f" {grouping(one)}), `{one.path}`"
        for one in result.group.members
    ]
    return lines


def _beside(each: Beside) -> list[str]:
    found = each.pair
    return [
        each.result.row.table,
        each.result.row.label,
        each.best.row.label,
        f"{found.difference.mean:+.4f}",
        f"{found.difference.low:+.4f} to {found.difference.high:+.4f}",
        f"{found.ratio[0]:.4f}",
        f"{found.n_windows:,}",
        found.difference.clusters.words(),
    ]


def _of_sources(one: Evaluation) -> str:
    """The perplexity on each source of a mixture, in brackets."""
    parts = [f"{name}: {two(value)}" for name, value in one.sources.items()]
    return f" ({', '.join(parts)})" if parts else ""


def _other(other: Other) -> list[str]:
    one, group = other.group.first, other.group
    return [
        title(one.args),
        two(group.perplexity),
        between(group.interval),
        two(group.sem),
        str(len(group.members)),
        f"{one.steps:,}",
        f"{one.n_tokens:,}",
        f"{one.args.dataset}{_of_sources(one)}, T={one.args.sequence_length}",
        two(one.depth),
        other.reason,
        str(one.path),
    ]


def _curve(curve: Curve) -> list[str]:
    steps = "" if curve.steps is None else f", {curve.steps:,} steps"
    lines = [
        f"### {title(curve.args)}{steps}",
        "",
        f"`{curve.path}`, one sequence of {curve.sequence_length} tokens.",
        "",
    ]
    if curve.router and VARIANTS[curve.args.model].routes:
        lines += [
            (
                "Routing by capacity picks tokens by scores over the whole sequence: at reduced compute the"
                " router's points are not those of a causal model."
            ),
            "",
        ]
    rows = [
        (kind, point)
        for kind, points in (("router", curve.router), ("fixed depth", curve.fixed_depth))
        for point in points
    ]
    return [
        *lines,
        *table(
            (
                "budget",
                "MACs x 1e9",
                "perplexity",
                "95% interval over texts",
                "95%, paired with full depth",
                "layers a token",
                "seconds a sequence",
            ),
            [_budget(kind, point) for kind, point in rows],
        ),
        "",
    ]


def _budget(kind: str, point: Point) -> list[str]:
    passes = f"fixed depth, {point.label:g} pass{'es' if point.label > 1 else ''}"
    name = f"router, scores of {point.label:g} and more" if kind == "router" else passes
    work, paired = point.macs / 1e9, point.paired
    of_pairs = "" if paired is None else f"{paired[0]:.3f} to {paired[1]:.3f}"
    return [
        name,
        f"{work:.2f}" if work >= 1 else f"{work:.2g}",
        two(point.perplexity),
        between(point.interval),
        of_pairs,
        two(point.depth),
        "" if point.seconds is None else f"{point.seconds:.4g}",
    ]


def _of_table(results: Sequence[Result], name: str) -> list[str]:
    here = [result for result in results if result.row.table == name]
    if not here:
        return []
    return [f"### {name}", "", *table(COLUMNS, [cells(result) for result in here]), "", *notes(name, here)]


def notes(name: str, results: Sequence[Result]) -> list[str]:
    """The notes below a table: about it, and about the re-run's models in it.

    Ends in an empty line, if there is anything to say.
    """
    lines = [NOTES[name]] if name in NOTES else []
    lines += [
        f"{result.row.label}, re-run: {result.rerun.remark}."
        for result in results
        if result.rerun and result.rerun.remark
    ]
    return [*(f"- {escape_markdown(line)}" for line in lines), ""] if lines else []


def _folded(results: Sequence[Result]) -> list[str]:
    """The rows that have no evaluation, at the end and closed until one clicks."""
    if not results:
        return []
    return [
        "## The paper's other rows",
        "",
        f"<details><summary>{len(results)} rows without an evaluation</summary>",
        "",
        *(line for name in TABLES for line in _of_table(results, name)),
        "</details>",
        "",
    ]


def markdown(report: Report) -> str:
    """The reader's own models first; then how to read them, what differs, and what of the paper is left."""
    evaluated, rest = (
        [result for result in report.results if bool(result.group) == is_ours] for is_ours in (True, False)
    )
    lines = ["# Fidelity report", ""]
    if evaluated:
        lines += [
            "## Models of the paper",
            "",
            *(line for name in TABLES for line in _of_table(evaluated, name)),
        ]
    if report.pairs:
        lines += [
            "## In pairs",
            "",
            IN_PAIRS,
            "",
            *table(
                ("table", "model", "beside", "loss, nats", "95%", "perplexity ratio", "windows", "by"),
                [_beside(each) for each in report.pairs],
            ),
            "",
        ]
    if report.others:
        header = (
            "model",
            "perplexity",
            "95% interval over texts",
            "SEM over seeds",
            "seeds",
            "steps",
            "tokens",
            "data",
            "layers a token",
            "why here",
            "file",
        )
        lines += ["## Other models", "", *table(header, [_other(other) for other in report.others]), ""]
    if report.curves:
        lines += [
            "## Perplexity against compute",
            "",
            *(line for curve in report.curves for line in _curve(curve)),
        ]
    lines += ["## How to read this", "", READING, "", SOURCES, ""]
    if evaluated:
        lines += ["## What differs from the paper's setting", "", *_all_details(evaluated)]
    if report.problems:
        lines += [
            "## Files that could not be used",
            "",
            *(f"- {escape_markdown(line)}" for line in report.problems),
            "",
        ]
    return "\n".join([*lines, *_folded(rest)])


def escape_latex(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)


def _narrow(result: Result) -> list[str]:
    """The cells in fewer words, for the width of a page."""
    narrow = [
        cell.replace(" to ", "--").removesuffix(" the interval").replace(NOT_EVALUATED, "not eval.")
        for cell in cells(result)
    ]
    return [*narrow[:-1], narrow[-1].partition(" (")[0]]


def latex(report: Report) -> str:
    r"""A table* to \input; the document needs \usepackage{booktabs}."""
    lines = [
        "% made by python -m report; needs \\usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering",
        r"\scriptsize",
        r"\setlength{\tabcolsep}{2.5pt}",
        r"\begin{tabular}{l" + "r" * 7 + "lrr}",
        r"\toprule",
        r" & \multicolumn{4}{c}{ours} & \multicolumn{2}{c}{paper} & & & \multicolumn{2}{c}{re-run} \\",
        r"\cmidrule(lr){2-5} \cmidrule(lr){6-7} \cmidrule(lr){10-11}",
        " & ".join(
            map(
                escape_latex,
                (
                    "model",
                    "ppl.",
                    "95% texts",
                    "SEM",
                    "seeds",
                    "ppl.",
                    "SEM",
                    "diff.",
                    "verdict",
                    "ppl.",
                    "95% batches",
                ),
            )
        )
        + r" \\",
    ]
    for name in TABLES:
        lines += [r"\midrule", rf"\multicolumn{{11}}{{l}}{{\emph{{{escape_latex(name)}}}}} \\"]
        lines += [
            " & ".join(escape_latex(cell) or "--" for cell in _narrow(result)) + r" \\"
            for result in report.results
            if result.row.table == name
        ]
    caption = (
        "Validation perplexity beside the paper's. Intervals over texts are of one model, those of the re-run"
        " over batches; standard errors (SEM) are over seeds."
    )
    return "\n".join(
        [
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{escape_latex(caption)}}}",
            r"\end{table*}",
            "",
        ]
    )


def _evaluation(one: Evaluation) -> dict[str, Any]:
    return {
        "file": str(one.path),
        "checkpoint": one.checkpoint,
        "steps": one.steps,
        "seed": one.trained.seed,
        "data_seed": one.trained.data_seed,
        "perplexity": one.perplexity,
        "interval_over_windows": list(one.interval),
        "grouped_by": one.grouped or None,
        "sources": dict(one.sources),
        "loss": one.loss,
        "accuracy": one.accuracy,
        "average_depth": one.depth,
        "tokens": one.n_tokens,
        "parameters": one.parameters,
        "warmup_steps": warmup_steps(one),
        "legs": [leg._asdict() for leg in one.legs],
        "skipped_steps": list(one.skipped),
        "args": vars(one.args),
        "trained_args": vars(one.trained),
    }


def _ours(result: Result) -> dict[str, Any] | None:
    group = result.group
    return (
        None
        if group is None
        else {
            "perplexity": group.perplexity,
            "interval_over_windows": list(group.interval),
            "sem_over_seeds": group.sem,
            "difference": result.difference,
            "verdict": result.verdict,
            "not_comparable": list(result.decisive),
            "differs": list(result.differs),
            "remarks": list(result.remarks),
            "evaluations": [_evaluation(one) for one in group.members],
        }
    )


def _rerun(rerun: Rerun | None) -> dict[str, Any] | None:
    return (
        None
        if rerun is None
        else {
            "perplexity": rerun.perplexity,
            "interval_over_batches": [rerun.low, rerun.high],
            "windows_per_batch": rerun.windows_per_batch,
            "accuracy": rerun.accuracy,
            "remark": rerun.remark,
        }
    )


def as_json(report: Report) -> dict[str, Any]:
    """Everything in the report, unrounded."""
    return {
        "rows": [
            {
                "table": result.row.table,
                "row": result.row.label,
                "ours": _ours(result),
                "paper": {"perplexity": result.paper.perplexity, "sem_over_seeds": result.paper.sem},
                "rerun": _rerun(result.rerun),
            }
            for result in report.results
        ],
        "other_models": [
            {
                "reason": other.reason,
                "model": title(other.group.first.args),
                "perplexity": other.group.perplexity,
                "interval_over_windows": list(other.group.interval),
                "sem_over_seeds": other.group.sem,
                "evaluations": [_evaluation(one) for one in other.group.members],
            }
            for other in report.others
        ],
        "perplexity_against_compute": [
            {
                "file": str(curve.path),
                "checkpoint": curve.checkpoint,
                "steps": curve.steps,
                "model": title(curve.args),
                "sequence_length": curve.sequence_length,
                "router": [asdict(point) for point in curve.router],
                "fixed_depth": [asdict(point) for point in curve.fixed_depth],
            }
            for curve in report.curves
        ],
        "in_pairs": [
            {
                "table": each.result.row.table,
                "row": each.result.row.label,
                "beside": each.best.row.label,
                "loss_difference": each.pair.difference.mean,
                "loss_difference_ci95": [each.pair.difference.low, each.pair.difference.high],
                "n_windows": each.pair.n_windows,
                "clusters": each.pair.difference.clusters.kind,
                "n_clusters": each.pair.difference.clusters.count,
            }
            for each in report.pairs
        ],
        "problems": report.problems,
        "source": paper()["source"],
        "setting": paper()["setting"],
    }
