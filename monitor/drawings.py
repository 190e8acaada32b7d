"""What the page draws of many experiments, from their metrics.jsonl: from a cache where the files are as they
were, else made anew, in several processes where they are many.

    drawings = drawings_of({folder: rows of its segments.jsonl, ...})

The cache is one file in the user's own folder for caches; without such a folder, or with a damaged file,
everything is drawn anew.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from files import write_atomically
from monitor import curves, draw, samples
from optim import reader
from optim.evaluations import Best, Row, as_float
from optim.names import METRICS
from optim.reader import read_rows
from processes import die_with

POINTS_OF_A_PAGE = 32_000  # of one kind of curve: a page of 1,000 experiments stays below 3 MB
FEWEST_POINTS = 24
FEW = 32  # drawings that one process makes sooner than several
PROCESSES = 8  # at most; a login node is for others as well
CACHE = Path("cotformer-status", "drawings.json")
LARGEST_CACHE = 1 << 25  # characters of drawings that are kept

# folder of an experiment, steps where its further segments began, points of a curve, what best.pt is best by
Task = tuple[Path, Sequence[float], int, Best | None]


class Drawn(NamedTuple):
    """Markup of one experiment; empty where there is nothing to show."""

    curves: str = ""  # for draw.figure
    samples: str = ""  # the last ones

    @property
    def size(self) -> int:
        return sum(map(len, self))


Entries = dict[str, tuple[str, Drawn]]  # stamp and what it stamps, by folder


def drawings_of(
    segments_of: Mapping[Path, list[Row]], best_of: Mapping[Path, Best | None] = MappingProxyType({})
) -> dict[Path, Drawn]:
    """Of each experiment. best_of: of those that keep one."""
    limit = max(FEWEST_POINTS, min(draw.POINTS, POINTS_OF_A_PAGE // max(len(segments_of), 1)))
    tasks: list[Task] = [
        (folder, starts_of(segments), limit, best_of.get(folder)) for folder, segments in segments_of.items()
    ]
    stamps = {task[0]: _stamp(task) for task in tasks}
    path = cache_path()
    kept = _load(path)
    found = {
        folder: kept[str(folder)][1]
        for folder, stamp in stamps.items()
        if stamp and kept.get(str(folder), ("",))[0] == stamp
    }
    missing = [task for task in tasks if task[0] not in found]
    found |= dict(zip((task[0] for task in missing), _draw_all(missing), strict=True))
    if missing:
        _keep(path, {str(folder): (stamp, found[folder]) for folder, stamp in stamps.items() if stamp}, kept)
    return found


def starts_of(segments: Sequence[Row]) -> list[float]:
    """Steps at which a further segment began."""
    return sorted({start for row in segments[1:] if (start := as_float(row.get("start_step"))) is not None})


def _draw(task: Task) -> Drawn:
    folder, starts, limit, best = task
    rows = read_rows(folder / METRICS, [])
    return Drawn(draw.drawing(rows, starts, limit, best), samples.last_samples(rows))


def _draw_all(tasks: Sequence[Task]) -> list[Drawn]:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    workers = min(PROCESSES, cores)
    if len(tasks) > FEW and workers > 1:
        with (
            suppress(OSError, BrokenProcessPool),
            ProcessPoolExecutor(workers, get_context("fork"), _begin_work, (os.getpid(),)) as pool,
        ):
            return list(pool.map(_draw, tasks, chunksize=4))
    return [*map(_draw, tasks)]  # also where there is no room for more processes


def _begin_work(parent: int) -> None:
    """In a process that draws. It collects no garbage: its millions of small objects refer to each other
    in no circle.
    """
    die_with(parent)
    gc.disable()


# the cache


def cache_path() -> Path | None:
    """None where the user has no home. As the convention asks, a relative XDG_CACHE_HOME does not count."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with suppress(RuntimeError):
        return (cache_home if cache_home.is_absolute() else Path.home() / ".cache") / CACHE
    return None


def _stamp(task: Task) -> str:
    """Tells what a drawing is made from: the file as it is, the segments, this code. Empty where there is no
    file to read.

    It is taken before the file is read: what is written meanwhile makes the next stamp another one.
    """
    folder, *more = task
    try:
        facts = os.stat(folder / METRICS)
    except OSError:
        return ""
    stamp = [CODE, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, *more]
    return json.dumps(stamp, default=str)


def _hash_of_code() -> str:
    files = (draw.__file__, curves.__file__, samples.__file__, reader.__file__, __file__)
    sources = [Path(name).read_bytes() for name in files]
    return hashlib.sha256(b"".join(sources)).hexdigest()[:16]


CODE = _hash_of_code()


def _load(path: Path | None) -> Entries:
    """Nothing where the file is damaged or another user's, or there is none."""
    entries: Entries = {}
    with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        if path is not None and path.stat().st_uid == os.getuid():
            for name, (stamp, parts) in json.loads(path.read_text()).items():
                drawn = Drawn(*parts)
                if isinstance(stamp, str) and {*map(type, drawn)} == {str}:
                    entries[name] = stamp, drawn
    return entries


def _keep(path: Path | None, own: Entries, others: Entries) -> None:
    """Write these drawings and, as far as there is room, those of other pages; nothing, where that cannot
    be done.
    """
    entries, room = dict(own), LARGEST_CACHE - sum(drawn.size for _, drawn in own.values())
    for name, entry in others.items():
        if name not in own:
            room -= entry[1].size
            if room >= 0:
                entries[name] = entry
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(path, json.dumps(entries))
