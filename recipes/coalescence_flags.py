"""Flags of coalescence times: their networks, data, adapters and horizon."""

from __future__ import annotations

from dataclasses import replace

from config.flags import FLAGS
from config.schema import PATH_OR_NAME, PLACE, SCHEDULE, Flag, switch
from models.coalescence.settings import ALL, LN_LAST_N, PRESETS, PUBLISHED, TINY

MODEL = Flag(
    "model",
    str,
    "broad",
    f"network: {', '.join(PUBLISHED)}, or one that a CPU can train: {', '.join(TINY)}; those with wmissing"
    " read which share of a window is missing",
    choices=tuple(PRESETS),
)
DATASET = Flag(
    "dataset",
    str,
    "processed",
    "folder that data.genomes.preprocess has made, by its name under --data_dir or as a path",
    names=PATH_OR_NAME,
)
NETWORK: tuple[Flag, ...] = (
    MODEL,
    Flag(
        "dropout", float, None, "after encoder, embedding, attention and MLP (None: that of --model)", low=0
    ),
    FLAGS["dtype"],
    FLAGS["compile"],
    replace(
        FLAGS["activation_checkpointing"],
        choices=("none", "block"),
        help="block: save memory: keep only the inputs of a block, and recompute the rest for the gradients",
    ),
)
DATA: tuple[Flag, ...] = (
    DATASET,
    FLAGS["data_dir"],
    Flag(
        "workers", int, 0, "threads that read a batch; 0: none beside the training's own", low=0, scope=PLACE
    ),
)
ADAPTER: tuple[Flag, ...] = (
    switch("adapter", "train an adapter to data of fewer samples, below it the norms and the last blocks"),
    Flag("adapter_samples", int, 10, "samples of the data with --adapter", low=1),
    Flag("adapter_bottleneck", int, 32, "width of the adapter's branch", low=1),
    Flag("adapter_dropout", float, 0.0, "in the adapter's branch; the network below goes without", low=0),
    Flag(
        "unfreeze_strategy",
        str,
        LN_LAST_N,
        "what of the network is trained with the adapter: ln_lastN: its norms and last blocks; all:"
        " everything, at --lr and with dropout, as of a network that has not been trained before",
        choices=(LN_LAST_N, ALL),
    ),
    Flag("adapter_last_n", int, 2, "ln_lastN: blocks that are trained with the adapter", low=0),
    Flag("backbone_rate", float, 0.05, "ln_lastN: rate of blocks and norms, a multiple of --lr", low=0),
    Flag(
        "resume_adapter",
        str,
        None,
        "begin with the weights of a checkpoint of --adapter, those of the network below included: fresh"
        " optimiser, any preset of the same size; counts before --checkpoint (None: a new adapter)",
        scope=PLACE,  # --init_from takes its value, and is compared
        names=PATH_OR_NAME,
    ),
)
HORIZON: tuple[Flag, ...] = (
    Flag(
        "epochs",
        int,
        10,
        "passes over the training pairs, where there is no --iterations",
        low=1,
        scope=SCHEDULE,
    ),
    Flag(
        "gpus",
        int,
        None,
        "GPUs of a run without a scheduler, by index; several: a process for each (None: --device)",
        low=0,
        many=True,
        scope=PLACE,
    ),
    Flag(
        "decay_steps",
        int,
        150_000,
        "steps in which warmup_cos reaches --min_lr, whatever the length of the run (None: all of it)",
        low=1,
        optional=True,
    ),
)
