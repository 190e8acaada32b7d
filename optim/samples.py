"""Samples of text during a training: every --sample_every steps, prompts are continued in the log, in
metrics.jsonl and in Weights & Biases.

A row of metrics.jsonl is {"kind": "sample", "step": N, "samples": [{"prompt": ..., "text": ...}, ...]}, where
`text` is what the model adds. Samples leave no trace in the training: they draw from generators of their own,
seeded by --seed and the step, and the network is put back as it was.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data.bins import label
from data.order import splitmix64
from data.tokenizer import Tokenizer, open_tokenizer, text_of
from data.vocabulary import OF_BPE, OF_GPT2, described
from distributed.world import World
from errors import Replaced, UserError
from optim.generation import Sampling, Session, generate, tokens_of
from optim.hooks import Hook, Run
from optim.reporting import log
from optim.setup import autocaster

KIND = "sample"
BUILT_IN = ("The ", "In the beginning", "def ")  # after --eval_seq_prefix
AT_ONCE = 8  # prompts of a batch: always as many, as sums of another number could be rounded otherwise
SHOWN_PROMPT, SHOWN_TEXT = 40, 120  # characters of a log line


@dataclass(frozen=True)
class Prompt:
    text: str
    tokens: Sequence[int]


# prompts


def read_prompts(path: str) -> list[str]:
    """The prompts of a file: one a line, or a JSON list of strings. Raises UserError."""
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--sample_prompts {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--sample_prompts {path}: it is no text in UTF-8") from None
    prompts = _json_list(path, content)
    if prompts is None:
        prompts = content.removesuffix("\n").split("\n") if content else []
    if not prompts:
        raise UserError(f"--sample_prompts {path}: there are no prompts in it")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise UserError(f"--sample_prompts {path}: prompt {number} is empty")
    return prompts


def _json_list(path: str, content: str) -> list[str] | None:
    """The strings of a JSON list, None for other text. Raises UserError for a file named .json that holds no
    such list.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and all(isinstance(each, str) for each in found):
        return found
    if path.endswith(".json"):
        raise UserError(f"--sample_prompts {path}: it is no JSON list of strings")
    return None


def wanted_prompts(args: Namespace) -> list[str]:
    """Texts to continue: those of --sample_prompts, else the built-in ones. Raises UserError."""
    if args.sample_prompts is not None:
        return read_prompts(args.sample_prompts)
    return list(dict.fromkeys((args.eval_seq_prefix, *BUILT_IN)))


def prepared(texts: Sequence[str], tokenizer: Tokenizer, args: Namespace) -> tuple[list[Prompt], list[str]]:
    """Prompts that the model can continue, and a line about each of the others."""
    prompts, problems = [], []
    for text in texts:
        try:
            tokens = tokens_of(tokenizer, text, args.vocab_size)
        except (UserError, UnicodeError) as error:
            problems.append(str(error))
            continue
        if 0 < len(tokens) <= args.sequence_length:
            prompts.append(Prompt(text, tokens))
        else:
            problems.append(
                f"{shown(text, SHOWN_PROMPT)} has {len(tokens)} tokens; there must be 1 to --sequence_length"
                f" {args.sequence_length}"
            )
    return prompts, problems


def shown(text: str, longest: int) -> str:
    """A text on one line, in quotes, cut to so many characters."""
    return repr(text) if len(text) <= longest else f"{text[:longest]!r}..."


def tokenizer_of(meta: Mapping[str, Any], dataset: str, flag: str = "--sample_every") -> Tokenizer:
    """That of a dataset. Raises UserError where it is not known, or cannot be had. flag: what needs it."""
    known = described(meta)
    if known.tokenizer is None and label(dataset) in OF_GPT2:
        known = OF_BPE
    tokenizer = open_tokenizer(known)
    if tokenizer is None:
        raise UserError(
            f"{flag}: --dataset {dataset} does not say by which tokenizer its tokens become text;"
            f" prepare it again (python -m data.tokenize), or leave {flag} out"
        )
    return tokenizer


# samples


