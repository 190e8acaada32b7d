"""The parts of bench/gpu.sh that go through what main.py trains beside the nine models: a row of
SYSTEMS each, on data that are made up. Each prints a line of JSON for a row.

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
LOOP = "cotformer --dataset tokens --model lncot --n_layer 3 --n_layer_begin 1 --n_layer_end 1 --n_repeat 3"
GPT = "gpt --dataset tokens --depth 4 --embedding_lr 0.01 --unembedding_lr 0.01 --scalar_lr 0.01"
MODERN = f"{LOOP} --block modern --rope_dtype bfloat16 --window_pattern SL --n_kv_head 1"
TEXT = "--vocab_size 256 --sample_every 0"
RUN = "--acc_steps 2 --batch_size 4 --iterations 4 --scheduler none --lr 1e-3 --eval_freq 2 --eval_batches 2"
RUN += " --log_freq 1 --seed 1"
# of the text systems
LARGE = "--n_embd 256 --n_head 4 --sequence_length 192"
TINY = "--n_embd 32 --n_head 2 --sequence_length 24"
CALM = "--dropout 0"
GRPO = "--objective grpo --dataset prompts --reward regex:[0-9a-zA-Z] --group_size 4 --completion_tokens 4"
TIMES = "coalescence --model tiny_narrow"
ADAPTER = "--adapter --adapter_samples 8 --unfreeze_strategy all"
ZSTANDARD = "zstandard"
PAUSES = "--deterministic --hook bench.gpu.checks:PauseOnce"


@dataclass(frozen=True)
class System:
    """words: of main.py's command line, after those of all; `{NAME}` is the checkpoint of the system of that
    name. calm: further ones without which two ways draw or choose differently; None: they do so in any case.
    minimises: its loss on the same samples falls. package: that its data need beside torch and NumPy.
    """

    name: str
    words: str
    calm: str | None = CALM
    minimises: bool = True
    package: str = ""


SYSTEMS = (
    System("gpt", f"{GPT} --opt muon --lr 0.02"),
    System("modern", f"{MODERN} --opt muon --lr 0.01"),
    System("modern, tokens leave", f"{MODERN} --model adm", calm="--training_length_factor 1 1"),
    System("window", f"{LOOP} --attention_window_length 17"),
    System("lion", f"{LOOP} --opt lion --lr 3e-4"),
    System("bytes", "bytes --dataset wiki=0.75,primer=0.25 --mlp_width 128"),
    System("multi-token", f"{LOOP} --objective multi_token"),
    System("distillation", f"{LOOP} --objective distillation --teacher {{lion}}"),
    System("lora", f"{MODERN} --adapt lora:4 --init_from {{modern}} --lr 1e-2"),
    System("sft", f"{LOOP} --objective sft --dataset chat", package=ZSTANDARD),
    System("dpo", f"{LOOP} --objective dpo --dataset pairs --init_from {{sft}}", package=ZSTANDARD),
    System("grpo", f"{LOOP} {GRPO} --init_from {{sft}}", calm=None, minimises=False, package=ZSTANDARD),
    System("coalescence", f"{TIMES} --dataset genomes", package=ZSTANDARD),
    System("coalescence, adapter", f"{TIMES} --dataset fewer {ADAPTER}", package=ZSTANDARD),
)
BY_NAME = {system.name: system for system in SYSTEMS}


class Workshop:
    """A folder with made-up data and the experiments of systems. run: flags of all. shape: of those of
    text.
    """

    def __init__(self, folder: Path, given: Namespace, run: str, shape: str) -> None:
        self.folder, self.run_flags, self.shape = folder, run, shape
        places = f"--data_dir {folder / 'data'} --results_base_folder {folder / 'exps'}"
        self.how = f"--device {given.device} --dtype {given.dtype} {places}"

    def words(self, system: System, more: str) -> list[str]:
        """Of a system's command line, whose data are made where they are not there. Raises Lacking."""
        if system.package and find_spec(system.package) is None:
            raise Lacking(f"its data need the package {system.package}")
        recipe, *own = system.words.split()
        own = [word if word[0] != "{" else str(self.finished(word[1:-1])) for word in own]
        shape = "" if recipe == "coalescence" else self.shape
        words = [recipe, *self.run_flags.split(), *own, *f"{shape} {self.how} {more}".split()]
        prepare(config.parse_args(words), self.folder / "data")
        return words

    def finished(self, name: str) -> Path:
        """The last checkpoint of a system that is trained where it is not yet."""
        return self.run(BY_NAME[name], "first") / FINAL

    def run(self, system: System, experiment: str, more: str = "", ends: int = 0) -> Path:
        """main.py, in an experiment; returns its folder. Raises RuntimeError where it does not end with an
        exit code.
        """
        name = "_".join([*system.name.replace(",", "").split(), experiment])
        with redirect_stdout(sys.stderr):  # stdout is for rows
            given = self.words(system, f"--exp_name {name} {more}")
            code = main_program.main(given)
        if code != ends:
            raise RuntimeError(f"main.py {' '.join(given)} ended with exit code {code}")
        return config.experiment_folder(config.parse_args(given))

    def flags(self, system: System, more: str) -> Namespace:
        """Of a system's training."""
        return config.parse_args(self.words(system, more))

    def trainer(self, system: System, more: str = "") -> Trainer:
        """As main.py makes it."""
        with redirect_stdout(sys.stderr):  # stdout is for rows
            return trainer_of(self.flags(system, more), self.folder / "exps" / "apart")


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
def workshop(given: Namespace, run: str = RUN, shape: str = "") -> Iterator[Workshop]:
    """One in a folder that is removed. shape: as Workshop has it (none: a small one)."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        yield Workshop(Path(place), given, run, shape or f"{TEXT} {TINY if given.tiny else LARGE}")


def each(given: Namespace, one: Callable[[Workshop, System, str], None]) -> None:
    """A row of every system. one: given where, the system, and the name of the row."""
    with workshop(given) as shop:
        for system in SYSTEMS:
            name = f"{system.name}, {given.dtype}"
            attempt(name, partial(one, shop, system, name))


# the parts


def near(given: Namespace) -> None:
    """Loss and gradients of the objective on a batch, against those of the reference."""

    def outcome(shop: Workshop, system: System, more: str) -> Outcome:
        trainer = shop.trainer(system, f"{more} {system.calm}")
        objective = fill(trainer.parts.objective, 1)
        batch = trainer.parts.source.samples(0, 0, trainer.args.batch_size).to(trainer.world.device)
        with autocast(given.device, trainer.args.dtype):
            loss = objective(batch).mean
        (loss * LOSS_SCALE).backward()
        found = {key: p.grad.float().cpu() for key, p in objective.named_parameters() if p.grad is not None}
        return Outcome(None, float(loss.detach()), found)

    def one(shop: Workshop, system: System, row: str) -> None:
        if system.calm is None:
            tell(row, SKIPPED, note="it draws its own samples")
            return
        plain = "" if system.words.startswith("coalescence") else "--attention reference"
        found = outcome(shop, system, "")
        with sdpa_kernel(SDPBackend.MATH):
            reference = outcome(shop, system, plain)
            torch.set_float32_matmul_precision("highest")
            truth = outcome(shop, system, f"{plain} --dtype float32")
        torch.set_float32_matmul_precision("high")
        tell_as_near(row, found, reference, truth)

    each(given, one)


def learns(given: Namespace) -> None:
    """Steps of the loop on the same samples, and, on CUDA, how often one of them waits for the device."""

    def one(shop: Workshop, system: System, row: str) -> None:
        steps = shop.trainer(system).steps
        losses = [float(steps.take(0)[0]) for _ in range(STEPS)]
        before, after = losses[0], statistics.median(losses[-3:])
        is_well = all(map(math.isfinite, losses)) and (after < before or not system.minimises)
        note = f"loss {before:.3f} -> {after:.3f} in {STEPS} steps, {steps.meter.overflows} overflows"
        tell(row, PASS if is_well else FAIL, value=after, unit="nats", note=note)
        if given.device == "cuda":
            waits, limit = waits_of(lambda: steps.take(0)), WAITS[given.dtype]
            verdict = (
                None if system.name == "grpo" else PASS if waits <= limit else FAIL
            )  # rollouts wait by nature
            target = f"at most {limit}" if verdict else ""
            tell(f"{row}: waits", verdict, value=waits, unit="waits a step", target=target)

    each(given, one)


def resume(given: Namespace) -> None:
    """main.py itself: a training that pauses and is gone on with against one that does not, with their
    evaluations, under --deterministic.
    """

    def one(shop: Workshop, system: System, row: str) -> None:
        calm = reads_back(shop.run(system, "calm", "--deterministic") / FINAL)
        shop.run(system, "resumed", PAUSES, STOPPED)
        resumed = reads_back(shop.run(system, "resumed", f"{PAUSES} --use_pretrained auto") / FINAL)
        tell(row, **differing_note(calm, resumed))

    each(given, one)


PARTS: dict[str, Callable[[Namespace], None]] = {"near": near, "learns": learns, "resume": resume}


if __name__ == "__main__":
    run_one(__doc__, PARTS)
