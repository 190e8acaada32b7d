"""Perplexity of an adaptive checkpoint at every compute budget, beside multiply-accumulates and seconds: the data of Figure 4.

    python get_ppl_per_mac.py --checkpoint exps/.../NAME --output_dir results/ [--thresholds 0 0.1 ... 1] [--router_sample_size N]

Router sweep: for each threshold, the shares of the training tokens whose scores exceed it become the capacities of the
passes, as in the paper. Fixed depth: every token makes the same 1, 2, ... n_repeat passes. Writes ppl_per_mac.json after
each point, and goes on with the missing points when it is run again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed
from config.flags import Flag
from config.identity import OF_ONE_EVALUATION, evaluation_of
from errors import UserError
from optim.names import SWEEP
from optim.restore import CHECKPOINT, Restored, output_folder, with_checkpoint

THRESHOLDS = [0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 1.0]  # of Figure 4
OWN_FLAGS = {"sweep": (
    CHECKPOINT,
    Flag("output_dir", str, None, "where to write (None: beside the checkpoint)"),
    Flag("thresholds", float, THRESHOLDS, "router scores that a token must exceed to go on", low=0, high=1, many=True),
    Flag("router_sample_size", int, 262144, "training tokens from which the capacities are measured, spread evenly over the split", low=1),
)}
# beside the settings and the data, what makes two sweeps the same, so that one may go on where the other stopped
SAME = ("checkpoint", "modified", "itr", "sequence_length", "n_tokens", "router_sample_size", "device")
# varied by the sweep itself, told by sequence_length and n_tokens, or of other programs
NOT_OF_A_SWEEP = ("eval_length_factor", "routing", "router_threshold", "sequence_length", *OF_ONE_EVALUATION, "eval_batches", "eval_seq_prefix")


def same_data(there: dict[str, Any], begun: dict[str, Any]) -> bool:
    """Whether two sweeps read the same data; a file of before these were known by what they hold names their folder."""
    from data.bins import data_differences

    if "splits" in there:
        return isinstance(there["splits"], dict) and not data_differences(begun["splits"], there["splits"])
    return there.get("data") == begun["data"]


def others(there: dict[str, Any], begun: dict[str, Any]) -> list[str]:
    """What makes a sweep that is there another one than that which is begun."""
    names = [name for name in SAME if there.get(name) != begun[name]]
    if not same_data(there, begun):
        names.append("data")
    args = there.get("args")
    if not isinstance(args, dict):
        return [*names, "args"]
    settings = evaluation_of(begun["args"], without=NOT_OF_A_SWEEP).items()
    return names + [f"{name} ({args[name]} there, {value} now)" for name, value in settings if name in args and args[name] != value]


def earlier(target: Path, begun: dict[str, Any]) -> dict[str, Any]:
    """The points of an earlier sweep of the same kind, or none. Raises UserError where there is one of another kind."""
    from files import read_json

    there = read_json(target)
    if there is None:
        return begun
    other = others(there, begun)
    if other:
        raise UserError(f"{target} is a sweep with another {', '.join(other)}; give another --output_dir, or move it away")
    return {**begun, **{name: there.get(name, []) for name in ("router", "fixed_depth")}, "measured": there.get("measured", {})}


def save(target: Path, content: dict[str, Any]) -> None:
    """Raises UserError where it cannot be written."""
    from files import write_json

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, content)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None


def measure(restored: Restored, model: Any, splits: Any, n_windows: int) -> Callable[[list[float]], dict[str, Any]]:
    """A function from shares of the tokens that go on to a point of the figure; equal shares are evaluated once."""
    from eval import intervals
    from models.macs import count_macs
    from optim.evaluate import evaluate
    from optim.routers import set_factors
    from optim.setup import autocaster

    args, world = restored.args, restored.world
    done: dict[tuple[float, ...], dict[str, Any]] = {}

    def point(factors: list[float]) -> dict[str, Any]:
        if tuple(factors) not in done:
            set_factors(model, factors)
            begin = time.monotonic()
            result = evaluate(model, splits.val, args.batch_size, world, autocaster(args.dtype, world.device),
                              math.ceil(n_windows / args.batch_size))
            assert result is not None, "nothing asked this evaluation to stop"
            seconds = time.monotonic() - begin
            done[tuple(factors)] = {
                "length_factors": factors, "macs": count_macs(args, args.sequence_length, factors), "val_loss": result["val_loss"],
                "val_perplexity": result["val_pp"], "average_depth": result["average_depth"],
                "val_perplexity_ci95": intervals(result["window_losses"], result["val_loss"])["val_perplexity_ci95"],
                "seconds_per_sequence": seconds * world.size / result["window_losses"].numel()}
        return done[tuple(factors)]

    return point


def run(restored: Restored, own: dict[str, Any]) -> None:
    """Both sweeps, point by point."""
    import numpy as np

    from data.bins import identity_of
    from optim.routers import factors_at, need_routers
    from optim.setup import autocaster

    args, path, world = restored.args, restored.path, restored.world
    place = world.from_main(lambda: output_folder(own["output_dir"], path, prints=False))
    model, splits = restored.model(), restored.splits()
    need_routers(model)
    n_val = splits.val.n_windows if args.eval_sample_size is None else math.ceil(args.eval_sample_size / args.sequence_length)
    n_val = min(math.ceil(n_val / args.batch_size) * args.batch_size, splits.val.n_windows)
    target = place / SWEEP
    begun = {"checkpoint": str(path), "modified": path.stat().st_mtime, "data": str(splits.folder.resolve()),
             "splits": world.from_main(lambda: identity_of(splits.folder)),
             "itr": restored.state.get("itr"), "model": args.model, "n_repeat": args.n_repeat,
             "sequence_length": args.sequence_length, "vocab_size": args.vocab_size, "n_tokens": n_val * args.sequence_length,
             "router_sample_size": own["router_sample_size"], "batch_size": args.batch_size, "dtype": args.dtype, "device": str(world.device),
             "measured": {}, "router": [], "fixed_depth": [], "args": vars(args)}
    sweep = world.from_main(lambda: earlier(target, begun))
    point = measure(restored, model, splits, n_val)
    missing = [value for value in own["thresholds"] if str(value) not in sweep["measured"]]
    if missing:
        n = min(splits.train.n_windows, math.ceil(own["router_sample_size"] / args.sequence_length))
        chosen = np.linspace(0, splits.train.n_windows - 1, n).astype(np.int64)
        factors = factors_at(model, splits.train, chosen, args.batch_size, missing, autocaster(args.dtype, world.device), world)
        sweep["measured"] |= {str(value): row for value, row in zip(missing, factors, strict=True)}

    def add(kind: str, key: str, value: float, shares: list[float]) -> None:
        if not any(each[key] == value for each in sweep[kind]):
            sweep[kind] = sorted([*sweep[kind], {key: value, **point(shares)}], key=lambda each: each[key])
            world.from_main(lambda: save(target, sweep))
        each = next(each for each in sweep[kind] if each[key] == value)
        if world.is_main:
            print(f"{key:<9} {value:<5g} {each['macs'] / 1e9:8.3f} GMACs  perplexity {each['val_perplexity']:.4f}  "
                  f"depth {each['average_depth']:.2f}  {1e3 * each['seconds_per_sequence']:.2f} ms a sequence", flush=True)

    for passes in range(1, args.n_repeat + 1):
        add("fixed_depth", "passes", passes, [float(number < passes) for number in range(1, args.n_repeat)])
    for value in own["thresholds"]:
        add("router", "threshold", value, sweep["measured"][str(value)])
    if world.is_main:
        print(f"summary   {target}")


def main(argv: list[str] | None = None) -> int:
    return with_checkpoint("get_ppl_per_mac.py", "Perplexity at every compute budget.", OWN_FLAGS, argv, run)


if __name__ == "__main__":
    distributed.run_and_end(main)