class Sampler:
    """Continues prompts, in one process."""

    def __init__(
        self,
        args: Namespace,
        world: World,
        network: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
    ) -> None:
        self.args, self.network, self.tokenizer, self.prompts = args, network, tokenizer, prompts
        self.device, self.autocast = world.device, autocaster(args.dtype, world.device)

    @contextmanager
    def _borrowed(self, seed: int) -> Iterator[None]:
        """The network is for generation; then it and all generators are as they were."""
        network, settings, was_training = self.network, self.network.settings, self.network.training
        with ExitStack() as restored:
            devices = [self.device] if self.device.type == "cuda" else []
            restored.enter_context(torch.random.fork_rng(devices))
            if self.args.compile:
                # programs of other shapes could replace those of the training
                restored.enter_context(torch.compiler.set_stance("force_eager"))
            torch.manual_seed(seed)  # pondernet draws its exits
            if settings.variant.routes:
                thresholds = tuple(self.args.router_threshold or [0.0])
                network.settings = replace(settings, routing="threshold", router_threshold=thresholds)
            try:
                yield
            finally:
                network.settings = settings
                network.train(was_training)

    def write(self, step: int, texts: list[str]) -> Generator[bool]:
        """Add the continuation of each prompt to `texts`, and yield True after every token.

        Raises UserError where the model's logits are not finite.
        """
        args, end = self.args, self.tokenizer.known.end_of_text
        seed = splitmix64(splitmix64(args.seed) ^ step) >> 1
        with self._borrowed(seed):
            for first in range(0, len(self.prompts), AT_ONCE):
                prompts = [prompt.tokens for prompt in self.prompts[first : first + AT_ONCE]]
                new: list[list[int]] = [[] for _ in prompts]
                for index, token in generate(
                    Session(self.network, len(prompts), self.device, self.autocast),
                    prompts,
                    args.sample_tokens,
                    Sampling(args.sample_temperature),
                    seed + first,
                    min(self.tokenizer.size, args.vocab_size),
                    lambda index, found: found[-1] == end,
                ):
                    if token != end:
                        new[index].append(token)
                    yield True
                texts += [text_of(self.tokenizer, tokens) for tokens in new]


class Samples(Hook):
    """Has the main process write the samples of a step while the others wait for each of its tokens, after
    which stops and the watchdog are served.
    """

    def __init__(self, world: World, every: int, sampler: Sampler, notes: Sequence[str]) -> None:
        """notes: lines for the start of a run."""
        self.world, self.every, self.sampler, self.notes = world, every, sampler, notes

    def joined(self, run: Run) -> None:
        self.run = run

    def started(self, step: int) -> None:
        for note in self.notes:
            log.info(f"note: {note}")
        if step:  # the run before may have ended before the samples of this step
            self._sample(step)

    def stepped(self, step: int, loss: float) -> None:
        self._sample(step)

    def _sample(self, step: int) -> None:
        if step % self.every or self._is_done(step):
            return
        begin = time.monotonic()
        try:
            texts = self._written(step)
        except Replaced:
            raise
        except UserError as error:  # weights that are not finite, which the training itself ends for
            log.warning(f"warning: no samples at step {step}: {error}")
            return
        if texts is None or not self.world.is_main:
            return
        samples, lines = [], []
        for prompt, text in zip(self.sampler.prompts, texts, strict=True):
            samples.append({"prompt": prompt.text, "text": text})
            begins, goes_on = shown(prompt.text, SHOWN_PROMPT), shown(text, SHOWN_TEXT)
            lines.append(f"sample at step {step}: {begins} goes on {goes_on}")
        row = {"kind": KIND, "step": step, "samples": samples}
        self.run.reporter.row({**row, "time": {"seconds": time.monotonic() - begin}}, lines)

    def _is_done(self, step: int) -> bool:
        """Whether metrics.jsonl has the samples of a step."""
        experiment = self.run.experiment
        return bool(self.world.broadcast(experiment is not None and experiment.metrics.has(KIND, step)))

    def _written(self, step: int) -> list[str] | None:
        """The texts, on the main process; None where a stop cut them short: the run that goes on has them."""
        texts: list[str] = []
        with closing(self.sampler.write(step, texts)) as tokens:
            while self.world.on_main(lambda: next(tokens, False)):
                self.run.watchdog.beat()
                if self.run.stopper.poll():
                    return None
        return texts


def samples_of(
    args: Namespace, world: World, texts: Sequence[str], meta: Mapping[str, Any], network: Any
) -> Samples:
    """The hook that --sample_every asks for. texts: of `wanted_prompts`; meta: of the data. Raises UserError
    for prompts that the model cannot continue.
    """
    tokenizer = tokenizer_of(meta, args.dataset)
    prompts, problems = prepared(texts, tokenizer, args)
    if args.sample_prompts is not None and problems:
        raise UserError("\n".join(f"--sample_prompts {args.sample_prompts}: {line}" for line in problems))
    if not prompts:
        raise UserError(f"--sample_every: no built-in prompt fits ({problems[0]}); give --sample_prompts")
    notes = [f"a built-in prompt is left out of the samples: {line}" for line in problems]
    if network.settings.variant.routes:
        notes.append(
            "samples route by threshold, which is causal: without --router_threshold every token makes all"
            " passes"
        )
    return Samples(world, args.sample_every, Sampler(args, world, network, tokenizer, prompts), notes)
