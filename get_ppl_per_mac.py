"""Perplexity of an adaptive checkpoint at every compute budget, with multiply-accumulates and seconds: the
data of Figure 4.

    python get_ppl_per_mac.py --checkpoint exps/.../NAME --output_dir results/ [--thresholds 0 0.1 ... 1]
        [--router_sample_size N]

Router sweep: for each cut, the shares of the training tokens that every router so far has scored at least so
high become the capacities of the passes. The cuts are the paper's: 1 - t for its thresholds t. --published
takes the shares as the authors' code does: of scores by place after the device's top-k, rounded up to 1/256
and then to two decimals, on a random sample of the training tokens.

Fixed depth: every token makes the same 1, 2, ... n_repeat passes.

All budgets read the same windows, so each point has the interval of its paired difference to full depth.
Writes ppl_per_mac.json and the windows' losses (ppl_per_mac.npz) after each point, and continues with the
missing points when it is run again. Times are measured at the end, budget after budget in several rounds.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import distributed
from config.identity import OF_ONE_EVALUATION, evaluation_of
from config.schema import Flag, switch
from errors import UserError
from optim.names import SWEEP
from optim.restore import CHECKPOINT, Restored, output_folder, with_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# of Figure 4: a token goes on with a score of 1 - t or more
PUBLISHED_THRESHOLDS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 1.0)
CUTS = [round(1 - t, 2) for t in PUBLISHED_THRESHOLDS]
ROUTER_SAMPLE = 262144
KEYS = {"fixed_depth": "passes", "router": "threshold"}  # what distinguishes the points of a kind
OWN_FLAGS = {
    "sweep": (
        CHECKPOINT,
        Flag("output_dir", str, None, "where to write (None: beside the checkpoint)"),
        Flag(
            "thresholds",
            float,
            CUTS,
            "cuts: router scores at or above which a token goes on",
            low=0,
            high=1,
            many=True,
        ),
        Flag(
            "router_sample_size",
            int,
            None,
            f"training tokens from which the capacities are measured (None: {ROUTER_SAMPLE}, spread evenly"
            " over the split; with --published as many as the validation split has, drawn at random)",
            low=1,
        ),
        switch(
            "published", "measure capacities as the authors' code does, with its rounding and order of scores"
        ),
    )
}
# beside the settings and the data, what makes two sweeps the same, so that one may go on where the other
# stopped
SAME = ("checkpoint", "modified", "itr", "sequence_length", "n_tokens", "router_sample_size", "device")
# of files from before there was a choice, what they are
SAME_SINCE = {"published": False, "sample": None}
# varied by the sweep itself, covered by sequence_length and n_tokens, or of other programs
NOT_OF_A_SWEEP = (
    "eval_length_factor",
    "routing",
    "router_threshold",
    "sequence_length",
    *OF_ONE_EVALUATION,
    "eval_batches",
    "eval_seq_prefix",
)


def same_data(there: dict[str, Any], begun: dict[str, Any]) -> bool:
    """Whether two sweeps read the same data; an older file names the folder, not hashes."""
    from data.bins import data_differences

    if "splits" in there:
        return isinstance(there["splits"], dict) and not data_differences(begun["splits"], there["splits"])
    return there.get("data") == begun["data"]


def others(there: dict[str, Any], begun: dict[str, Any]) -> list[str]:
    """What makes an existing sweep another one than the new one."""
    names = [name for name in SAME if there.get(name) != begun[name]]
    names += [name for name, before in SAME_SINCE.items() if there.get(name, before) != begun[name]]
    if not same_data(there, begun):
        names.append("data")
    args = there.get("args")
    if not isinstance(args, dict):
        return [*names, "args"]
    settings = evaluation_of(begun["args"], without=NOT_OF_A_SWEEP).items()
    return names + [
        f"{name} ({args[name]} there, {value} now)"
        for name, value in settings
        if name in args and args[name] != value
    ]


def earlier(target: Path, begun: dict[str, Any]) -> dict[str, Any]:
    """The points of an existing sweep of the same kind, or none.

    Raises UserError where there is one of another kind.
    """
    from files import read_json

    there = read_json(target)
    if there is None:
        return begun
    other = others(there, begun)
    if other:
        raise UserError(
            f"{target} is a sweep with another {', '.join(other)}; give another --output_dir, or move it away"
        )
    return {
        **begun,
        **{name: there.get(name, []) for name in ("router", "fixed_depth")},
        "measured": there.get("measured", {}),
        "timing": there.get("timing"),
    }


def save(target: Path, content: dict[str, Any]) -> None:
    """Raises UserError where it cannot be written."""
    from files import write_json

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, content)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None


def read_losses(
    target: Path, sweep: dict[str, Any], chosen: NDArray[np.int64], whole: bool
) -> dict[str, Any]:
    """Mean loss of each window at each budget, (windows,) float64, as an earlier call saved them.

    Only losses of the same windows, whose mean is the loss that the sweep has for the budget, so none of
    another sweep. whole: `chosen` are all windows of the split, as in an older file that does not say which.
    """
    import numpy as np

    try:
        with np.load(target, allow_pickle=False) as file:
            there = {name: np.asarray(file[name]) for name in file.files}
    except FileNotFoundError:
        return {}
    except Exception as error:  # whatever a damaged file makes of numpy's reader
        print(
            f"note: {target} is not readable ({' '.join(str(error).split())[:80]}): full depth is evaluated"
            " again"
        )
        return {}
    windows = there.pop("windows", chosen if whole else None)
    if windows is None or not np.array_equal(windows, chosen):
        return {}
    recorded = {
        name_of(kind, point.get(key)): point.get("val_loss")
        for kind, key in KEYS.items()
        for point in sweep[kind]
    }
    return {
        name: values
        for name, values in there.items()
        if values.ndim == 1
        and values.dtype == np.float64
        and isinstance(recorded.get(name), float)
        and abs(values.mean() - recorded[name]) < 1e-9
    }


def name_of(kind: str, value: Any) -> str:
    """Of a budget, in the .npz."""
    return f"{kind}_{value}"


def of_depth(passes: int, n_repeat: int) -> list[float]:
    """Shares of the tokens that go on after each pass if all stop after the same one."""
    return [float(pass_number < passes) for pass_number in range(1, n_repeat)]


class Budgets:
    """Evaluates a model at compute budgets, each once. A budget is `factors`: for each pass but the last the
    share of its tokens that take the next one.

    full_depth: (windows,) losses at full depth, where they are known. folder: where an evaluation that is cut
    short keeps its sums.
    """

    def __init__(
        self,
        restored: Restored,
        model: Any,
        splits: Any,
        chosen: NDArray[np.int64],
        full_depth: Any,
        folder: Path,
    ) -> None:
        from data.bins import identity_of
        from optim.intervals import SAMPLE, documents_of
        from optim.partial import facts_of

        self.args, self.world, self.model, self.val = restored.args, restored.world, model, splits.val
        self.chosen, self.full_depth, self.folder = chosen, full_depth, folder
        data = identity_of(splits.folder)
        self.facts = facts_of(self.args, self.args.batch_size, data, self.world.device, SAMPLE)
        self.documents = documents_of(splits.val, chosen, splits.meta)
        self.points: dict[tuple[float, ...], tuple[dict[str, Any], Any]] = {}

    def _evaluate(self, factors: list[float]) -> dict[str, Any]:
        from optim.evaluate import evaluate
        from optim.partial import PartialSums
        from optim.routers import set_factors
        from optim.setup import autocaster

        args, world = self.args, self.world
        set_factors(self.model, factors)
        facts = {**self.facts, "factors": factors}
        kept = PartialSums(self.folder, "sweep", self.model, facts, functools.partial(print, file=sys.stderr))
        autocast = autocaster(args.dtype, world.device)
        result = evaluate(self.model, self.val, args.batch_size, world, autocast, self.chosen, kept=kept)
        assert result is not None, "nothing asked this evaluation to stop"
        if world.is_main:
            kept.remove()
        return result

    def point(self, factors: list[float]) -> tuple[dict[str, Any], Any]:
        """A point of the figure, and (windows,) losses."""
        if tuple(factors) not in self.points:
            self.points[tuple(factors)] = self._new_point(factors)
        return self.points[tuple(factors)]

    def _new_point(self, factors: list[float]) -> tuple[dict[str, Any], Any]:
        from models.macs import count_macs
        from optim.evaluate import perplexity
        from optim.intervals import interval

        result = self._evaluate(factors)
        losses = result["window_losses"].numpy()
        all_passes = of_depth(self.args.n_repeat, self.args.n_repeat)
        if factors == all_passes:
            self.full_depth = losses
        if self.full_depth is None:
            self.full_depth = self._evaluate(all_passes)["window_losses"].numpy()
        difference = losses - self.full_depth
        own, paired = interval(losses, self.documents), interval(difference, self.documents)
        point = {
            "length_factors": factors,
            "macs": count_macs(self.args, self.args.sequence_length, factors),
            "val_loss": result["val_loss"],
            "val_perplexity": result["val_pp"],
            "average_depth": result["average_depth"],
            "val_perplexity_ci95": own and [perplexity(own.low), perplexity(own.high)],
            "loss_difference": float(difference.mean()),
            "loss_difference_ci95": paired and [paired.low, paired.high],
            "interval_by": own and own.clusters.words(),
            "paired_by": paired and paired.clusters.words(),
            "seconds_per_sequence": None,
        }
        return point, losses


def seconds_per_sequence(
    restored: Restored, model: Any, windows: Any, budgets: Sequence[Sequence[float]]
) -> list[float]:
    """For each budget, the least of several rounds in which the budgets take turns with one batch."""
    import numpy as np

    from optim.routers import by_capacity, least_seconds
    from optim.setup import autocaster

    args, device = restored.args, restored.world.device
    chosen = np.arange(min(args.batch_size, len(windows)))
    batch = windows.batch(chosen).to(device)
    settings = [by_capacity(model.settings, shares) for shares in budgets]
    least = least_seconds(model, [batch], settings, autocaster(args.dtype, device))
    return [seconds / len(chosen) for seconds in least]


def add_times(restored: Restored, model: Any, windows: Any, sweep: dict[str, Any]) -> None:
    """Time all points of the sweep together, as an earlier call ran under other conditions."""
    points = [point for kind in KEYS for point in sweep[kind] if point.get("length_factors")]
    budgets = list(dict.fromkeys(tuple(point["length_factors"]) for point in points))
    seconds = dict(zip(budgets, seconds_per_sequence(restored, model, windows, budgets), strict=True))
    for point in points:
        point["seconds_per_sequence"] = seconds[tuple(point["length_factors"])]
    sweep["timing"] = "least of several rounds in which all budgets take turns"


def new_sweep(restored: Restored, facts: dict[str, Any]) -> dict[str, Any]:
    """A sweep without points. facts: more of its head."""
    args, path = restored.args, restored.path
    return {
        "checkpoint": str(path),
        "modified": path.stat().st_mtime,
        "itr": restored.state.get("itr"),
        "model": args.model,
        "n_repeat": args.n_repeat,
        "sequence_length": args.sequence_length,
        "vocab_size": args.vocab_size,
        "batch_size": args.batch_size,
        "dtype": args.dtype,
        "device": str(restored.world.device),
        **facts,
        "measured": {},
        "timing": None,
        "router": [],
        "fixed_depth": [],
        "args": vars(args),
    }


def add_factors(
    sweep: dict[str, Any],
    restored: Restored,
    model: Any,
    train: Any,
    thresholds: Sequence[float],
    router_sample: int,
) -> None:
    """Measure, for thresholds that the sweep lacks, the shares of the tokens that take each next pass."""
    import numpy as np

    from optim.intervals import spread
    from optim.routers import factors_at
    from optim.setup import autocaster

    args, world, published = restored.args, restored.world, sweep["published"]
    missing = [value for value in thresholds if str(value) not in sweep["measured"]]
    if not missing:
        return
    count = min(train.n_windows, max(1, router_sample // args.sequence_length))
    if published:  # as the authors draw theirs
        sample = np.random.RandomState(0).choice(train.n_windows, count, replace=False)
    else:
        sample = spread(train.n_windows, count)
    autocast = autocaster(args.dtype, world.device)
    factors = factors_at(model, train, sample, args.batch_size, missing, autocast, world, published)
    sweep["measured"] |= dict(zip(map(str, missing), factors, strict=True))


def add_point(
    sweep: dict[str, Any],
    losses: dict[str, Any],
    budgets: Budgets,
    target: Path,
    kind: str,
    value: float,
    factors: list[float],
) -> None:
    """Evaluate a point unless the sweep has it, write the sweep and the windows' losses, and print a line."""
    from optim.window_losses import save_arrays

    key, world = KEYS[kind], budgets.world
    if not any(point[key] == value for point in sweep[kind]):
        new, losses[name_of(kind, value)] = budgets.point(factors)
        sweep["timing"] = None  # no longer of all points
        meaning = {"published_threshold": round(1 - value, 10)} if kind == "router" else {}
        points = [*sweep[kind], {key: value, **meaning, **new}]
        sweep[kind] = sorted(points, key=lambda point: point[key])
        world.on_main(lambda: save_arrays(target.with_suffix(".npz"), windows=budgets.chosen, **losses))
        world.on_main(lambda: save(target, sweep))
    if world.is_main:
        print_point(kind, value, next(point for point in sweep[kind] if point[key] == value))


