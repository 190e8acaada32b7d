"""Flags of what training minimises."""

from __future__ import annotations

from config.formats import CHAT, PAIRS, PROMPTS
from config.groups.model import DTYPES
from config.schema import PATH_OR_NAME, Flag, dtype_name

NEXT_TOKEN, MULTI_TOKEN, DISTILLATION = "next_token", "multi_token", "distillation"
SFT, DPO, GRPO = "sft", "dpo", "grpo"
OBJECTIVES = (NEXT_TOKEN, MULTI_TOKEN, DISTILLATION, SFT, DPO, GRPO)
# objectives of fine-tuning -> the form of the examples that each is trained on (data.tokenize --format)
EXAMPLES = {SFT: CHAT, DPO: PAIRS, GRPO: PROMPTS}
# flags of some objectives only -> these
OF_OBJECTIVES = {
    "mtp_heads": (MULTI_TOKEN,),
    "mtp_weight": (MULTI_TOKEN,),
    "teacher_dtype": (DISTILLATION,),
    "distill_temperature": (DISTILLATION,),
    "distill_alpha": (DISTILLATION,),
    "reference": (DPO, GRPO),
    "beta": (DPO, GRPO),
    "reward": (GRPO,),
    "group_size": (GRPO,),
    "clip": (GRPO,),
    "completion_tokens": (GRPO,),
    "rollout_temperature": (GRPO,),
}

OBJECTIVE: tuple[Flag, ...] = (
    Flag(
        "objective",
        str,
        NEXT_TOKEN,
        "what training minimises: next_token; multi_token: also the loss of heads that predict the tokens"
        " after the next one; distillation: also the divergence from a teacher's distribution; sft, dpo and"
        " grpo fine-tune on examples (python -m data.tokenize --format chat, pairs, prompts): on answers, on"
        " which of two answers is preferred, on rewards of its own answers. Evaluations measure the"
        " next-token loss of the network alone, of sft, dpo and grpo what they are trained for",
        choices=OBJECTIVES,
    ),
    Flag("mtp_heads", int, 2, "multi_token: heads, the k-th of which predicts k tokens further ahead", low=1),
    Flag("mtp_weight", float, 0.3, "multi_token: weight of the mean of the heads' losses", low=0),
    Flag(
        "teacher",
        str,
        None,
        "distillation: checkpoint of the teacher, a file, or the newest one of an experiment (folder or"
        " name), of any model with the same tokens. Needed as it is until the training is finished",
        names=PATH_OR_NAME,
    ),
    Flag(
        "teacher_dtype",
        dtype_name,
        None,
        "distillation: dtype that the teacher computes in (None: that of its own training)",
        choices=DTYPES[1:],
    ),
    Flag("distill_temperature", float, 4.0, "distillation: divides the logits of both", low=0.01),
    Flag(
        "distill_alpha",
        float,
        0.7,
        "distillation: share of the divergence, the rest is that of the next-token loss; 1: the divergence"
        " alone",
        low=0,
        high=1,
    ),
    Flag(
        "reference",
        str,
        None,
        "dpo, grpo: checkpoint that the policy is kept close to, a file, or the newest one of an experiment"
        " (folder or name). Needed as it is until the training is finished (None: the one of --init_from)",
        names=PATH_OR_NAME,
    ),
    Flag(
        "beta",
        float,
        0.1,
        "dpo: factor of the log-ratios of policy and reference; grpo: weight of the divergence from the"
        " reference, which is not loaded with 0",
        low=0,
    ),
    Flag(
        "reward",
        str,
        None,
        "grpo: what a completion is worth: exact, 1 where it is the answer; regex:PATTERN, 1 where that is"
        " found in it; arithmetic, 1 where its last number is that of the answer, or the value of the"
        " prompt's expression; MODULE:FUNCTION, of your own: (prompt, completion, answer or None) -> float,"
        " always the same for the same texts",
    ),
    Flag("group_size", int, 8, "grpo: completions of each prompt, which are compared with each other", low=2),
    Flag(
        "clip", float, 0.2, "grpo: the ratio of new to old probability counts within 1 +- this", low=0, high=1
    ),
    Flag(
        "completion_tokens",
        int,
        32,
        "grpo: most tokens of a completion; prompts have the rest of --sequence_length",
        low=1,
    ),
    Flag("rollout_temperature", float, 1.0, "grpo: divides the logits of completions", low=0.01),
)
