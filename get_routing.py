"""Capacity and threshold routing of an adaptive checkpoint at equal multiply-accumulates, with the seconds of
both.

    python get_routing.py --checkpoint exps/.../NAME --output_dir results/ [--budgets 0.6 0.8 1]

For each budget, a share of the multiply-accumulates of full depth, the threshold is measured on training
text. The shares of the validation tokens that it then lets go on, to the nearest token of a sequence, are
the capacities, so that both cost the same. All rows are timed in turns, in one process. Writes
routing.json: a row for each budget and kind with multiply-accumulates a token, seconds for 1,000 tokens,
and the loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import distributed
from config.schema import Flag
from errors import UserError
from optim.names import ROUTING
from optim.restore import CHECKPOINT, Restored, keep_result, output_folder, with_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.settings import ModelSettings

# of the compute beyond that of one pass, where no budgets are given
STEPS = (0.2, 0.4, 0.6, 0.8, 1.0)
CALIBRATION_TOKENS = 65536
TIMED_BATCHES = 4
OWN_FLAGS = {
    "routing": (
        CHECKPOINT,
        Flag("output_dir", str, None, "where to write (None: beside the checkpoint)"),
        Flag(
            "budgets",
            float,
            None,
            "shares of the multiply-accumulates of full depth (None: five, between one pass and all)",
            low=0,
            high=1,
            many=True,
        ),
    )
}


class Routings:
    """Evaluates a model under both kinds of routing, on the same windows."""

    def __init__(self, restored: Restored) -> None:
        from optim.evaluate import windows_to_read
        from optim.routers import need_routers
        from optim.setup import autocaster

        self.args, self.world = restored.args, restored.world
        self.model, self.splits = restored.model(), restored.splits()
        need_routers(self.model)
        self.val = self.splits.val
        self.chosen: NDArray[np.int64] = windows_to_read(self.args, self.val.n_windows)
        self.autocast = autocaster(self.args.dtype, self.world.device)

    @property
    def settings(self) -> ModelSettings:
        settings: ModelSettings = self.model.settings
        return settings

    def budgets(self, given: list[float] | None) -> list[float]:
        """Raises UserError for one that is less than one pass costs."""
        from optim.routers import share_of_macs

        least = share_of_macs(self.settings, [0.0] * (self.settings.n_repeat - 1))
        for budget in given or ():
            if budget < least:
                raise UserError(f"--budgets {budget:g}: one pass alone costs {least:.2f} of full depth")
        return given or [least + step * (1 - least) for step in STEPS]

    def thresholds(self, budgets: list[float]) -> list[float]:
        """By the scores of training tokens."""
        import torch

        from optim.cascade import cascade
        from optim.intervals import spread
        from optim.routers import router_scores, threshold_for

        train, args = self.splits.train, self.args
        count = min(train.n_windows, max(1, CALIBRATION_TOKENS // args.sequence_length))
        sample = spread(train.n_windows, count)
        parts = router_scores(self.model, train, sample, args.batch_size, self.autocast, self.world.device)
        scores = torch.cat([cascade(part, "token").flatten(0, 1) for part in parts])
        return [threshold_for(budget, self.settings, scores) for budget in budgets]

    def row(self, kind: str, budget: float, shares: list[float], settings: ModelSettings) -> dict[str, Any]:
        """shares: of the tokens that take each further pass."""
        from models.macs import count_macs
        from optim.evaluate import evaluate

        self.model.settings = settings
        batch_size = self.args.batch_size
        result = evaluate(self.model, self.val, batch_size, self.world, self.autocast, self.chosen)
        assert result is not None, "nothing asked this evaluation to stop"
        length = self.args.sequence_length
        return {
            "routing": kind,
            "budget": budget,
            "length_factors": shares,
            "macs": count_macs(settings, length, shares) / length,
            "seconds": None,
            "loss": result["val_loss"],
            "average_depth": result["average_depth"],
        }

    def rows(self, budgets: list[float]) -> list[dict[str, Any]]:
        """Two for each budget, and the seconds of all."""
        from optim.routers import by_capacity, by_threshold, least_seconds, shares_going_on, whole_tokens

        found, settings = [], []
        device, size = self.world.device, self.args.batch_size
        for budget, threshold in zip(budgets, self.thresholds(budgets), strict=True):
            causal = by_threshold(self.settings, threshold)
            self.model.settings = causal
            shares = whole_tokens(
                shares_going_on(self.model, self.val, self.chosen, size, self.autocast, device),
                self.args.sequence_length,
            )
            capacity = by_capacity(self.settings, shares)
            settings += [capacity, causal]
            found.append(self.row("capacity", budget, shares, capacity))
            found.append({**self.row("threshold", budget, shares, causal), "threshold": threshold})
        parts = [self.chosen[first : first + size] for first in range(0, size * TIMED_BATCHES, size)]
        batches = [self.val.batch(part).to(device) for part in parts if part.size]
        tokens = sum(batch["inputs"].numel() for batch in batches)
        for row, seconds in zip(
            found, least_seconds(self.model, batches, settings, self.autocast), strict=True
        ):
            row["seconds"] = 1000 * seconds / tokens
        return found


def run(restored: Restored, own: dict[str, Any]) -> None:
    """Measure and write."""
    import torch

    from data.bins import identity_of

    if restored.world.size > 1:
        raise UserError("get_routing.py runs as one process, without torchrun")
    folder = output_folder(own["output_dir"], restored.path, prints=False)
    routings = Routings(restored)
    rows = routings.rows(routings.budgets(own["budgets"]))
    for row in rows:
        print(
            f"{row['routing']:<10} {row['macs'] / 1e6:10.3f} MMACs a token "
            f"{1e3 * row['seconds']:9.3f} ms for 1,000 tokens  loss {row['loss']:.4f}"
        )
    content = {
        "checkpoint": str(restored.path),
        "itr": restored.state.get("itr"),
        "model": restored.args.model,
        "n_tokens": int(routings.chosen.size) * restored.args.sequence_length,
        "data": identity_of(routings.splits.folder),
        "device": str(restored.world.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
        "args": vars(restored.args),
    }
    keep_result(folder, ROUTING, content, "summary   ")


def main(argv: list[str] | None = None) -> int:
    return with_checkpoint(
        "get_routing.py",
        "Compare capacity and threshold routing of an adaptive checkpoint at equal compute.",
        OWN_FLAGS,
        argv,
        run,
    )


if __name__ == "__main__":
    distributed.run_and_end(main)