def print_point(kind: str, value: float, point: dict[str, Any]) -> None:
    """A line about one budget: that of a threshold of the router, or of a number of passes."""
    if kind == "router":
        name = f"scores >= {value:g} go on (t = {1 - value:.4g})"
    else:
        name = f"{value:g} pass{'es' if value > 1 else ''}"
    print(
        f"{name:<34} {point['macs'] / 1e9:8.3f} GMACs  perplexity {point['val_perplexity']:.4f}  "
        f"depth {point['average_depth']:.2f}",
        flush=True,
    )


def print_end(sweep: dict[str, Any], target: Path) -> None:
    """The times, and where the sweep is."""
    for kind, key in KEYS.items():
        times = [
            f"{point[key]:g}: {1e3 * (point.get('seconds_per_sequence') or math.nan):.2f}"
            for point in sweep[kind]
        ]
        print(f"ms a sequence by {key}: {', '.join(times)}")
    old = sum("loss_difference" not in point for kind in KEYS for point in sweep[kind])
    if old:
        print(
            f"note: {old} points are of an earlier version and have no paired difference to full depth;"
            " in another --output_dir they are evaluated again"
        )
    print(f"summary   {target}")


def run(restored: Restored, own: dict[str, Any]) -> None:
    """Both sweeps, point by point, and their times."""
    from data.bins import identity_of
    from optim.evaluate import windows_to_read
    from optim.intervals import SAMPLE
    from optim.routers import need_routers

    args, path, world = restored.args, restored.path, restored.world
    folder = world.on_main(lambda: output_folder(own["output_dir"], path, prints=False))
    model, splits = restored.model(), restored.splits()
    need_routers(model)
    chosen = windows_to_read(args, splits.val.n_windows)
    whole = chosen.size == splits.val.n_windows
    router_sample = own["router_sample_size"] or (
        splits.val.tokens.size if own["published"] else ROUTER_SAMPLE
    )
    target = folder / SWEEP
    facts = {
        "splits": world.on_main(lambda: identity_of(splits.folder)),
        "data": str(splits.folder.resolve()),
        "n_tokens": chosen.size * args.sequence_length,
        "sample": None if whole else SAMPLE,
        "published": own["published"],
        "router_sample_size": router_sample,
    }
    begun = new_sweep(restored, facts)
    sweep = world.on_main(lambda: earlier(target, begun))
    losses = world.on_main(lambda: read_losses(target.with_suffix(".npz"), sweep, chosen, whole))
    full_depth = losses.get(name_of("fixed_depth", args.n_repeat))
    budgets = Budgets(restored, model, splits, chosen, full_depth, folder)
    add_factors(sweep, restored, model, splits.train, own["thresholds"], router_sample)
    for passes in range(args.n_repeat, 0, -1):  # full depth first: the others are compared with it
        add_point(sweep, losses, budgets, target, "fixed_depth", passes, of_depth(passes, args.n_repeat))
    for value in own["thresholds"]:
        add_point(sweep, losses, budgets, target, "router", value, sweep["measured"][str(value)])
    if sweep["timing"] is None:
        world.on_main(lambda: add_times(restored, model, splits.val, sweep))
        world.on_main(lambda: save(target, sweep))
    if world.is_main:
        print_end(sweep, target)


def main(argv: list[str] | None = None) -> int:
    return with_checkpoint(
        "get_ppl_per_mac.py",
        "Measure the perplexity of an adaptive checkpoint at every compute budget.",
        OWN_FLAGS,
        argv,
        run,
    )


if __name__ == "__main__":
    distributed.run_and_end(main)
