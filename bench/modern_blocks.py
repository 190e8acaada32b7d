"""Modern blocks trained by Muon against published blocks trained by AdamW: a small LN-CoTFormer of each, at
equal tokens and at equal multiply-accumulates (MACs).

    python bench/modern_blocks.py --out DIR [--jobs 2]        # trains what is missing, then writes the report
    python bench/modern_blocks.py --out DIR --only sweep      # or seeds, or report

A sweep of as many rates for each cell of CELLS, on a seed of its own; then a few seeds at the best rate; then
the cheaper of the first two cells again, for as many more steps as its cheaper steps pay for. Each training
is an ordinary experiment of main.py below DIR/trainings. Start the script again after any stop: finished
ones are skipped, the others resume. The report is DIR/modern-blocks.json (all trainings), .md (tables),
.png and .pdf.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import multiprocessing
import os
import signal
import statistics
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import config
from config import Arguments, guarded
from errors import UserError
from files import write_atomically
from processes import die_with

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCE, CHALLENGER = "published-adamw", "modern-muon"  # the two that are compared at equal MACs
BY_PASS = "modern-muon-pass"
STEM = "modern-blocks"
# Student's t of 95% intervals, by degrees of freedom
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}
ADAMW = {"opt": "adamw"}
MUON = {"opt": "muon"}
PUBLISHED = {"block": "published"}
MODERN = {"block": "modern", "window_pattern": "SSSL", "depth_index": "layer"}
ADAMW_RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
MUON_RATES = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
# rates of the recipe gpt at a width of 64 over its rate of matrices: 0.3, 0.004 and 0.5 over 0.02, the first
# two times (64 / 768)^-0.5
OF_GPT = {"embedding_lr": 52.0, "unembedding_lr": 0.69, "scalar_lr": 25.0}


@dataclass(frozen=True)
class Cell:
    """flags: of main.py. rates: of the sweep (--lr). others: rates of other parameters, as multiples of it.

    rate_of: the cell whose best rate is taken, for one without a sweep of its own.
    """

    label: str
    flags: Mapping[str, Any]
    rates: tuple[float, ...]
    others: Mapping[str, float] = field(default_factory=dict)
    rate_of: str | None = None


CELLS = {
    REFERENCE: Cell("published blocks, AdamW", PUBLISHED | ADAMW, ADAMW_RATES),
    CHALLENGER: Cell("modern blocks by layer, Muon", MODERN | MUON, MUON_RATES, OF_GPT),
    BY_PASS: Cell(
        "modern blocks by pass, Muon",
        MODERN | MUON | {"depth_index": "pass"},
        MUON_RATES,
        OF_GPT,
        rate_of=CHALLENGER,
    ),
    # embeddings, tied to the head, and norms at rates at which AdamW trains the published model well
    "published-muon": Cell(
        "published blocks, Muon", PUBLISHED | MUON, MUON_RATES, {"embedding_lr": 0.4, "scalar_lr": 0.4}
    ),
    "modern-adamw": Cell("modern blocks, AdamW", MODERN | ADAMW, ADAMW_RATES),
}

# what may be asked where these cells were trained, at equal tokens
QUESTIONS = (
    ("published blocks, AdamW and Muon", REFERENCE, "published-muon"),
    ("modern blocks by layer, AdamW and Muon", "modern-adamw", CHALLENGER),
    ("Muon, published blocks and modern by layer", "published-muon", CHALLENGER),
    ("Muon, published blocks and modern by pass", "published-muon", BY_PASS),
)


@dataclass(frozen=True)
class Size:
    """flags: of main.py, alike in all cells. rates: how many of a cell's, the middle ones. more_seeds: for
    the rules of --depth_index, which are closer to each other.
    """

    flags: Mapping[str, Any]
    iterations: int
    rates: int
    sweep_seed: int
    seeds: tuple[int, ...]
    more_seeds: tuple[int, ...]


LN_COTFORMER = {
    "model": "lncot",
    "n_layer": 3,
    "n_layer_begin": 1,
    "n_layer_end": 1,
    "n_repeat": 3,
    "depth_embedding": "linear_learned",
    "n_embd": 64,
    "n_head": 2,
    "vocab_size": 256,
    "sequence_length": 128,
    "batch_size": 8,
    "acc_steps": 1,
    "scheduler": "cos",
    "device": "cpu",
}
SIZES = {
    "cpu": Size(
        LN_COTFORMER | {"eval_freq": 75, "eval_batches": 16, "log_freq": 25},
        600,
        5,
        1,
        (11, 12, 13),
        (14, 15, 16),
    ),
    "tiny": Size(
        LN_COTFORMER | {"n_embd": 32, "sequence_length": 16, "eval_freq": 2, "eval_batches": 1},
        4,
        2,
        1,
        (11, 12),
        (13,),
    ),
}


@dataclass(frozen=True)
class Training:
    """One experiment. name: its folder's."""

    cell: str
    rate: float
    steps: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.cell}_rate{self.rate:g}_steps{self.steps}_seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is compared, on which text, and where it lies."""

    size: Size
    cells: tuple[str, ...]
    out: Path
    dataset: str
    data_dir: str | None

    def flags(self, training: Training) -> dict[str, Any]:
        cell = CELLS[training.cell]
        flags = {
            **self.size.flags,
            **cell.flags,
            "lr": training.rate,
            **{name: training.rate * ratio for name, ratio in cell.others.items()},
            "iterations": training.steps,
            "seed": training.seed,
            "dataset": self.dataset,
            "exp_name": training.name,
            "results_base_folder": str(self.out / "trainings"),
        }
        return flags if self.data_dir is None else flags | {"data_dir": self.data_dir}

    def folder(self, training: Training) -> Path:
        return config.experiment_folder(config.add_defaults(self.flags(training)))

    def sweep(self) -> list[Training]:
        """As many rates for each cell that has a sweep of its own."""
        trainings = []
        for name in self.cells:
            cell = CELLS[name]
            if cell.rate_of is None:
                first = (len(cell.rates) - self.size.rates) // 2
                rates = cell.rates[first : first + self.size.rates]
                size = self.size
                trainings += [Training(name, rate, size.iterations, size.sweep_seed) for rate in rates]
        return trainings

    def best_rates(self) -> dict[str, float]:
        """Of each cell, by bits per byte at the end of the sweep. Raises UserError before that."""
        best: dict[str, tuple[float, float]] = {}
        for training in self.sweep():
            found = (self.result(training)["bits_per_byte"], training.rate)
            best[training.cell] = min(best.get(training.cell, found), found)
        return {name: best[CELLS[name].rate_of or name][1] for name in self.cells}

    def seeds(self) -> list[Training]:
        """Each cell at its best rate, all with the same seeds."""
        rates = self.best_rates()
        return [Training(c, rates[c], self.size.iterations, s) for s in self.size.seeds for c in self.cells]

    def equal_macs(self) -> list[Training]:
        """The cheaper of the two cells, for the MACs that the other one had."""
        costs = {name: self.macs_of_step(name) for name in (REFERENCE, CHALLENGER)}
        cheap, dear = sorted(costs, key=costs.__getitem__)
        steps = round(self.size.iterations * costs[dear] / costs[cheap])
        if steps == self.size.iterations:
            return []
        rate = self.best_rates()[cheap]
        return [Training(cheap, rate, steps, seed) for seed in self.size.seeds]

    def depth_index(self) -> list[Training]:
        """More seeds of the two rules, and of the cheaper one where it was trained for more steps."""
        if BY_PASS not in self.cells:
            return []
        first = self.size.seeds[0]
        alike = [t for t in (*self.seeds(), *self.equal_macs()) if t.cell in (CHALLENGER, BY_PASS)]
        once = [training for training in alike if training.seed == first]
        return [replace(training, seed=seed) for seed in self.size.more_seeds for training in once]

    def macs_of_step(self, name: str) -> int:
        """Of forward, backward (twice as many) and Muon's products."""
        from models import make_model_from_args
        from models.macs import count_macs
        from models.network import MATRIX, roles_of
        from models.settings import ModelSettings

        args = config.add_defaults(self.flags(Training(name, 1.0, 1, 0)))
        settings = ModelSettings.from_args(args)
        heads = (settings.sequence_length - 1) * settings.n_embd * settings.table_rows  # one is counted
        macs = 3 * args.batch_size * args.acc_steps * (count_macs(args, settings.sequence_length) + heads)
        if args.opt == "muon":
            network = make_model_from_args(args)
            roles = roles_of(network)
            shapes = [p.shape for n, p in network.named_parameters() if roles[n] == MATRIX]
            macs += sum(map(macs_of_muon, shapes))
        return macs

    def result(self, training: Training) -> dict[str, Any]:
        """Of a finished training. Raises UserError for another one."""
        from optim.evaluations import by_kind, evaluations
        from optim.names import METRICS
        from optim.reader import Record, read_rows

        folder = self.folder(training)
        record = Record(folder)
        if not record.finished(training.steps) or record.summary is None:
            raise UserError(
                f"{folder} is not trained yet: run the script without --only, or with sweep and seeds"
            )
        shape = self.size.flags
        tokens = shape["batch_size"] * shape["acc_steps"] * shape["sequence_length"]
        rows = evaluations(by_kind(read_rows(folder / METRICS, [])))[""].during
        return {
            **vars(training),
            "parameters": record.summary["parameters"],
            "tokens": tokens * training.steps,
            "macs": self.macs_of_step(training.cell) * training.steps,
            "bits_per_byte": record.summary["final_val_bpb"],
            "evaluated_tokens": record.summary["final_n_tokens"],
            "curve": [[row["step"] * tokens, row["val_bpb"]] for row in rows],
        }


