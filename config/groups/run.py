"""Flags of the run as a whole: its length, batch, seeds, device, and how it stops."""

from __future__ import annotations

from config.schema import PATH, PLACE, SCHEDULE, Flag, switch

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # that can stop a training
DEFAULT_STOP_SIGNALS = STOP_SIGNALS[:5]

RUN: tuple[Flag, ...] = (
    Flag(
        "config",
        str,
        None,
        "JSON file of flag values, in sections or not, between the defaults and the command line",
        scope=PLACE,
        names=PATH,
    ),
    Flag("iterations", int, 25000, "optimiser steps in all (not epochs)", low=1, scope=SCHEDULE),
    Flag("batch_size", int, 32, "sequences of one micro-batch on one process", low=1),
    Flag(
        "acc_steps",
        int,
        4,
        "micro-batches of one step, over all processes; effective batch = batch_size x acc_steps",
        low=1,
    ),
    Flag("seed", int, 2, "seed of the weights, dropout and depth draws", low=0),
    Flag("data_seed", int, None, "seed of the order of the samples (None: the value of --seed)", low=0),
    Flag("device", str, "auto", "auto (cuda if there, else cpu), cpu, cuda or cuda:N", scope=PLACE),
    switch("deterministic", "use only deterministic algorithms (exact resume on GPUs; slower)", scope=PLACE),
    Flag(
        "stop_file",
        str,
        None,
        "stop cleanly when this file exists; its text, if any, is the reason. The file 'stop' in the"
        " experiment folder always does (None: only that one)",
        scope=PLACE,
        names=PATH,
    ),
    Flag(
        "stop_signals",
        str,
        None,
        f"signals at which to finish the step, save and end (None: {' '.join(DEFAULT_STOP_SIGNALS)}); a"
        " SIGHUP that nohup has ignored stays ignored",
        choices=STOP_SIGNALS,
        many=True,
        scope=PLACE,
    ),
    Flag(
        "outcome_file",
        str,
        None,
        "write a copy of outcome.json here, also where the experiment's folder cannot be written (None:"
        " no copy)",
        scope=PLACE,
        names=PATH,
    ),
    Flag(
        "max_runtime_minutes",
        float,
        None,
        "stop cleanly after this many minutes (None: no limit)",
        low=0,
        scope=PLACE,
    ),
    Flag(
        "extend",
        str,
        None,
        "when --iterations was raised on an experiment: 'continue' takes the rate from where it is to its"
        " end value over the new steps; 'restart' warms it up again first; 'rejoin' takes the rates of a"
        " run that was planned this long from the start, from this step on",
        choices=("continue", "restart", "rejoin"),
        scope=SCHEDULE,
    ),
)
