"""Our perplexities, the paper's and an independent re-run's, row by row, with what differs in the settings.

    python -m report exps iridis                          # searches folders at any depth for
                                                          # eval_summary_*.json and ppl_per_mac.json
    python -m report exps --output thesis --name fidelity # thesis/fidelity.md, .tex (needs booktabs), .json
    python -m report trajectory EXPERIMENT                # a validation curve, with the paper's values
    python -m report compare A B                          # two trainings: flags, weights, losses, jobs;
                                                          # or two evaluations
    python -m report gpu FILE...                          # runs of bench/gpu.sh side by side; LABEL=FILE
    python -m report sweep FILE --output reports          # a sweep (docs/sweeps.md): table, pictures, JSON
    python -m report claims SWEEP.json --output DIR       # the paper's claims, judged by a sweep's models
    python -m report coalescence FOLDER --output DIR      # six checkpoints of coalescence times, a page

EXPERIMENT, A and B are folders or names; a folder of results called `compare` is `./compare`. Prints the
Markdown. Exit code 2 where there is nothing to report on; a damaged file is named, and left out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from config import guarded
from config.schema import Flag
from errors import UserError
from report.command import paths_and_flags

PROG = "python -m report"
OUTPUT = (
    Flag("output", str, "reports", "folder to write to"),
    Flag("name", str, "report", "the files' name, without .md, .tex, .json"),
)
RESULTS = Flag("results", str, None, "root of the experiments (None: where jobs write)")


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


def trajectory(argv: Sequence[str]) -> int:
    prog = f"{PROG} trajectory"
    names, flags = paths_and_flags(
        argv,
        prog,
        "The validation curve of a training beside the paper's and a re-run's values.",
        OUTPUT[:1],
        "EXPERIMENT",
        may_be_names=True,
    )

    def work() -> int:
        from report.trajectory import write

        if len(names) > 1:
            raise UserError(f"one EXPERIMENT, not {len(names)}")
        write(experiment(names[0]), Path(flags["output"]))
        return 0

    return guarded(prog, work)


def compare_two(argv: Sequence[str]) -> int:
    prog = f"{PROG} compare"
    names, _ = paths_and_flags(
        argv, prog, "List the differences of two trainings, or two evaluations.", (), "A B", may_be_names=True
    )

    def work() -> int:
        from report.two_runs import sections

        if len(names) != 2:
            raise UserError(f"give A and B, not {len(names)} of them")
        for section in sections(*map(experiment, names)):
            print(*section, "", sep="\n", flush=True)
        return 0

    return guarded(prog, work)


def experiment(name: Path) -> Path:
    """A folder or file that is there, or the experiment of that name. Raises UserError."""
    from optim.restore import by_name

    return by_name("experiment", str(name))


def gpu(argv: Sequence[str]) -> int:
    prog = f"{PROG} gpu"
    labels: dict[Path, str] = {}
    files, _ = paths_and_flags(argv, prog, "Runs of bench/gpu.sh side by side.", (), "FILE...", labels=labels)

    def work() -> int:
        from report.gpu import compare

        print(*compare(files, labels), sep="\n")
        return 0

    return guarded(prog, work)


def sweep(argv: Sequence[str]) -> int:
    prog = f"{PROG} sweep"
    files, flags = paths_and_flags(
        argv,
        prog,
        "A sweep's settings, mean and SEM over seeds, with pictures.",
        (OUTPUT[0], RESULTS),
        "FILE",
    )

    def work() -> int:
        from report.sweep import write

        if len(files) > 1:
            raise UserError(f"one FILE, not {len(files)}")
        write(files[0], Path(flags["output"]), Path(flags["results"]) if flags["results"] else None)
        return 0

    return guarded(prog, work)


def claims(argv: Sequence[str]) -> int:
    prog = f"{PROG} claims"
    files, flags = paths_and_flags(
        argv,
        prog,
        "The paper's claims, judged by a sweep of its models and seeds.",
        (OUTPUT[0], RESULTS),
        "SWEEP.json",
    )

    def work() -> int:
        from report.claims import write

        if len(files) != 1:
            raise UserError(f"one SWEEP.json, not {len(files)}")
        write(files[0], Path(flags["output"]), Path(flags["results"]) if flags["results"] else None)
        return 0

    return guarded(prog, work)


def coalescence(argv: Sequence[str]) -> int:
    from report.coalescence import main

    return main(argv)


COMMANDS = {
    "trajectory": trajectory,
    "compare": compare_two,
    "gpu": gpu,
    "sweep": sweep,
    "claims": claims,
    "coalescence": coalescence,
}


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    folders, flags = paths_and_flags(
        words,
        PROG,
        "Compare our perplexities with the paper's. Others: trajectory EXPERIMENT, compare A B, gpu FILE,"
        " sweep FILE, claims SWEEP, coalescence FOLDER.",
        OUTPUT,
        "RESULTS_FOLDER...",
    )

    def work() -> int:
        write(folders, Path(flags["output"]), flags["name"])
        return 0

    return guarded(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
