"""Flags of what watches a training: early stopping, a budget, measurements, exports, hooks of the user's."""

from __future__ import annotations

from config.schema import PLACE, Flag, switch

HOOKS: tuple[Flag, ...] = (
    Flag(
        "early_stop",
        str,
        None,
        "PATIENCE:DELTA, such as 5:0.001: end as complete after PATIENCE evaluations without one that is"
        " better than the best by more than DELTA; of --track, else of val_loss (None: never)",
        scope=PLACE,
    ),
    Flag(
        "flop_budget",
        float,
        None,
        "end as complete once the steps have taken this many floating-point operations, over all runs and"
        " processes (None: no limit)",
        low=1,
        scope=PLACE,
    ),
    Flag(
        "layer_norms",
        int,
        0,
        "every N steps, a row of metrics.jsonl with each layer's gradient, weight and activation norm,"
        " attention entropy and effective rank; 0 = never",
        low=0,
        scope=PLACE,
    ),
    Flag(
        "health",
        int,
        0,
        "every N log lines, a row with memory and load of the host, and temperature, power and memory of the"
        " GPU; 0 = never",
        low=0,
        scope=PLACE,
    ),
    switch("csv", "export the rows of metrics.jsonl to metrics.csv beside it", scope=PLACE),
    switch(
        "tensorboard",
        "export them to tensorboard/ in the experiment's folder; needs requirements-tensorboard.txt",
        scope=PLACE,
    ),
    Flag(
        "hook",
        str,
        None,
        "MODULE:CLASS of a hook of your own (docs/library-hooks.md); several: --hook a:B c:D, or --hook"
        " again (None: no hook)",
        many=True,
        repeats=True,
        scope=PLACE,
    ),
)
