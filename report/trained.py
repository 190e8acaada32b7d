"""Which models of base-train and ablation-train are trained on a dataset, and which of Table 1 are not.

    python -m report.trained RESULTS_FOLDER --dataset owt2   # folders; on stderr missing rows of Table 1

A model is known by its flags, whatever its size or folder is called. Exit code 2 where none is trained.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from config import guarded
from config.schema import Flag
from data.bins import label
from errors import UserError
from models.variants import VARIANTS
from optim.names import FINAL, SUMMARY
from optim.reader import Record
from report.collect import below, flags
from report.command import paths_and_flags
from report.rows import ROWS, Row, rows_of

PROG = "python -m report.trained"
OPTIONS = (Flag("dataset", str, "owt2", "only models that were trained on it"),)
PACKAGES = ("base-train", "ablation-train")


def kind(args: Namespace) -> tuple[object, ...]:
    """What distinguishes the models of these packages from others, whatever their size."""
    variant = VARIANTS[args.model]
    return (
        args.model,
        *((args.n_layer_begin, args.n_layer_end) if variant.loop else ()),
        args.depth_embedding if variant.depth_emb else None,
    )


KINDS = frozenset(kind(row.args()) for row in ROWS if row.package in PACKAGES)


def trained(folder: Path, dataset: str, problems: list[str]) -> dict[Path, Namespace]:
    """Finished trainings below a folder that have their final checkpoint, and their flags; a damaged file
    is a line in `problems`.
    """
    found = {}
    for path in below([folder], SUMMARY, problems):
        summary = Record(path.parent, problems).summary
        if (
            summary is None
            or not isinstance(summary.get("args"), dict)
            or not (path.parent / FINAL).is_file()
        ):
            continue
        try:
            args = flags(path, summary["args"])
        except UserError as error:
            problems.append(str(error))
            continue
        if label(args.dataset) == label(dataset) and kind(args) in KINDS:
            found[path.parent] = args
    return found


def is_of(row: Row, args: Namespace) -> bool:
    """Whether a training with these flags is the row's."""
    return row in rows_of(args, args.iterations) and row.steps == args.iterations


def missing(trainings: Sequence[Namespace]) -> list[str]:
    """The rows of Table 1 that no training is of."""
    return [
        row.label
        for row in ROWS
        if row.table == "Table 1" and not any(is_of(row, args) for args in trainings)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    folders, options = paths_and_flags(
        argv, PROG, "Which models of the paper's tables are trained.", OPTIONS, "RESULTS_FOLDER"
    )

    def work() -> int:
        problems: list[str] = []
        found = {
            path: args
            for folder in folders
            for path, args in trained(folder, options["dataset"], problems).items()
        }
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        if not found:
            raise UserError(
                f"no model of {' or '.join(PACKAGES)} is trained on {options['dataset']} below"
                f" {', '.join(map(str, folders))}; train one (bash iridis/base-train/job.sh), or name one:"
                " --checkpoint DIR_OR_FILE"
            )
        absent = missing(list(found.values()))
        if absent:
            print(f"note: not trained of Table 1: {', '.join(absent)}", file=sys.stderr)
        print(*found, sep="\n")
        return 0

    return guarded(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
