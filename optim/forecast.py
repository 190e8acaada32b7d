"""How long a training will take: of its floating-point operations, and of the rate of its earlier jobs."""

from __future__ import annotations

from typing import Any

from config.curriculum import LENGTH
from optim.reader import Record


def flops_of_step(args: Any) -> float | None:
    """Useful floating-point operations of one step, over all processes; None where flags alone do not say."""
    if "sequence_length" not in args:
        return None
    from models.macs import training_flops_per_token  # brings torch, which a job's checks can do without
    from models.settings import ModelSettings

    tokens = args.batch_size * args.acc_steps * args.sequence_length
    return training_flops_per_token(ModelSettings.from_args(args)) * tokens


def forecast(record: Record, args: Any, peak: float | None = None) -> str:
    """A line. record: of the experiment; peak: operations a second of all devices, where it is known."""
    left, flops = max(args.iterations - record.saved_step, 0), flops_of_step(args)
    if flops is None:
        return f"forecast: {left:,} of {args.iterations:,} steps left"
    if args.curriculum == LENGTH:
        return (
            f"forecast: {left:,} of {args.iterations:,} steps left, at most {left * flops:.3g} FLOPs; steps"
            " get longer with their sequences, so no hours are told"
        )
    work = f"forecast: {left:,} of {args.iterations:,} steps left, {left * flops:.3g} FLOPs"
    per_hour = record.steps_per_hour()
    if per_hour:
        rate = f"{per_hour * flops / 3600:.3g} FLOP/s"
        return f"{work}: {left / per_hour:.2g} h at {rate}, the rate of earlier jobs, evaluations included"
    if peak:
        least = left * flops / peak / 3600
        work += f", {least:.2g} h at the device's peak"
    return f"{work}; the rate is not known before a job has advanced"
