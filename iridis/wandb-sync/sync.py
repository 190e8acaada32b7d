"""Uploads offline Weights & Biases runs, so that all segments of an experiment are one run there.

    bash iridis/wandb-sync/job.sh [--dry-run] [FOLDER ...]

`wandb sync` does the work: each file records that it resumes the run of its id, so its rows are appended
there. A file that is sent again sends all its rows again; the server keeps rows by step, so they fall on
those that it has. This adds what `wandb sync FOLDER` (0.31) leaves to its caller:
- a segment that ends in the middle of a record, as a killed job leaves it, does not keep the later ones from
  being sent;
- its marker `*.wandb.synced` holds the size that was sent, so that a file that has grown since is sent again;
- the marker goes again if the upload failed: wandb sets it, and exits with 0, even if the server refused
  every row.
Exit codes: 0 all uploaded, 1 something failed and is tried again by the next call, 2 not logged in, no
network, bad arguments.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

# the first seen to append resumed segments in `wandb sync`; older ones replace the rows of the segment before
NEEDS_WANDB = (0, 31)
TIMEOUT = 15  # seconds for the server's first answer
# bytes of a file without records: wandb writes in blocks of 32 KiB, so that a young job's file stays empty
# for a while
HEADER = 7
CUT_SHORT = "ends with an incomplete record"  # wandb's words: the job is writing, or was killed


class CannotSync(Exception):
    """Nothing was uploaded, and the message says what to do."""


@dataclass(frozen=True)
class Segment:
    """What one job logged: the file run-ID.wandb in offline-run-DATE_TIME-ID/."""

    file: Path

    @property
    def marker(self) -> Path:
        return self.file.with_suffix(".wandb.synced")

    def is_new(self) -> bool:
        """Never uploaded, or grown since; an empty marker is that of a plain `wandb sync`, which keeps no
        size.
        """
        size = self.file.stat().st_size
        return size > HEADER and (not self.marker.exists() or self.marker.read_text().strip() != str(size))


def find_segments(folders: list[Path]) -> dict[str, list[Segment]]:
    """By run id, in order of start. The names carry the time; times of files do not survive every copy."""
    found: dict[str, list[Segment]] = defaultdict(list)
    files = {file.resolve() for folder in folders for file in folder.glob("**/run-*.wandb")}
    for file in sorted(
        (file for file in files if file.parent.name.startswith("offline-run-")),
        key=lambda file: file.parent.name,
    ):
        found[file.stem.removeprefix("run-")].append(Segment(file))
    return found


def experiment_names(results: Path) -> dict[str, str]:
    """Name of the experiment folder by run id."""
    return {file.read_text().strip(): file.parent.name for file in results.glob("*/*/*/wandb_id")}


def check_network(address: str) -> None:
    """wandb itself waits for a missing network without end, even while it exits."""
    try:
        urllib.request.urlopen(address, timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        pass  # an answer
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise CannotSync(
            f"nothing uploaded: cannot reach {address} ({reason}); run this, and `wandb login`, on a node"
            " with internet"
        ) from None


def check_login() -> None:
    """Ask the server whether it knows us before anything is sent."""
    os.environ["WANDB_SILENT"] = "true"
    try:
        import wandb
        from wandb.sdk import wandb_setup
    except ImportError:
        raise CannotSync("the wandb package is not installed; pip install wandb") from None
    if tuple(map(int, re.findall(r"\d+", wandb.__version__)[:2])) < NEEDS_WANDB:
        raise CannotSync(
            f"wandb {wandb.__version__} would overwrite segments; pip install -U"
            f" 'wandb>={'.'.join(map(str, NEEDS_WANDB))}'"
        )
    check_network(wandb_setup.singleton().settings.base_url)
    try:
        wandb.Api(timeout=TIMEOUT)
    except wandb.errors.Error as error:
        raise CannotSync(
            f"nothing uploaded: not logged in ({str(error).splitlines()[0]}); run `wandb login` here first"
        ) from None
    finally:
        del os.environ["WANDB_SILENT"]


def upload(segment: Segment) -> tuple[bool, list[str]]:
    """Whether all of the file that there is now is at the server, and wandb's complaints."""
    # before the upload: what is written during it is left to the next call
    size = segment.file.stat().st_size
    outcome = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--include-synced", str(segment.file)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (outcome.stdout + outcome.stderr).splitlines()
    errors = [line.split("ERROR", 1)[1].strip() for line in lines if "ERROR" in line]
    cut_short = any(CUT_SHORT in error for error in errors)
    complaints = [error for error in errors if CUT_SHORT not in error]
    if outcome.returncode or complaints or not (cut_short or segment.marker.exists()):
        segment.marker.unlink(missing_ok=True)
        return False, complaints or lines[-1:] or ["wandb sync said nothing"]
    segment.marker.write_text(f"{size}\n")
    return True, ["ends in the middle of a record: its job is running or was killed"] if cut_short else []


def sync_experiment(name: str, run_id: str, segments: list[Segment], dry_run: bool) -> bool:
    """Upload in order, up to the first failure: later steps must not reach the server before earlier ones."""
    new = [segment for segment in segments if segment.is_new()]
    remarks: list[str] = []
    sent, ok = 0, True
    for segment in [] if dry_run else new:
        ok, output = upload(segment)
        remarks += [f"{segment.file.parent.name}: {line}" for line in output]
        if not ok:
            break
        sent += 1
    current = len(segments) - len(new) + sent
    did = "" if not new else f", {len(new)} to upload" if dry_run else f", {sent} uploaded now"
    print(
        f"{name}  {run_id}  {current} of {len(segments)} segments up to date{did}{'' if ok else ', FAILED'}",
        flush=True,
    )
    for remark in remarks:
        print(f"    {remark}", file=sys.stderr)
    return ok


def sync_all(folders: list[Path], results: Path, dry_run: bool) -> bool:
    """Every experiment found; one that fails does not keep the others."""
    experiments = find_segments(folders)
    if not experiments:
        print(f"no offline runs below {', '.join(map(str, folders))}")
    elif not dry_run and any(segment.is_new() for segments in experiments.values() for segment in segments):
        check_login()
    names = experiment_names(results)
    outcomes = [
        sync_experiment(names.get(run_id, "(no folder)"), run_id, segments, dry_run)
        for run_id, segments in experiments.items()
    ]
    return all(outcomes)


def take_turns(folders: list[Path]) -> None:
    """Two syncs at once would send the same rows; the lock ends with the process."""
    for folder in folders:
        if not folder.is_dir():
            raise CannotSync(
                f"{folder} is not a folder; $WANDB_DIR, or arguments, name where the offline runs lie"
            )
        try:
            fcntl.flock(os.open(folder / ".sync-lock", os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotSync(f"another sync of {folder} is running") from None
        except OSError:
            pass  # a mount without locks, or a folder of somebody else


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="iridis/wandb-sync/job.sh", description="Upload offline Weights & Biases runs."
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help="where offline runs lie, at any depth; default: $WANDB_DIR",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print what would be uploaded")
    parser.add_argument("--wandb_dir", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--results_dir", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    folders = sorted({folder.resolve() for folder in args.folders or [args.wandb_dir]})
    os.environ.pop("WANDB_MODE", None)  # jobs set it to offline
    try:
        take_turns(folders)
        return 0 if sync_all(folders, args.results_dir, args.dry_run) else 1
    except CannotSync as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
