"""Generate text from a checkpoint, token by token, at a chosen compute budget.

    python generate.py --checkpoint exps/.../NAME --prompt "import os" --max_new_tokens 100
    python generate.py --checkpoint exps/.../NAME --prompt "import os" --temperature 0.8 --top_p 0.9
    python generate.py --checkpoint ADAPTIVE --prompt "def " "class " --budget 0.5      # half the compute
    python generate.py --checkpoint exps/.../NAME --prompt "import os" --weights int8    # faster, rounded

Keys and values of earlier tokens are cached in every pass, so that a new token costs one token; the logits
are those of the whole forward pass. Several prompts run as one batch. Adaptive models route by threshold
here, which is causal: without --budget or --router_threshold every token makes all passes. Text goes to
stdout, everything else to stderr.
"""

from __future__ import annotations

import codecs
import dataclasses
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import distributed
from config.schema import Flag, prose
from errors import UserError
from optim.restore import CHECKPOINT, TOKENIZER, Restored, with_checkpoint

if TYPE_CHECKING:
    from data.tokenizer import Tokenizer
    from models.transformer import Transformer

OWN_FLAGS = {
    "generation": (
        CHECKPOINT,
        Flag("prompt", prose, None, "texts to continue (None: --eval_seq_prefix)", many=True),
        TOKENIZER,
        Flag("max_new_tokens", int, 256, "most tokens to add to each prompt", low=1),
        Flag("temperature", float, 1.0, "divides the logits; 0 takes the likeliest token each time", low=0),
        Flag("top_k", int, None, "choose among the likeliest K tokens only (None: all)", low=1),
        Flag(
            "top_p",
            float,
            None,
            "choose among the fewest tokens that hold this probability (None: all)",
            low=0,
            high=1,
        ),
        Flag(
            "stop",
            prose,
            None,
            "texts with which a continuation ends, beside the end of the document",
            many=True,
        ),
        Flag(
            "weights",
            str,
            "float32",
            "format in which weights are read on CPUs: bfloat16 and int8 are faster, and round",
            choices=("float32", "bfloat16", "int8"),
        ),
        Flag(
            "budget",
            float,
            None,
            "adaptive models: share of the multiply-accumulates of full depth to spend; its threshold is"
            " measured on training data",
            low=0,
            high=1,
        ),
        Flag(
            "calibration_tokens",
            int,
            16384,
            "training tokens from which --budget measures its threshold",
            low=1,
        ),
    )
}


def say(line: str) -> None:
    """To stderr: stdout is for text alone."""
    print(line, file=sys.stderr)


class Transcript:
    """The texts of a batch. A single one is printed as it grows, several when they are complete."""

    def __init__(self, tokenizer: Tokenizer, prompts: list[str], stops: Sequence[str]) -> None:
        # a terminal may know fewer characters than the model
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        self.tokenizer, self.prompts, self.stops, self.texts = tokenizer, prompts, stops, list(prompts)
        self.decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in prompts]
        self._show(prompts[0])

    def _show(self, more: str) -> None:
        if len(self.texts) == 1:
            print(more, end="", flush=True)

    def _add(self, index: int, more: str) -> bool:
        """Append to a text; True where a stop text ends it there."""
        begin, stopped = len(self.texts[index]), False
        self.texts[index] += more
        for stop in self.stops:
            place = self.texts[index].find(stop, len(self.prompts[index]))
            if place >= 0:
                self.texts[index], stopped = self.texts[index][: place + len(stop)], True
        self._show(self.texts[index][begin:])
        return stopped

    def ends(self, index: int, new: list[int]) -> bool:
        """Append the newest token of a text; True where the text ends with it."""
        if new[-1] == self.tokenizer.known.end_of_text:
            return True
        return self._add(index, self.decoders[index].decode(self.tokenizer.bytes_of(new[-1])))

    def close(self) -> None:
        """Print the rest: half a character at the end, or all texts of a batch."""
        for index, decoder in enumerate(self.decoders):
            self._add(index, decoder.decode(b"", True))
        self._show("\n")
        for number, whole in enumerate(self.texts if len(self.texts) > 1 else [], start=1):
            print(f"=== {number}\n{whole}")


def encoded(tokenizer: Tokenizer, prompt: str, vocab_size: int) -> list[int]:
    """The tokens of a prompt. Raises UserError for text that the model has none for."""
    from optim.generation import tokens_of

    try:
        return tokens_of(tokenizer, prompt, vocab_size)
    except UserError as error:
        raise UserError(f"--prompt {error}; give another --prompt") from None