def macs_of_muon(shape: Sequence[int]) -> int:
    """Of the products that orthogonalise a matrix (`optim.muon.orthogonal`)."""
    from optim.muon import POLAR_EXPRESS

    small, large = sorted(shape)
    return len(POLAR_EXPRESS) * (2 * small * small * large + small**3)


# training


def train(words: Sequence[str]) -> int:
    """main.py's exit code."""
    import main

    return main.main(list(words))


def words_of(flags: Mapping[str, Any]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def train_all(plan: Plan, trainings: Iterable[Training], jobs: int) -> None:
    """Those that are not finished, `jobs` at a time. Raises SystemExit with main.py's code where one of them
    does not finish, once those that run beside it have ended.
    """
    from optim.reader import Record

    missing = [t for t in trainings if not Record(plan.folder(t)).finished(t.steps)]
    commands = [words_of(plan.flags(training)) for training in missing]
    if jobs == 1:
        for command in commands:
            check(train(command))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=die_with, initargs=(os.getpid(),)) as pool:
        running: set[Future[int]] = set()
        for command in commands:  # no more than run are handed over: those could not be taken back
            if len(running) == jobs:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                check(*(future.result() for future in done))
            running.add(pool.submit(train, command))
        check(*(future.result() for future in running))


def check(*codes: int) -> None:
    for code in filter(None, codes):
        raise SystemExit(code)


