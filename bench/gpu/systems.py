"""The parts of bench/gpu.sh that go through what main.py trains beside the nine models: a row of SYSTEMS each,
on data that are made up. Each prints a line of JSON for a row.

python -m bench.gpu.systems resume --device cuda --dtype bfloat16
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import config
import main as main_program
from bench.arithmetic import write
from bench.common import autocast
from bench.gpu.checks import LOSS_SCALE, WAITS, Outcome, differing_note, reads_back, tell_as_near, waits_of
from bench.gpu.reference import fill
from bench.gpu.rows import FAIL, PASS, SKIPPED, Lacking, attempt, run_one, tell
from config.groups.objective import EXAMPLES
from config.recipe import recipe_of
from data.bins import TOKEN
from distributed.world import World
from errors import STOPPED
from optim import initial
from optim.names import FINAL
from optim.selftest import make_up
from optim.training import Trainer

STEPS = 12  # on the same samples
VALIDATION = 8  # sequences: the last evaluation reads them all
# a flag that is given twice has its last value
LOOP = "cotformer --model lncot --n_layer 3 --n_layer_begin 1 --n_layer_end 1 --n_repeat 3"
GPT = "gpt --depth 4 --embedding_lr 0.01 --unembedding_lr 0.01 --scalar_lr 0.01"
MODERN = f"{LOOP} --block modern --rope_dtype bfloat16 --window_pattern SL --n_kv_head 1"
TEXT = "--dataset tokens --vocab_size 256 --sample_every 0"
RUN = "--acc_steps 2 --batch_size 4 --iterations 4 --scheduler none --lr 1e-3 --eval_freq 2 --eval_batches 2"
RUN += " --log_freq 1 --seed 1"
# of the text systems
LARGE = "--n_embd 256 --n_head 4 --sequence_length 192"
TINY = "--n_embd 32 --n_head 2 --sequence_length 24"
CALM = "--dropout 0"
PAUSES = "--deterministic --hook bench.gpu.checks:PauseOnce"


@dataclass(frozen=True)
class System:
    """words: of main.py's command line, after those of all; `{NAME}` is the checkpoint of the system of that
    name. calm: further ones without which two ways draw or choose differently; None: they do so in any case.
    minimises: its loss on the same samples falls. package: that its data need beside torch and NumPy.
    """

    words: str
    calm: str | None = CALM
    minimises: bool = True
    package: str = ""


SYSTEMS = {
    "gpt": System(f"{GPT} --opt muon --lr 0.02"),
    "modern": System(f"{MODERN} --opt muon --lr 0.01"),
    "modern, tokens leave": System(f"{MODERN} --model adm", calm="--training_length_factor 1 1"),
    "window": System(f"{LOOP} --attention_window_length 17"),
    "lion": System(f"{LOOP} --opt lion --lr 3e-4"),
    "bytes": System("bytes --dataset wiki=0.75,primer=0.25 --mlp_width 128"),
    "multi-token": System(f"{LOOP} --objective multi_token"),
    "distillation": System(f"{LOOP} --objective distillation --teacher {{lion}}"),
    "lora": System(f"{MODERN} --adapt lora:4 --init_from {{modern}} --lr 1e-2"),
    "sft": System(f"{LOOP} --objective sft --dataset chat", package="zstandard"),
    "dpo": System(f"{LOOP} --objective dpo --dataset pairs --init_from {{sft}}", package="zstandard"),
    "grpo": System(
        f"{LOOP} --objective grpo --dataset prompts --init_from {{sft}} --reward regex:[0-9a-zA-Z]"
        " --group_size 4 --completion_tokens 4",
        calm=None,
        minimises=False,
        package="zstandard",
    ),
    "coalescence": System("coalescence --model tiny_narrow --dataset genomes", package="zstandard"),
    "coalescence, adapter": System(
        "coalescence --model tiny_narrow --dataset fewer --adapter --adapter_samples 8"
        " --unfreeze_strategy all",
        package="zstandard",
    ),
}


class Workshop:
    """A folder with made-up data and the experiments of systems. tiny: sizes for a CPU."""

    def __init__(self, folder: Path, device: str, dtype: str, tiny: bool) -> None:
        self.folder, self.device, self.dtype, self.tiny = folder, device, dtype, tiny

    def words(self, name: str, more: str) -> list[str]:
        """Of a system's command line, whose data are made where they are not there. Raises Lacking."""
        system = SYSTEMS[name]
        if system.package and find_spec(system.package) is None:
            raise Lacking(f"its data need the package {system.package}")
        recipe, *own = system.words.split()
        text = f"{TEXT} {TINY if self.tiny else LARGE}" if recipe != "coalescence" else ""
        own = [word if word[0] != "{" else str(self.finished(word[1:-1])) for word in own]
        places = f"--data_dir {self.folder / 'data'} --results_base_folder {self.folder / 'exps'}"
        how = f"--device {self.device} --dtype {self.dtype} {places} {more}"
        words = [recipe, *f"{RUN} {text}".split(), *own, *how.split()]
        prepare(config.parse_args(words), self.folder / "data")
        return words

    def finished(self, name: str) -> Path:
        """The last checkpoint of a system that is trained where it is not yet."""
        return self.run(name, "first") / FINAL

    def run(self, name: str, experiment: str, more: str = "", ends: int = 0) -> Path:
        """main.py, in an experiment; returns its folder. Raises RuntimeError where it does not end with an
        exit code.
        """
        given = self.words(
            name, f"--exp_name {name.replace(', ', '_').replace(' ', '_')}_{experiment} {more}"
        )
        code = main_program.main(given)
        if code != ends:
            raise RuntimeError(f"main.py {' '.join(given)} ended with exit code {code}")
        return config.experiment_folder(config.parse_args(given))

    def trainer(self, name: str, more: str = "") -> Trainer:
        """As main.py makes it."""
        args = config.parse_args(self.words(name, more))
        return trainer_of(args, self.folder / "exps" / "apart")


