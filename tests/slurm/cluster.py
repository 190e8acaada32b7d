"""A real SLURM cluster on this machine: munge, slurmctld and two slurmd in a private folder.

    python -m tests.slurm.cluster FOLDER      # start it, print the variable that makes commands use it, stop
    on Ctrl-C

Needs root (slurmd) and Debian's packages slurm-wlm and munge. The two nodes n1 and n2 have two fake GPUs
each; the partitions carry the reference site's names, and ecsstudents_l4 preempts scavenger_l4.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from processes import die_with
from tests.forked import REAL_START
from tests.forks import SERVER_ENV, make_environment, words_of_server

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
NODES = ("n1", "n2")
REQUEUE_WAIT_SECONDS = 5  # how long a requeued job waits; SLURM's default is 120
NODE_TIMEOUT_SECONDS = 15  # silence after which a node counts as down; SLURM's default is 300

SLURM_CONF = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_wait}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
MailProg={folder}/mail
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout={node_timeout}
KillWait=20
PropagateResourceLimitsExcept=AS
MinJobAge=300
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 RealMemory=200000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 RealMemory=200000 Gres=gpu:2
PartitionName=DEFAULT Nodes=n1,n2 State=UP DefaultTime=10
PartitionName=ecsstudents_l4 MaxTime=1-00:00:00 PriorityTier=10 PreemptMode=OFF Default=YES
PartitionName=a100 MaxTime=2-12:00:00 PriorityTier=10 PreemptMode=OFF
PartitionName=amd_student MaxTime=1-00:00:00 PriorityTier=10 PreemptMode=OFF
PartitionName=scavenger_l4 MaxTime=12:00:00 PriorityTier=1 GraceTime=0
PartitionName=scavenger_4a100 MaxTime=12:00:00 PriorityTier=1 GraceTime=5
"""


def missing() -> str | None:
    """Why there can be no cluster on this machine, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if absent:
        return (
            f"no SLURM here ({', '.join(absent)} not found); on Debian, as root: apt-get install slurm-wlm"
            " munge"
        )
    return None if os.geteuid() == 0 else "starting slurmd needs root"


def search_path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until a condition holds, the less often the longer that takes: questions cost SLURM and the tests
    beside this one their time. Raises TimeoutError that says what was waited for.
    """
    begin = time.monotonic()
    while not condition():
        waited = time.monotonic() - begin
        if waited > seconds:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(min(0.1 + waited / 10, 1))


class Cluster:
    """Started on entering, stopped with all its jobs on leaving."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.venv = Path(sys.prefix)  # of the jobs

    def __enter__(self) -> Cluster:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir()
        self._write_configuration()
        try:
            self._start(
                "munged",
                "munged",
                "--foreground",
                "--force",
                f"--socket={self.folder}/munge.socket",
                f"--key-file={self.folder}/munge.key",
                f"--pid-file={self.folder}/munged.pid",
                f"--log-file={self.folder}/munged.log",
                f"--seed-file={self.folder}/munged.seed",
            )
            wait_until((self.folder / "munge.socket").exists, 20, "munged")
            self._start("slurmctld", "slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            wait_until(
                lambda: (
                    self.run("sinfo", "-h", "-N", "-t", "idle", "-p", "a100", "-o", "%N").stdout.split()
                    == list(NODES)
                ),
                60,
                "idle nodes",
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        if "slurmctld" in self.daemons:
            self.run("scancel", "--full", "--signal=KILL", "--user=root")
            self.run("scancel", "--user=root")
            with suppress(TimeoutError):
                wait_until(lambda: not self.run("squeue", "-h").stdout.strip(), 30, "the queue to drain")
        for name in reversed(list(self.daemons)):
            self.kill(name, signal.SIGTERM)

    def _write_configuration(self) -> None:
        text = SLURM_CONF.format(
            folder=self.folder,
            host=socket.gethostname().split(".")[0],
            ports=free_ports(3),
            requeue_wait=REQUEUE_WAIT_SECONDS,
            node_timeout=NODE_TIMEOUT_SECONDS,
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(
            "".join(
                f"NodeName={node} Name=gpu File=/dev/{device}\n"
                for node in NODES
                for device in ("null", "zero")
            )
        )
        (self.folder / "mail").write_text(
            f'#!/bin/sh\n{{ printf "%s\\n" "$*"; cat; }} >>"{self.folder}/mails"\n'
        )
        (self.folder / "mail").chmod(0o755)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))

    def _start(self, name: str, *command: str, **env: str) -> None:
        # a Ctrl-C in the terminal must reach the tests, not the daemons; and they must not outlive the tests
        tests = os.getpid()
        with open(self.folder / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(
                command,
                env=self._environment(**env),
                cwd=ROOT,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=lambda: die_with(tests),
            )

    def _environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PATH": search_path(), **self.env, **more}

    def start_forks(self) -> None:
        """Have the jobs' Python programs forked, unless all are to start from nothing."""
        if REAL_START not in os.environ:
            self.venv = make_environment(self.folder)
            self._start("forks", *words_of_server(self.folder), **SERVER_ENV)
            wait_until((self.folder / "forks.socket").exists, 120, "the server of forks")

    def start_node(self, node: str, *prefix: str) -> None:
        """Start a node's slurmd; `prefix` are words of a command to start it under."""
        self._start(node, *prefix, "slurmd", "-D", "-N", node)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a daemon a signal and wait for its end."""
        daemon = self.daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def run(
        self, *command: str, cwd: Path | None = None, timeout: float = 120, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of the cluster."""
        return subprocess.run(
            command,
            env=self._environment(**env),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def main(folder: Path) -> None:
    wrong = missing()
    if wrong:
        sys.exit(wrong)
    with Cluster(folder) as cluster:
        print(f"export SLURM_CONF={cluster.env['SLURM_CONF']}", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):  # a script's background jobs ignore Ctrl-C otherwise
            signal.signal(number, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