# report


@dataclass(frozen=True)
class Interval:
    """Mean over seeds, and how far the ends of its 95% interval are from it."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        spread = statistics.stdev(values) / len(values) ** 0.5
        return cls(statistics.fmean(values), T95[len(values) - 1] * spread)

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.half:.4f}"


def values(results: Sequence[Mapping[str, Any]]) -> list[float]:
    """Bits per byte, in order of seed."""
    ordered = sorted(results, key=lambda result: result["seed"])
    return [result["bits_per_byte"] for result in ordered]


def table(lines: Sequence[Sequence[str]]) -> str:
    """Markdown; the first line is the head."""
    head, *rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rows]) + "\n"


def sweep_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Bits per byte at each rate, the best in bold."""
    lines = [["cell", "rates (`--lr`)", "bits per byte at each"]]
    for name in dict.fromkeys(result["cell"] for result in results):
        bits = {r["rate"]: r["bits_per_byte"] for r in results if r["cell"] == name}
        shown = {rate: f"{value:.4f}" for rate, value in bits.items()}
        best = min(bits, key=bits.__getitem__)
        shown[best] = f"**{shown[best]}**"
        lines.append([CELLS[name].label, ", ".join(map(str, shown)), ", ".join(shown.values())])
    return table(lines)


def groups_of(results: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], list[Mapping[str, Any]]]:
    """By cell and number of steps."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["cell"], result["steps"]), []).append(result)
    return groups


def seeds_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Each cell against the published one, by the differences of trainings of the same seed."""
    head = ["cell", "rate", "parameters", "steps", "tokens", "MACs", "bits per byte", "less than published"]
    lines, groups = [head], groups_of(results)
    reference = values(next(iter(groups.values())))
    for (name, steps), group in groups.items():
        one, own = group[0], values(group)
        gains = [theirs - mine for theirs, mine in zip(reference, own, strict=True)]
        lines.append(
            [
                CELLS[name].label,
                f"{one['rate']:g}",
                f"{one['parameters']:,}",
                f"{steps:,}",
                f"{one['tokens']:,}",
                f"{one['macs']:.4g}",
                str(Interval.of(own)),
                "" if own == reference else str(Interval.of(gains)),
            ]
        )
    return table(lines)


