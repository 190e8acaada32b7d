"""What a run reports: log lines, a progress bar on a terminal, metrics rows, Weights & Biases.

Main process only.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from config.flags import FLAGS
from errors import UserError
from files import write_atomically
from optim.evaluations import split_name
from optim.experiment import Experiment
from optim.names import CORE_ROW
from processes import peak_kib

log = logging.getLogger("cotformer")

# dense matrix throughput in bfloat16 with float32 accumulation, FLOP/s, from the makers' data sheets
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}

# charts in Weights & Biases that bear the names of the reference repository too
REFERENCE_NAMES = {
    "eval/val_loss": "val/loss",
    "eval/val_pp": "val/perplexity",
    "eval/val_acc": "val/acc",
    "train/lr": "lr",
    "eval/max_grad_norm": "train/max_grad_norm",
    "final/val_loss": "val/final-loss",
    "final/val_pp": "val/final-ppl",
    "final/val_acc": "val/final-acc",
}


def peak_flops(device: torch.device) -> float | None:
    """Of a known GPU, else None."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory so far: the allocator's on a GPU, the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_kib() / 2**10


class _Console(logging.Handler):
    """Lines above a progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        # a full disk under the job's log must not end the training, whose own disk may have room
        with suppress(OSError):
            tqdm.write(self._line(record), file=sys.stdout)
            sys.stdout.flush()

    def _line(self, record: logging.LogRecord) -> str:
        """In letters that the terminal knows."""
        encoding = sys.stdout.encoding or "utf-8"
        return self.format(record).encode(encoding, "backslashreplace").decode(encoding)


def start_logging(is_main: bool) -> None:
    """Lines of the main process go to the console; the others are silent."""
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO if is_main else logging.CRITICAL)
    if is_main:
        handler = _Console()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


class _LogFile(logging.FileHandler):
    """A line that finds no room, or its file gone stale, is left out: what matters more is written
    elsewhere and speaks up itself.
    """

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):  # the rest of a line that could not be written
            super().close()


def log_to_file(path: Path) -> None:
    """Append every line to a file too, with its time."""
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)


def account(args: Any) -> tuple[str, str | None]:
    """Project and team in Weights & Biases: those of the flags, else those of wandb's own variables."""
    project, default = args.wandb_project, FLAGS["wandb_project"].default
    return (
        (os.environ.get("WANDB_PROJECT") or default) if project == default else project
    ), args.wandb_entity or os.environ.get("WANDB_ENTITY")


def start_wandb(args: Any, experiment: Experiment) -> Any:
    """The one run of this experiment in Weights & Biases: its id is kept in the folder, so that segments
    join it.
    """
    try:
        import wandb
    except ImportError:
        raise UserError("--wandb: the wandb package is not installed; pip install wandb") from None
    place = Path(os.environ.get("WANDB_DIR") or experiment.folder)
    with suppress(OSError):  # wandb itself says where it writes instead
        place.mkdir(parents=True, exist_ok=True)
    if os.path.expanduser("~") == "~":  # a container's user without a home; wandb keeps settings there
        os.environ["HOME"] = str(place)
    path = experiment.folder / "wandb_id"
    if not path.exists():
        write_atomically(path, secrets.token_hex(4))
    project, entity = account(args)
    try:
        return wandb.init(
            id=path.read_text().strip(),
            resume="allow",
            dir=place,
            project=project,
            entity=entity,
            name=experiment.folder.name,
            config=vars(args),
            settings=wandb.Settings(console="off", quiet=True),
        )
    except wandb.errors.Error as error:
        raise UserError(
            f"--wandb: {str(error).splitlines()[0]} (WANDB_MODE=offline needs no account)"
        ) from None


def charts(row: dict[str, Any]) -> dict[str, float]:
    """What Weights & Biases gets of a metrics row: its numbers, throughput and memory, and some again
    under the reference repository's names. An evaluation's name is a part of its own: by names with an @ no
    runs can be sorted there.
    """
    kind, name = split_name(row["kind"])
    of = f"/{name}" if name else ""
    numbers = {**row, **row.get("time", {})}
    if row["kind"] == CORE_ROW:
        numbers |= {task: score["centred"] for task, score in row["core"].items()}
    flat = {
        f"{kind}{of}/{key}": value
        for key, value in numbers.items()
        if isinstance(value, (int, float)) and key not in ("step", "unix")
    }
    again = {}
    for ours, theirs in REFERENCE_NAMES.items():
        when, key = ours.split("/")
        if when == kind and f"{kind}{of}/{key}" in flat:
            again[f"{theirs}{of}" if theirs.startswith("val/") else theirs] = flat[f"{kind}{of}/{key}"]
    return flat | again


