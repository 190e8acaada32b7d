"""Our perplexities beside the paper's and an independent re-run's, row by row, with what differs in the settings.

    python -m report exps iridis                          # folders are searched at any depth for eval_summary_*.json, ppl_per_mac.json
    python -m report exps --output thesis --name fidelity # thesis/fidelity.md, .tex (a table, needs booktabs), .json (everything)

Prints the Markdown. Exit code 2 where there is nothing to report on; a damaged file is named, and left out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from config import guarded
from config.flags import Flag
from errors import UserError
from report.command import paths_and_flags

PROG = "python -m report"
OUTPUT = (
    Flag("output", str, "reports", "folder to write to"),
    Flag("name", str, "report", "the files' name, without .md, .tex, .json"),
)


def write(folders: Sequence[Path], output: Path, name: str) -> None:
    """Collect, compare, write the three files, print the Markdown."""
    from files import write_atomically, write_json
    from report.collect import collect
    from report.compare import compare
    from report.render import as_json, latex, markdown

    if Path(name).name != name:
        raise UserError(f"--name {name}: must be a file name, not a path")
    report = compare(collect(folders))
    for problem in report.problems:
        print(f"warning: {problem}", file=sys.stderr)
    text = markdown(report)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / f"{name}.md", text)
    write_atomically(output / f"{name}.tex", latex(report))
    write_json(output / f"{name}.json", as_json(report))
    print(text)


def main(argv: Sequence[str] | None = None) -> int:
    folders, flags = paths_and_flags(argv, PROG, "Our perplexities beside the paper's.", OUTPUT, "RESULTS_FOLDER...")

    def work() -> int:
        write(folders, Path(flags["output"]), flags["name"])
        return 0

    return guarded(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