def pairs_table(results: Sequence[Mapping[str, Any]], more: Sequence[Mapping[str, Any]]) -> str:
    """The questions that are asked, as differences of trainings of the same seed. more: for those about
    --depth_index.
    """
    groups, of_depth = groups_of(results), groups_of([*results, *more])
    base = min(steps for _, steps in groups)
    published, modern, by_pass = ((name, base) for name in (REFERENCE, CHALLENGER, BY_PASS))
    longer = [key for key in groups if key[1] != base]
    pairs = [("equal tokens", groups[published], groups[modern])]
    for key in longer:
        first, second = (key, modern) if key[0] == REFERENCE else (published, key)
        pairs.append(("equal MACs", groups[first], groups[second]))
    for title, first, second in QUESTIONS:
        if {first, second} <= {name for name, _ in groups}:
            pairs.append((title, groups[first, base], groups[second, base]))
    if by_pass in groups:
        by_layer = [modern, *(key for key in longer if key[0] == CHALLENGER)]
        name = "`--depth_index` layer, {} steps, and pass, {}"
        pairs += [(name.format(key[1], base), of_depth[key], of_depth[by_pass]) for key in by_layer]
    lines = [["comparison", "seeds", "first", "second", "first minus second"]]
    for title, *sides in pairs:
        first, second = map(values, sides)
        difference = Interval.of([a - b for a, b in zip(first, second, strict=True)])
        shown = map(str, (len(first), Interval.of(first), Interval.of(second), difference))
        lines.append([title, *shown])
    return table(lines)


def mean_of(*values: float) -> float:
    return statistics.fmean(values)


def draw(plan: Plan, results: Sequence[Mapping[str, Any]]) -> Figure:
    """Bits per byte over tokens and over MACs: means over seeds, in a band from the lowest to the highest."""
    from report.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, TWO_COLUMNS, legend, panels

    colours = dict(zip(CELLS, (ORANGE, BLUE, SKY, PURPLE, GREEN), strict=True))
    figure, axes = panels(1, 2, width=TWO_COLUMNS, height=3.4, sharey=True)
    order = []
    for (name, steps), group in groups_of(results).items():
        is_longer = steps != plan.size.iterations
        label = CELLS[name].label + (f", {steps:,} steps" if is_longer else "")
        order.append(label)
        tokens = [count for count, _ in group[0]["curve"]]
        seeds = [[bits for _, bits in result["curve"]] for result in group]
        low, mean, high = (list(map(of, *seeds)) for of in (min, mean_of, max))
        macs_per_token = group[0]["macs"] / group[0]["tokens"]
        costs = ([count / 1e3 for count in tokens], [count * macs_per_token / 1e12 for count in tokens])
        for axis, cost in zip(axes.flat, costs, strict=True):
            axis.fill_between(cost, low, high, color=colours[name], alpha=0.2, linewidth=0)
            axis.plot(cost, mean, label=label, color=colours[name], linestyle="--" if is_longer else "-")
    axes[0, 0].set(xlabel="tokens of training (thousands)", ylabel="validation loss (bits per byte)")
    axes[0, 1].set(xlabel="MACs of training ($10^{12}$)")
    shape = plan.size.flags
    title = f"LN-CoTFormer, width {shape['n_embd']}, {len(plan.size.seeds)} seeds, {plan.dataset}"
    figure.suptitle(title, color=BLACK)
    legend(figure, axes, order, 2)
    return figure


def report(plan: Plan) -> None:
    from report.figures import save

    sweep = [plan.result(training) for training in plan.sweep()]
    seeds = [plan.result(training) for training in (*plan.seeds(), *plan.equal_macs())]
    more = [plan.result(training) for training in plan.depth_index()]
    macs = {name: plan.macs_of_step(name) for name in plan.cells}
    content = {"flags": dict(plan.size.flags), "macs_of_step": macs, "sweep": sweep, "seeds": seeds}
    content["more_seeds"] = more
    text = "\n".join([sweep_table(sweep), seeds_table(seeds), pairs_table(seeds, more)])
    write_atomically(plan.out / f"{STEM}.md", text)
    save(draw(plan, seeds), plan.out, STEM, content)
    print(text)


def arguments(argv: Sequence[str] | None) -> Namespace:
    parser = Arguments(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of trainings and report")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument(
        "--only", nargs="+", choices=("sweep", "seeds", "report"), default=["sweep", "seeds", "report"]
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--dataset", default="lib_code")
    parser.add_argument("--data_dir", help="as main.py's")
    args = parser.parsed(argv)
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs} must be at least 1")
    lacking = {REFERENCE, CHALLENGER} - set(args.cells)
    if lacking:
        raise UserError(
            f"--cells lacks {', '.join(sorted(lacking))}: {REFERENCE} and {CHALLENGER} are compared"
        )
    return args


def main(argv: Sequence[str] | None = None) -> int:
    def work() -> int:
        args = arguments(argv)
        cells = tuple(name for name in CELLS if name in args.cells)
        plan = Plan(SIZES[args.size], cells, args.out, args.dataset, args.data_dir)
        if "sweep" in args.only:
            train_all(plan, plan.sweep(), args.jobs)
        if "seeds" in args.only:
            train_all(plan, [*plan.seeds(), *plan.equal_macs(), *plan.depth_index()], args.jobs)
        if "report" in args.only:
            report(plan)
        return 0

    return guarded("modern_blocks.py", work)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # waits for the trainings, which save
    raise SystemExit(main())
