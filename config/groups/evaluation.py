"""Flags of evaluations and what is reported."""

from __future__ import annotations

from config.schema import EVALUATION, PATH, PLACE, Flag, switch

EVALUATIONS: tuple[Flag, ...] = (
    Flag("eval_freq", int, 200, "evaluate every N steps; 0 = only at the end", low=0, scope=PLACE),
    Flag(
        "eval_batches",
        int,
        24,
        "batches of an evaluation during training, always the same ones; 0 = the whole split, as at the end",
        low=0,
        scope=EVALUATION,
    ),
    Flag("eval_samples", int, 4, "grpo: completions of each held-out prompt", low=1, scope=EVALUATION),
    Flag(
        "pass_k",
        int,
        None,
        "grpo: numbers k of pass@k, the chance that one of k completions passes, that is has a reward of 1 or"
        " more; at most --eval_samples (None: 1)",
        low=1,
        many=True,
        scope=EVALUATION,
    ),
    Flag("eval_seq_prefix", str, "Once upon a time", "prompt of text samples", scope=EVALUATION),
    Flag(
        "eval_seq_length",
        int,
        None,
        "eval.py: tokens of a sequence (None: --sequence_length)",
        low=1,
        scope=EVALUATION,
    ),
    Flag(
        "eval_sample_size",
        int,
        None,
        "eval.py: tokens to evaluate (None: the whole split)",
        low=1,
        scope=EVALUATION,
    ),
    Flag(
        "log_freq",
        int,
        10,
        "write a log line and a metrics row every N steps; 0 = never",
        low=0,
        scope=PLACE,
    ),
    Flag(
        "sample_every",
        int,
        0,
        "continue prompts every N steps, in the log, metrics.jsonl and Weights & Biases; 0 = never",
        low=0,
        scope=PLACE,
    ),
    Flag(
        "sample_prompts",
        str,
        None,
        "file of the prompts of --sample_every: one a line, or a JSON list of strings (None:"
        " --eval_seq_prefix and a few that are built in)",
        scope=PLACE,
        names=PATH,
    ),
    Flag("sample_tokens", int, 32, "most tokens that a sample adds to its prompt", low=1, scope=PLACE),
    Flag(
        "sample_temperature",
        float,
        0.0,
        "divides the logits of samples; 0 takes the likeliest token each time",
        low=0,
        scope=PLACE,
    ),
    Flag(
        "core_data",
        str,
        None,
        "folder or zip of CORE's tasks: core.yaml, eval_meta_data.csv, eval_data/, or eval_bundle/ with them."
        " eval.py measures CORE where it is given, a training each --core_metric_every steps (None: no CORE)",
        scope=PLACE,
        names=PATH,
    ),
    Flag(
        "core_metric_every",
        int,
        2000,
        "measure CORE every N steps and at the last one, where there is --core_data; 0 = never",
        low=0,
        scope=PLACE,
    ),
    Flag(
        "core_metric_max_per_task",
        int,
        500,
        "items of each task of CORE; -1 = all of them",
        low=-1,
        scope=PLACE,
    ),
    switch("wandb", "log to Weights & Biases (WANDB_MODE=offline on nodes without internet)", scope=PLACE),
    Flag(
        "wandb_project",
        str,
        "my-project",
        "project in Weights & Biases; WANDB_PROJECT is used where this is not given",
        scope=PLACE,
    ),
    Flag(
        "wandb_entity",
        str,
        None,
        "team in Weights & Biases (None: WANDB_ENTITY, else the personal account)",
        scope=PLACE,
    ),
)