def trainer_of(args: Namespace, folder: Path) -> Trainer:
    """What main.py trains by flags, before its first step."""
    device = torch.device(args.device, 0) if args.device == "cuda" else torch.device(args.device)
    world = World(device)
    parts = recipe_of(vars(args)).assemble(args, world, folder)
    trainer = Trainer(args, world, parts, folder)
    for hook in parts.hooks:
        hook.joined(trainer)
    if args.init_from is not None:
        trainer.progress.begin_with(initial.find(args.init_from, results=args.results_base_folder))
    trainer.progress.model.train()
    return trainer


def prepare(args: Namespace, place: Path) -> None:
    """Make up the dataset of flags below a folder, where it is not there."""
    form = EXAMPLES.get(getattr(args, "objective", ""))
    name = form or args.dataset
    done = place / f"{name}.done"
    if done.exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    if form is not None:
        from data.tokenize import main as tokenize

        write(place / "lines", count=200)
        lines = str(place / "lines" / f"{form}.jsonl")
        words = ["--name", form, "--data_dir", str(place), "--input", lines, "--format", form]
        if tokenize([*words, "--tokenizer", "bytes", "--val-share", "0.1", "--workers", "1"]):
            raise RuntimeError(f"the examples in the form {form} are not prepared")
    else:
        (recipe_of(vars(args)).make_up or make_up)(args, place)
        if "sequence_length" in args:
            for path in place.glob("*/val.bin"):
                os.truncate(path, (VALIDATION * args.sequence_length + 1) * TOKEN.itemsize)
    done.touch()


@contextmanager
def workshop(given: Namespace) -> Iterator[Workshop]:
    """What is printed there goes to stderr: stdout is for rows."""
    with tempfile.TemporaryDirectory() as place:
        yield Workshop(Path(place), given.device, given.dtype, given.tiny)


def each(given: Namespace, one: Callable[[Workshop, str, str], None]) -> None:
    """A row of every system. one: given where, the system's name, and that of the row."""
    with workshop(given) as shop:
        for name in SYSTEMS:
            attempt(f"{name}, {given.dtype}", partial(one, shop, name, f"{name}, {given.dtype}"))


# the parts


def near(given: Namespace) -> None:
    """Loss and gradients of the objective on a batch, against those of the reference."""

    def outcome(shop: Workshop, name: str, more: str) -> Outcome:
        with redirect_stdout(sys.stderr):
            trainer = shop.trainer(name, f"{more} {SYSTEMS[name].calm}")
        objective = fill(trainer.parts.objective, 1)
        batch = trainer.parts.source.samples(0, 0, trainer.args.batch_size).to(trainer.world.device)
        with autocast(given.device, trainer.args.dtype):
            loss = objective(batch).mean
        (loss * LOSS_SCALE).backward()
        found = {key: p.grad.float().cpu() for key, p in objective.named_parameters() if p.grad is not None}
        return Outcome(None, float(loss.detach()), found)

    def one(shop: Workshop, name: str, row: str) -> None:
        if SYSTEMS[name].calm is None:
            tell(row, SKIPPED, note="it draws its own samples")
            return
        plain = "" if name.startswith("coalescence") else "--attention reference"
        found = outcome(shop, name, "")
        with sdpa_kernel(SDPBackend.MATH):
            reference = outcome(shop, name, plain)
            torch.set_float32_matmul_precision("highest")
            truth = outcome(shop, name, f"{plain} --dtype float32")
        torch.set_float32_matmul_precision("high")
        tell_as_near(row, found, reference, truth)

    each(given, one)


def learns(given: Namespace) -> None:
    """Steps of the loop on the same samples, and, on CUDA, how often one of them waits for the device."""

    def one(shop: Workshop, name: str, row: str) -> None:
        system = SYSTEMS[name]
        with redirect_stdout(sys.stderr):
            steps = shop.trainer(name).steps
        losses = [float(steps.take(0)[0]) for _ in range(STEPS)]
        before, after = losses[0], statistics.median(losses[-3:])
        is_well = all(map(math.isfinite, losses)) and (after < before or not system.minimises)
        note = f"loss {before:.3f} -> {after:.3f} in {STEPS} steps, {steps.meter.overflows} overflows"
        tell(row, PASS if is_well else FAIL, value=after, unit="nats", note=note)
        if given.device == "cuda":
            waits, limit = waits_of(lambda: steps.take(0)), WAITS[given.dtype]
            verdict = None if name == "grpo" else PASS if waits <= limit else FAIL  # rollouts wait by nature
            target = f"at most {limit}" if verdict else ""
            tell(f"{row}: waits", verdict, value=waits, unit="waits a step", target=target)

    each(given, one)


def resume(given: Namespace) -> None:
    """main.py itself: a training that pauses and is gone on with against one that does not, with their
    evaluations, under --deterministic.
    """

    def one(shop: Workshop, name: str, row: str) -> None:
        with redirect_stdout(sys.stderr):
            calm = reads_back(shop.run(name, "calm", "--deterministic") / FINAL)
            shop.run(name, "resumed", PAUSES, STOPPED)
            resumed = reads_back(shop.run(name, "resumed", f"{PAUSES} --use_pretrained auto") / FINAL)
        tell(row, **differing_note(calm, resumed))

    each(given, one)


PARTS: dict[str, Callable[[Namespace], None]] = {"near": near, "learns": learns, "resume": resume}


if __name__ == "__main__":
    run_one(__doc__, PARTS)
