"""Flags of checkpoints, of what is done when things go wrong, and of processes."""

from __future__ import annotations

from config.schema import PATH, PATH_OR_NAME, PLACE, Flag, switch

BACKENDS = ("nccl", "gloo")

CHECKPOINTS: tuple[Flag, ...] = (
    Flag(
        "results_base_folder",
        str,
        "./exps",
        "root of the experiment folders <dataset>/<model>/<name>",
        scope=PLACE,
        names=PATH,
    ),
    Flag(
        "exp_name",
        str,
        None,
        "name of the experiment folder (None: built from what differs from the defaults)",
        scope=PLACE,
    ),
    Flag("run_prefix", str, None, "prefix of the name that is built", scope=PLACE),
    Flag(
        "save_checkpoint_freq",
        int,
        None,
        "write ckpt_N.pt every N steps (None: only the final ckpt.pt and on a stop)",
        low=1,
        scope=PLACE,
    ),
    Flag("keep_checkpoints", int, 2, "newest ckpt_N.pt to keep; 0 = all", low=0, scope=PLACE),
    Flag(
        "keep_steps",
        int,
        None,
        "write ckpt_N.pt after these steps too, and never delete those (None: no such steps)",
        low=1,
        many=True,
        scope=PLACE,
    ),
    Flag(
        "track",
        str,
        None,
        "keep the best checkpoint as best.pt, by a quantity of the evaluations during training: val_loss,"
        " val_pp, val_acc, or val_bpb, bits per byte (None: no best.pt)",
        scope=PLACE,
    ),
    switch(
        "remove_intermediary_checkpoints_at_end",
        "delete every ckpt_N.pt but those of --keep_steps once ckpt.pt is there",
        scope=PLACE,
    ),
    Flag(
        "init_from",
        str,
        None,
        "begin with the weights of a checkpoint file, or of the newest one of an experiment (folder or"
        " name), ours or the authors': fresh optimiser, any data and schedule. Read once; later jobs"
        " resume without it (None: random weights)",
        names=PATH_OR_NAME,
    ),
    Flag(
        "use_pretrained",
        str,
        "auto",
        "auto: resume from the newest valid checkpoint of the experiment; a file; None: start afresh",
        scope=PLACE,
        optional=True,
        names=PATH_OR_NAME,
    ),
)

FAULTS: tuple[Flag, ...] = (
    Flag(
        "on_bad_step",
        str,
        "stop",
        "what to do where a step's loss or gradient is not finite, or its norm is above"
        " --grad_norm_limit: stop, or skip the step (ten in a row stop the run)",
        choices=("stop", "skip"),
        scope=PLACE,
    ),
    Flag(
        "grad_norm_limit",
        float,
        None,
        "gradient norm that counts as an explosion (None: only one that is not finite)",
        low=0,
        scope=PLACE,
    ),
    Flag(
        "watchdog_minutes",
        float,
        30.0,
        "end a process that completes no step, evaluation batch or save in this time, and write the "
        "stacks of its threads; 0 = never",
        low=0,
        high=1e6,
        scope=PLACE,
    ),
    switch(
        "selftest_resume",
        "train a small model here with and without kills, compare every bit, print the verdict; trains"
        " nothing else",
        scope=PLACE,
    ),
)

WHOLE, SHARDED_OPTIMISER, FULLY_SHARDED = SHARDS = ("none", "optimizer", "full")

DISTRIBUTED: tuple[Flag, ...] = (
    Flag(
        "shard",
        str,
        WHOLE,
        "what is shared out among the processes instead of being on each of them: the optimiser's state"
        " (optimizer), or that, gradients and weights (full); next_token with adamw only",
        choices=SHARDS,
        scope=PLACE,
    ),
    Flag(
        "distributed_backend",
        str,
        None,
        "nccl or gloo (None under torchrun: nccl with CUDA, else gloo)",
        choices=BACKENDS,
        scope=PLACE,
    ),
)
