"""summary.json: what a finished training was, and how it went."""

from __future__ import annotations

from typing import Any

from optim.evaluations import DURING, split_name
from optim.experiment import Experiment
from optim.progress import Progress

OF_A_SEGMENT = ("job_id", "restart", "start_step", "end_step", "reason", "world_size", "revision")


def summarise(progress: Progress, experiment: Experiment, reason: str) -> dict[str, Any]:
    """Content of summary.json, of the state and the metrics rows. reason: why the training is done."""
    rows = experiment.metrics.rows()
    segments = []
    for row in experiment.segments:
        segments.append({name: row.get(name) for name in OF_A_SEGMENT})
    segments[-1] |= {"end_step": progress.step, "reason": reason}
    steps: dict[str, list[int]] = {"train": [], DURING: [], "skipped": []}
    for row in rows:
        steps.setdefault(row["kind"], []).append(row["step"])
    shown = {kind: taken for kind, taken in steps.items() if split_name(kind)[0] in ("train", DURING)}
    train_loss = [row["loss"] for row in rows if row["kind"] == "train"]
    found: dict[str, Any] = {
        "args": vars(progress.args),
        "itr": progress.step,
        "train_loss": train_loss,
        "steps": shown,
        "parameters": sum(p.numel() for p in progress.network.parameters()),
        "world_size": progress.world.size,
        "schedule": progress.schedule.plan(),
        "skipped_steps": steps["skipped"],
        "segments": segments,
        "rollbacks": progress.rollbacks,
        "data": progress.data,
        **progress.initial_part(),
    }
    if progress.tracked is not None:
        found["best"] = progress.tracked.state()
    for evaluation in progress.parts.evaluations:
        found |= evaluation.summary(rows, progress.step)
    return found
