"""The model card of an exported checkpoint: what it is, how it was made, how to load it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import config
from config.identity import changed_for_evaluation, is_full_compute
from data.bins import data_differences, label
from models.settings import ModelSettings
from models.transformer import Transformer
from optim.evaluations import by_evaluation, of_sources
from optim.names import EVALUATION, FINAL, SUMMARY
from optim.reader import Record

CARD = """---
library_name: transformers
pipeline_tag: text-generation
---
# {model}

A recurrent-depth language model of the CoTFormer family (Mohtashami et al., ICLR 2025), exported from its \
training checkpoint.

{facts}

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("PATH/TO/THIS/FOLDER", trust_remote_code=True)
```

{notes}
"""


def model_card(settings: ModelSettings, dtype: str, facts: Mapping[str, str], tokenizer: str) -> str:
    """The text for a model with these settings and weights stored in `dtype`; facts: more of its lines;
    tokenizer: a sentence about it.
    """
    with torch.device("meta"):  # to count, not to compute
        parameters = sum(parameter.numel() for parameter in Transformer(settings).parameters())
    table = {
        "stack": f"{settings.stack_in_words}, width {settings.n_embd}, {settings.n_head} heads",
        "context": f"{settings.sequence_length} tokens",
        "vocabulary": f"{settings.vocab_size}",
        "parameters": f"{parameters:,}, stored as {dtype}",
        **facts,
    }
    notes = [
        (
            "The code in this folder runs on your machine: read it before you trust it. Greedy search and"
            " sampling keep keys and values of earlier tokens up to the context's length; beyond it, for"
            " beams, for pondernet and where routing compares a whole sequence, each new token takes the"
            " whole sequence."
        ),
        (
            '`model.round_weights("int8")` (or "bfloat16") generates faster on CPUs, with logits that are'
            " rounded a little. Such a model can neither be trained nor saved."
        ),
        tokenizer,
    ]
    if settings.variant.routes:
        notes.append(
            "Tokens are routed. All of them take all passes unless `eval_length_factor` in config.json (or"
            f" as an argument of `from_pretrained`) gives the {settings.n_repeat - 1} shares that go on; the"
            " choice then compares scores over the whole sequence, so batches must not be padded, and the"
            " model is not causal."
        )
    if settings.variant.exits_each_pass:
        notes.append(
            "Evaluation draws the pass at which each token leaves: outputs vary from call to call unless"
            " `torch.manual_seed` is set."
        )
    notes.append("No licence is stated here: who publishes this folder chooses one.")
    return CARD.format(
        model=settings.model,
        facts="\n".join(f"- {name}: {value}" for name, value in table.items()),
        notes="\n\n".join(notes),
    )


def is_of_the_model(evaluation: Mapping[str, Any], trained: Namespace, data: Mapping[str, Any]) -> bool:
    """Whether an evaluation measures the model as it was trained: the whole split of its own data, at full
    compute, with no setting changed.

    data: as the checkpoint recorded them; the same name may mean other data by now.
    """
    recorded = evaluation.get("args", {})
    try:
        args = Namespace(
            **{
                **vars(trained),
                **config.recorded(recorded if isinstance(recorded, dict) else {"model": recorded}),
            }
        )
    except ValueError:
        return False
    if (
        args.eval_sample_size is not None
        or label(args.dataset) != label(trained.dataset)
        or of_other_data(evaluation, data)
    ):
        return False
    return is_full_compute(args, trained) and not changed_for_evaluation(vars(args), vars(trained))


def of_other_data(evaluation: Mapping[str, Any], trained: Mapping[str, Any]) -> bool:
    """Whether an evaluation read another validation split than the training's, if both record theirs."""
    own = evaluation.get("data")
    return isinstance(own, Mapping) and bool(data_differences({"val": own}, {"val": trained.get("val")}))


def perplexity_of(path: Path, state: Mapping[str, Any], trained: Namespace) -> tuple[str, str] | None:
    """The validation perplexity of a checkpoint that a file beside it states, as text with the names of its
    evaluations, and the file's name; None where none does.

    A file of another step is ignored: an evaluation from before an extension stays beside the new ckpt.pt. A
    summary that does not record its step is that of ckpt.pt.
    """
    steps, data = state.get("itr"), state.get("data")
    for name, key in ((EVALUATION.format(path.stem), "val_perplexity"), (SUMMARY, "final_val_pp")):
        found = Record(path.parent).object(name) or {}
        is_of_it = found["itr"] == steps if "itr" in found else name != SUMMARY or path.name == FINAL
        values = by_evaluation(found, key) | of_sources(found, key)
        if not is_of_it or not values:
            continue
        if name == SUMMARY or is_of_the_model(found, trained, data if isinstance(data, Mapping) else {}):
            return ", ".join(f"{value:.2f}{of and f' on {of}'}" for of, value in values.items()), name
    return None


def facts_of(path: Path, state: Mapping[str, Any], args: Namespace) -> dict[str, str]:
    """What is known of a checkpoint beside its weights: steps, data, and the perplexity that a summary
    beside it states.
    """
    facts = {"checkpoint": path.name, "training data": args.dataset}
    steps = state.get("itr")
    if isinstance(steps, int):
        facts["steps"] = f"{steps:,} of {args.batch_size * args.acc_steps} sequences"
    stated = perplexity_of(path, state, args)
    return facts if stated is None else facts | {"validation perplexity": f"{stated[0]} ({stated[1]})"}