def route(restored: Restored, model: Any, own: dict[str, Any]) -> None:
    """Set an adaptive model's threshold. Raises UserError."""
    import numpy as np
    import torch

    from optim.cascade import cascade
    from optim.routers import need_routers, router_scores, threshold_for
    from optim.setup import autocaster

    args, world = restored.args, restored.world
    thresholds = args.router_threshold or [0.0]
    if own["budget"] is not None:
        if "router_threshold" in restored.given:
            raise UserError("--budget and --router_threshold say the same thing: give one of them")
        need_routers(model)
        windows = restored.splits().train
        n = min(windows.n_windows, max(1, own["calibration_tokens"] // args.sequence_length))
        chosen = np.linspace(0, windows.n_windows - 1, n).astype(np.int64)
        scores = [
            cascade(part, "token").flatten(0, 1)
            for part in router_scores(
                model, windows, chosen, args.batch_size, autocaster(args.dtype, world.device), world.device
            )
        ]
        thresholds = [threshold_for(own["budget"], model.settings, torch.cat(scores))]
        say(
            f"budget {own['budget']:g}: tokens go on where their score exceeds {thresholds[0]:.4f}, measured"
            f" on {n} sequences"
        )
    model.settings = dataclasses.replace(
        model.settings, routing="threshold", router_threshold=tuple(thresholds)
    )


def model_of(restored: Restored, own: dict[str, Any]) -> Transformer:
    """The network with the weights and the routing that are asked for."""
    from models.quantised import quantise

    model = restored.model()
    try:
        quantise(model, own["weights"])
    except ValueError as error:
        raise UserError(f"{error}; leave --weights out, or give --device cpu") from None
    if model.settings.variant.routes or own["budget"] is not None:
        route(restored, model, own)
    return model


def run(restored: Restored, own: dict[str, Any]) -> None:
    """Print each prompt with its continuation; a single one as it grows."""
    import torch

    from data.tokenizer import named, open_tokenizer
    from data.vocabulary import unknown, vocabulary_of
    from models.quantised import AS_THEY_ARE
    from optim.generation import Sampling, Session, generate
    from optim.routers import share_of_macs
    from optim.setup import autocaster

    args, world = restored.args, restored.world
    if world.size > 1:
        raise UserError("generate.py runs as one process: start it without torchrun")
    if "" in (own["stop"] or ()):
        raise UserError("--stop must not be empty")
    given = named(own["tokenizer"]) if own["tokenizer"] else None
    tokenizer = open_tokenizer(vocabulary_of(restored.state, args, given))
    if tokenizer is None:
        raise unknown(args)
    texts = own["prompt"] or [args.eval_seq_prefix]
    prompts = [encoded(tokenizer, prompt, args.vocab_size) for prompt in texts]
    if not all(prompts):
        raise UserError("--prompt must not be empty")
    if any(len(prompt) > args.sequence_length for prompt in prompts):
        say(
            f"note: a prompt has more tokens than the model's {args.sequence_length}; its last"
            f" {args.sequence_length // 2 + 1} are taken"
        )
    model = model_of(restored, own)
    # beside its own products, a model of other weights computes in float32
    autocast = autocaster(args.dtype, world.device) if own["weights"] == AS_THEY_ARE else nullcontext
    session = Session(model, len(prompts), world.device, autocast, captures=True)
    torch.manual_seed(args.seed)  # pondernet draws its exits
    transcript = Transcript(tokenizer, texts, own["stop"] or ())
    begin = time.monotonic()
    count = sum(
        1
        for _ in generate(
            session,
            prompts,
            own["max_new_tokens"],
            Sampling(own["temperature"], own["top_k"], own["top_p"]),
            args.seed,
            min(tokenizer.size, args.vocab_size),
            transcript.ends,
        )
    )
    seconds = time.monotonic() - begin
    transcript.close()
    say(f"{count} tokens in {seconds:.1f} s: {count / seconds:.1f} tokens/s")
    if model.settings.variant.routes:
        shares = session.shares()
        say(
            f"went on after each pass: {', '.join(f'{share:.2f}' for share in shares)}; "
            f"{share_of_macs(model.settings, shares):.2f} of the multiply-accumulates of full depth"
        )


def main(argv: list[str] | None = None) -> int:
    return with_checkpoint(
        "generate.py", "Generate text from a checkpoint, at a chosen compute budget.", OWN_FLAGS, argv, run
    )


if __name__ == "__main__":
    distributed.run_and_end(main)
