"""The stages of a graph run on this machine, each after those that it waits for; for iridis/graph.py.

A stage is the job.sh of its package with --local. Its lines are printed behind its name. Where a stage
fails, those that do not wait for it go on. All that stages do can be repeated: the same command goes on where
this one ended, however it ended.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from errors import STOPPED
from processes import die_with

DONE, NEW, FAILED, BLOCKED, INTERRUPTED = "done", "new", "failed", "blocked", "stopped"
TICK = 0.5  # seconds between looks at stages that print nothing
READ_BYTES = 1 << 16
ROOT = Path(__file__).parent.parent
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def say(line: str) -> None:
    print(line, flush=True)


@dataclass
class Running:
    """A stage whose job runs. `rest`: what it has printed of a line that is not at its end."""

    name: str
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)
    rest: bytes = b""

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def show(self, content: bytes) -> None:
        """Print the lines that are complete; of a line that is overwritten, such as a bar, its last state."""
        *lines, self.rest = (self.rest + content).split(b"\n")
        for line in lines:
            text = line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
            say(f"{self.name}: {text}")


def start(name: str, command: Sequence[str], env: Mapping[str, str]) -> Running:
    """Start a job, which is asked to end, with all that it has started, when this process is gone."""
    process = subprocess.Popen(
        [sys.executable, "-m", "iridis.stages", str(os.getpid()), *command],
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    stage = Running(name, process)
    os.set_blocking(stage.output.fileno(), False)
    say(f"=== {name} begins")
    return stage


def attend(parent: int, command: Sequence[str]) -> int:
    """Exit code of a command, which is asked to end when `parent` is gone, and so is all that it has started:
    a signal at the death of a process reaches its own children alone.
    """
    for signum in (signal.SIGINT, signal.SIGHUP):  # a terminal's, which the others get as well
        signal.signal(signum, lambda *_: None)
    with subprocess.Popen(command) as process:
        signal.signal(signal.SIGTERM, lambda *_: ask_to_end(process.pid))
        die_with(parent, signal.SIGTERM)
        code = process.wait()
    return code if code >= 0 else 128 - code


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # it has ended meanwhile
            continue
        for child in children:
            found += descendants(int(child))
    return found


def ask_to_end(top: int) -> None:
    """A process and all below it."""
    for pid in descendants(top):
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue


class Stages:
    """Runs stages, at most `at_once` at a time.

    states: DONE, NEW, or the id of a job, by stage; becomes what they end as. after: the stages that each
    waits for. launch: starts one. The order of `after` decides between stages that could both begin.
    """

    def __init__(
        self,
        states: dict[str, str],
        after: Mapping[str, Sequence[str]],
        launch: Callable[[str], Running],
        at_once: int,
    ) -> None:
        self.states, self.after, self.launch, self.at_once = states, after, launch, at_once
        self.running: list[Running] = []
        self.problems: list[str] = []
        self.asked_to_end = False

    def run(self) -> list[str]:
        """Returns a line for each stage that is not done at the end."""
        before = {signum: signal.signal(signum, self._end) for signum in ENDING}
        try:
            with selectors.DefaultSelector() as selector:
                while self._start_ready(selector) or self.running:
                    self._wait(selector)
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
        while any(self._blocked(name) for name in self.after):
            continue
        return self.problems

    def _end(self, *_: Any) -> None:
        """For signals: no stage begins any more, and those that run are asked to end."""
        self.asked_to_end = True
        for stage in self.running:
            stage.process.terminate()

    def _start_ready(self, selector: selectors.BaseSelector) -> bool:
        """Start what can begin. Returns whether anything did."""
        names = {stage.name for stage in self.running}
        ready = [
            name
            for name, earlier in self.after.items()
            if self.states[name] == NEW
            and name not in names
            and all(self.states[other] == DONE for other in earlier)
        ]
        started = [] if self.asked_to_end else ready[: self.at_once - len(self.running)]
        for name in started:
            stage = self.launch(name)
            self.running.append(stage)
            selector.register(stage.output, selectors.EVENT_READ, stage)
        return bool(started)

    def _wait(self, selector: selectors.BaseSelector) -> None:
        """Print what stages print, and note those that end."""
        for key, _ in selector.select(TICK):
            stage = key.data
            content = os.read(key.fd, READ_BYTES)
            if content:
                stage.show(content)
            else:
                selector.unregister(key.fileobj)
        for stage in [stage for stage in self.running if stage.process.poll() is not None]:
            if stage.output in [key.fileobj for key in selector.get_map().values()]:
                self._read_rest(stage)
                selector.unregister(stage.output)
            self._ended(stage)

    @staticmethod
    def _read_rest(stage: Running) -> None:
        """What is left in the pipe; a process that the stage has left behind may hold it open."""
        try:
            while content := os.read(stage.output.fileno(), READ_BYTES):
                stage.show(content)
        except BlockingIOError:
            return

    def _ended(self, stage: Running) -> None:
        self.running.remove(stage)
        if stage.rest:
            stage.show(b"\n")
        stage.output.close()
        code = stage.process.returncode
        took = f"after {time.monotonic() - stage.began:.0f} s"
        if code == 0:
            self.states[stage.name] = DONE
            say(f"=== {stage.name} is done, {took}")
        elif code == STOPPED or self.asked_to_end:
            self.states[stage.name] = INTERRUPTED
            self.problems.append(f"stage {stage.name} was stopped {took}; the same command goes on")
        else:
            self.states[stage.name] = FAILED
            say(f"=== {stage.name} has failed, {took}")
            self.problems.append(f"stage {stage.name} ended with code {code} {took}, see above")

    def _blocked(self, name: str) -> bool:
        """Whether a stage turns out to wait for one that will not be done."""
        missing = [other for other in self.after[name] if self.states[other] not in (DONE, NEW)]
        if self.states[name] != NEW or not missing:
            return False
        self.states[name] = BLOCKED
        waits = ", ".join(f"{other} ({self.states[other]})" for other in missing)
        self.problems.append(f"stage {name} has not run: it waits for {waits}")
        return True


def thread_share(at_once: int) -> int:
    """Threads for each of the stages that run at a time."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores // at_once)


if __name__ == "__main__":
    sys.exit(attend(int(sys.argv[1]), sys.argv[2:]))