def tables(row: dict[str, Any]) -> dict[str, Any]:
    """What Weights & Biases gets of a metrics row's samples of text."""
    if "samples" not in row:
        return {}
    import wandb

    lines = [[row["step"], sample["prompt"], sample["text"]] for sample in row["samples"]]
    return {"samples": wandb.Table(columns=["step", "prompt", "text"], data=lines)}


class OfSample(Protocol):
    """Items in a sample, and floating-point operations for each."""

    @property
    def items(self) -> int: ...

    @property
    def flops_per_item(self) -> float: ...


class Throughput(Protocol):
    """What a speed counts: items of this name."""

    @property
    def items(self) -> str: ...

    @property
    def items_per_sample(self) -> int: ...

    def work(self, step: int) -> OfSample:
        """Of each sample of the step after so many."""
        ...


class Reporter:
    """Progress of one segment; on processes other than the main one every call does nothing."""

    def __init__(
        self,
        args: Any,
        experiment: Experiment | None,
        device: torch.device,
        world_size: int,
        parts: Throughput,
    ) -> None:
        self.args, self.experiment, self.device = args, experiment, device
        peak = peak_flops(device)
        self.peak = None if peak is None else peak * world_size
        self.parts, self.items = parts, parts.items
        self.items_per_step = args.batch_size * args.acc_steps * parts.items_per_sample  # at most
        self.wandb: Any = None
        self.bar: tqdm[Any] | None = None
        self.steps, self.seconds = 0, 0.0

    def open(self) -> None:
        """Raises UserError where Weights & Biases is asked for and cannot be had."""
        if self.experiment and self.args.wandb:
            self.wandb = start_wandb(self.args, self.experiment)

    def begin(self, step: int) -> None:
        if self.experiment:
            self.bar = tqdm(
                total=self.args.iterations,
                initial=step,
                unit="step",
                desc="training",
                dynamic_ncols=True,
                disable=not sys.stderr.isatty(),
            )

    def stepped(self, seconds: float) -> None:
        """A training step took this long."""
        self.steps += 1
        self.seconds += seconds
        if self.bar is not None:
            self.bar.update()

    def row(self, row: dict[str, Any], lines: list[str]) -> None:
        """Keep a metrics row, unless its step has one already, and say it in words."""
        if self.experiment is None:
            return
        new = self.experiment.metrics.append({**row, "time": {"unix": time.time(), **row.get("time", {})}})
        if new and self.wandb is not None:
            self.wandb.log(charts(row) | tables(row), step=row["step"])
        for line in lines:
            log.info(line)

    def _rates(self, step: int) -> tuple[float, float]:
        """Items and floating-point operations a second, of the steps up to this one since the last line."""
        samples, items, flops = self.args.batch_size * self.args.acc_steps, 0.0, 0.0
        for taken in range(step - self.steps, step):
            work = self.parts.work(taken)
            items += samples * work.items
            flops += samples * work.items * work.flops_per_item
        return (items / self.seconds, flops / self.seconds) if self.seconds else (0.0, 0.0)

    def train_row(self, step: int, values: dict[str, float | None]) -> None:
        """The row and line of a step; rates are over the steps since the last such line. No gradient norm:
        it overflowed.
        """
        per_step = self.seconds / max(self.steps, 1)
        rate, flops_rate = self._rates(step)
        left = timedelta(seconds=round((self.args.iterations - step) * per_step))
        share = None
        if self.peak is not None and flops_rate:
            share = flops_rate / self.peak
        memory = peak_memory_mib(self.device)
        self.steps, self.seconds = 0, 0.0
        norm = values["grad_norm"]
        words = [
            f"step {step}/{self.args.iterations}",
            f"loss {values['loss']:.4f}",
            f"lr {values['lr']:.3g}",
            "gradient overflow" if norm is None else f"grad norm {norm:.3g}",
            f"{rate:,.0f} {self.items}/s",
            f"{memory:,.0f} MiB",
            f"ETA {left}",
        ]
        if share is not None:
            words.insert(5, f"{share:.1%} of peak")
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {values['loss']:.3f}, {rate:,.0f} {self.items}/s")
        clock = {
            "seconds_per_step": per_step,
            f"{self.items}_per_second": rate,
            "peak_memory_mib": memory,
            "eta_seconds": left.total_seconds(),
            "share_of_peak_flops": share,
        }
        self.row({"kind": "train", "step": step, **values, "time": clock}, ["  ".join(words)])

    def close(self, exit_code: int) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=exit_code)
