"""Time of status.py over many experiments: the table, the page, and the page once its drawings are in the
cache.

    python bench/status.py [--experiments 1000] [--rows 4000] [--rounds 3] [--against CLONE] [--sample 8]

--against: a clone of another revision, which is given the same table, and the page of one experiment and of
`--sample` more: what each adds tells how long the whole page would take. Ratios are of processor time, which
other work on the machine disturbs less than the clock's.
The folders are made up, in TMPDIR: 1.2 GB by default. It needs no torch.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

RUNS = 8  # different ones; the others are copies under other names
SEGMENTS = 4
LOG_FREQ, EVAL_FREQ = 10, 250  # steps from a row to the next
CLONE = Path(__file__).resolve().parents[1]


def metrics(rows: int, chance: random.Random) -> str:
    """Rows of a training with noise, slow steps at evaluations and two spikes of the gradient norm, as
    main.py writes them.
    """
    lines, spikes = [], {chance.randrange(rows) for _ in range(2)}
    for index in range(rows):
        step = LOG_FREQ * (index + 1)
        level = 2.8 + 7 * math.exp(-8 * index / rows)
        speed = chance.gauss(52_000, 300) / (1 + 9 * (step % EVAL_FREQ == 0))
        clock = {
            "unix": 1.78e9 + 2.5 * step,
            "seconds_per_step": 131_072 / speed,
            "tokens_per_second": speed,
            "peak_memory_mib": 20480.5,
            "eta_seconds": 2.5 * LOG_FREQ * (rows - index),
            "share_of_peak_flops": 0.41,
        }
        norm = chance.lognormvariate(-1, 0.15) * (20 if index in spikes else 1)
        lines.append(
            {
                "kind": "train",
                "step": step,
                "loss": chance.gauss(level, 0.08),
                "lr": 1e-3 * (1 - index / rows),
                "grad_norm": norm,
                "time": clock,
            }
        )
        if step % EVAL_FREQ == 0:
            loss = chance.gauss(level, 0.02)
            lines.append(
                {
                    "kind": "eval",
                    "step": step,
                    "val_loss": loss,
                    "val_pp": math.exp(loss),
                    "time": {"unix": 1.78e9 + 2.5 * step},
                }
            )
    return "".join(json.dumps(line) + "\n" for line in lines)


def make(base: Path, experiments: int, rows: int) -> None:
    chance = random.Random(0)
    texts = [metrics(rows, chance) for _ in range(min(RUNS, experiments))]
    last = LOG_FREQ * rows
    for index in range(experiments):
        folder = (
            base
            / "owt2"
            / ("cotformer_full_depth", "base")[index % 2]
            / f"lr1e-3_bs8x16_seqlen256_n_embd768_n_layer24_seed{index:04}"
        )
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(texts[index % len(texts)])
        state = {
            "state": "finished",
            "itr": last,
            "iterations": last,
            "reason": "all iterations done",
            "updated": 1.79e9,
            "job_id": f"{index}",
        }
        (folder / "status.json").write_text(json.dumps(state))
        bounds = [last * part // SEGMENTS for part in range(SEGMENTS + 1)]
        segments = [
            {
                "segment": part,
                "job_id": f"{index}{part}",
                "start_step": bounds[part],
                "end_step": bounds[part + 1],
                "reason": "time limit",
                "seconds": 86_000.5,
                "started": 1.78e9,
            }
            for part in range(SEGMENTS)
        ]
        (folder / "segments.jsonl").write_text("".join(json.dumps(row) + "\n" for row in segments))
        (folder / "ckpt.pt").write_bytes(b"x")


def run(clone: Path, base: Path, cache: Path, *flags: str) -> tuple[float, float]:
    """Seconds by the clock, and of all processors."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, str(clone / "status.py"), *flags, str(base)],
        cwd=clone,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    took, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name, default in (("experiments", 1000), ("rows", 4000), ("sample", 8), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--against", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        for name, count in (("all", args.experiments), ("sample", args.sample + 1), ("one", 1)):
            make(top / name, count, args.rows)
        page = ("--html", str(top / "page.html"))
        times: dict[str, list[tuple[float, float]]] = {}

        def take(name: str, *words: Any) -> None:
            times.setdefault(name, []).append(run(*words))

        for turn in range(args.rounds):
            cache = top / f"cache_{turn}"
            take("table", CLONE, top / "all", cache)
            take("page", CLONE, top / "all", cache, *page)
            megabytes = (top / "page.html").stat().st_size / 1e6
            take("page_from_cache", CLONE, top / "all", cache, *page)
        if args.against:
            other = args.against.resolve()
            take("other_table", other, top / "all", cache)
            for name in ("one", "sample"):
                take(f"other_page_of_{name}", other, top / name, cache, *page)
        figures = {
            name: [statistics.median(column) for column in zip(*found, strict=True)]
            for name, found in times.items()
        }
        result: dict[str, Any] = {
            "bench": "status",
            "experiments": args.experiments,
            "rows": args.rows,
            "cores": os.cpu_count(),
            "page_megabytes": round(megabytes, 2),
        }
        for name, (clock, processors) in figures.items():
            result |= {
                f"{name}_s": round(clock, 2),
                f"{name}_cpu_s": round(processors, 2),
                f"{name}_fastest_s": round(min(times[name])[0], 2),
            }
        if args.against:
            of_each = (figures["other_page_of_sample"][1] - figures["other_page_of_one"][1]) / args.sample
            whole = figures["other_page_of_one"][1] + of_each * (args.experiments - 1)
            result |= {
                "table_ratio_cpu": round(figures["other_table"][1] / figures["table"][1], 1),
                "page_ratio_cpu": round(whole / figures["page"][1], 1),
            }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
