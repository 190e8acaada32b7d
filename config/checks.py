"""Rules that tie flags together, for the recipes that take these flags: a line for each value or combination
that cannot work.
"""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

from config.curriculum import LENGTH, curriculum_problems
from config.curriculum import NONE as NO_CURRICULUM
from config.groups.jobs import FULLY_SHARDED, WHOLE
from config.groups.objective import DISTILLATION, DPO, EXAMPLES, MULTI_TOKEN, NEXT_TOKEN, OF_OBJECTIVES
from config.mixture import given_weights, has_paths, is_mixture
from config.naming import MAX_COMPONENT, bad_name
from config.packing import NONE, packing_problems
from config.values import Problem
from errors import UserError
from models.variants import VARIANTS

# flags of some schedules only -> these
OF_SCHEDULES = {
    "warmup_percent": ("cos", "linear", "wsd"),
    "final_div_factor": ("cos", "linear", "wsd"),
    "decay_percent": ("wsd",),
    "warmup_steps": ("warmup_cos", "cosine", "linear_decay", "constant"),
    "min_lr": ("warmup_cos",),
    "warmup_ratio": ("trapezoid",),
    "warmdown_ratio": ("trapezoid",),
    "final_lr_frac": ("trapezoid",),
}
OF_MUP = ("adamw", "lion")
OWN_RATES = ("embedding_lr", "unembedding_lr", "scalar_lr")  # of muon


def unused_by_optimiser(args: Namespace) -> dict[str, str]:
    """Flags that the optimiser or the schedule has no use for, each with words that follow "no effect"."""
    unused = {}
    if args.opt != "muon":
        unused = dict.fromkeys((*OWN_RATES, "muon_dtype"), f" with --opt {args.opt}")
    if args.opt == "muon":
        unused["decayed"] = " with --opt muon: matrices decay"
    if args.opt != "adafactor":
        unused["adafactor_eps"] = f" with --opt {args.opt}"
    for name, schedulers in OF_SCHEDULES.items():
        if args.scheduler not in schedulers:
            unused[name] = f" with --scheduler {args.scheduler}"
    return unused


def optimiser_problems(args: Namespace) -> list[Problem]:
    problems = []
    if args.opt in ("adamw", "muon", "lion") and (args.beta1 >= 1 or args.beta2 >= 1):
        problems.append(Problem("--beta1 and --beta2 must be below 1", "beta1", "beta2"))
    if args.scheduler == "wsd" and args.warmup_percent + args.decay_percent > 1:
        problems.append(
            Problem(
                f"--warmup_percent {args.warmup_percent} + --decay_percent {args.decay_percent} are more than"
                " the whole run",
                "warmup_percent",
                "decay_percent",
            )
        )
    # which some recipes do not have
    if getattr(args, "mup_base_width", None) is not None and args.opt not in OF_MUP:
        line = (
            f"--mup_base_width is for --opt {' and '.join(OF_MUP)}, whose steps do not depend on the size of"
            f" gradients or weights, not for {args.opt}"
        )
        problems.append(Problem(line, "mup_base_width", "opt"))
    own_rates = [name for name in OWN_RATES if getattr(args, name) is not None]
    if args.opt == "muon" and args.lr == 0 and own_rates:
        line = f"--{own_rates[0]} is kept as a multiple of --lr, which must not be 0 then"
        problems.append(Problem(line, "lr", own_rates[0]))
    if args.scheduler == "warmup_cos" and (args.min_lr or 0) > args.lr:
        line = f"--min_lr {args.min_lr} is more than --lr {args.lr}: the rate would rise"
        problems.append(Problem(line, "min_lr", "lr"))
    return problems


def objective_problems(args: Namespace) -> list[Problem]:
    """Of the objective, and of the models that it cannot train."""
    problems = []
    if args.objective != NEXT_TOKEN and VARIANTS[args.model].exits_each_pass:
        line = (
            f"--objective {args.objective} reads one state of each token, and --model {args.model} is trained"
            " on the exits of all passes"
        )
        problems.append(Problem(line, "objective", "model"))
    shortest = "curriculum_min_length" if args.curriculum == LENGTH else "sequence_length"
    tokens = getattr(args, shortest)
    if args.objective == MULTI_TOKEN and args.mtp_heads >= tokens:
        line = (
            f"--mtp_heads {args.mtp_heads} would look beyond the end of sequences of --{shortest} {tokens}"
            " tokens"
        )
        problems.append(Problem(line, "mtp_heads", shortest))
    if (args.objective == DISTILLATION) != (args.teacher is not None):
        line = "--objective distillation and --teacher need each other"
        problems.append(Problem(line, "objective", "teacher"))
    if args.objective in EXAMPLES:
        problems += _examples_problems(args)
    return problems


def _examples_problems(args: Namespace) -> list[Problem]:
    """Of the objectives that are trained on examples."""
    problems, what = [], f"--objective {args.objective} is trained on examples"
    if is_mixture(args.dataset):
        line = f"{what} of one folder (data.tokenize --format {EXAMPLES[args.objective]}), not on a mixture"
        problems.append(Problem(line, "objective", "dataset"))
    for name, none in (("packing", NONE), ("curriculum", NO_CURRICULUM)):
        value = getattr(args, name)
        if value != none:
            problems.append(Problem(f"{what}, for which there is no --{name} {value}", "objective", name))
    if args.objective == DPO and args.beta == 0:
        problems.append(Problem("--objective dpo learns nothing with --beta 0", "objective", "beta"))
    elif needs_reference(args) and args.reference is None and args.init_from is None:
        line = (
            f"--objective {args.objective} needs the checkpoint that it keeps close to: give --init_from, the"
            " weights to begin with, or --reference"
        )
        problems.append(Problem(line, "objective", "reference", "init_from"))
    return problems


def needs_reference(args: Namespace) -> bool:
    """Whether the objective compares the network with a frozen reference."""
    return getattr(args, "objective", None) in OF_OBJECTIVES["reference"] and args.beta > 0


def unused_by_objective(args: Namespace) -> dict[str, str]:
    """Flags that the objective has no use for, each with words that follow "no effect"."""
    reason = f" with --objective {args.objective}"
    unused = {name: reason for name, objectives in OF_OBJECTIVES.items() if args.objective not in objectives}
    if "reference" not in unused and args.beta == 0:
        unused["reference"] = ": --beta is 0"
    return unused


def place_problems(args: Namespace) -> list[Problem]:
    """Of the device, the names and the dataset."""
    named = name_problems(args)
    joint = [*shard_problems(args), *graph_problems(args)]
    return [*named, *_dataset_problems(args), *packing_problems(args), *curriculum_problems(args), *joint]


# flags that --shard full does not go with, and their values that are no obstacle
NOT_FULLY_SHARDED: dict[str, int | None] = {
    "sample_every": 0,
    "core_data": None,
    "layer_norms": 0,
    "fp8": False,
}


def shard_problems(args: Namespace) -> list[Problem]:
    """Of what is trained in shards."""
    if args.shard == WHOLE:
        return []
    problems, what = [], f"--shard {args.shard}"
    for name, wanted in {"objective": NEXT_TOKEN, "opt": "adamw"}.items():
        if getattr(args, name) != wanted:
            line = f"{what} goes only with --{name} {wanted}, not with {getattr(args, name)}"
            problems.append(Problem(line, "shard", name))
    if args.adapt is not None:
        problems.append(Problem(f"{what} goes without --adapt", "shard", "adapt"))
    if args.shard == FULLY_SHARDED:
        for name, value in NOT_FULLY_SHARDED.items():
            if getattr(args, name, value) != value:
                # recipes have other defaults
                how = f"only with --{name} {value}" if type(value) is int else f"without --{name}"
                line = f"{what} goes {how}: no process has the whole network"
                problems.append(Problem(line, "shard", name))
        if args.dtype == "float16":
            line = f"{what} goes with --dtype float32 and bfloat16, not with float16"
            problems.append(Problem(line, "shard", "dtype"))
    return problems


def graph_problems(args: Namespace) -> list[Problem]:
    """Of what a CUDA graph would repeat as it was at the first time."""
    if not args.cuda_graphs:
        return []
    problems = []
    if args.objective != NEXT_TOKEN:
        line = f"--cuda_graphs goes only with --objective {NEXT_TOKEN}, not with {args.objective}"
        problems.append(Problem(line, "cuda_graphs", "objective"))
    if VARIANTS[args.model].policy != "fixed":
        line = f"--cuda_graphs needs passes that all tokens take, which those of --model {args.model} are not"
        problems.append(Problem(line, "cuda_graphs", "model"))
    if args.activation_checkpointing != "none" and args.dropout > 0:
        line = "--cuda_graphs cannot recompute what dropout drew: leave --activation_checkpointing out"
        problems.append(Problem(line, "cuda_graphs", "activation_checkpointing", "dropout"))
    return problems


def name_problems(args: Namespace) -> list[Problem]:
    """Of the device and the names."""
    problems = []
    if args.device == "mps":
        line = "--device mps: trainings run on CUDA devices and on CPUs; give cpu"
        problems.append(Problem(line, "device"))
    elif not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", args.device):
        problems.append(Problem(f"--device must be auto, cpu, cuda or cuda:N, not {args.device!r}", "device"))
    for name in ("exp_name", "run_prefix"):
        given = getattr(args, name)
        reason = None if given is None else bad_name(given)
        if reason:
            problems.append(Problem(f"--{name} {reason}", name))
    parts = (args.exp_name or "").split("/")
    if any(len(part.encode()) > MAX_COMPONENT for part in parts):
        problems.append(Problem(f"--exp_name must stay under {MAX_COMPONENT + 1} bytes", "exp_name"))
    return problems


def _dataset_problems(args: Namespace) -> list[Problem]:
    if is_mixture(args.dataset):
        try:
            given_weights(args.dataset, args.normalise_weights)
        except UserError as error:
            return [Problem(line, "dataset", "normalise_weights") for line in str(error).splitlines()]
        return []
    if has_paths(args.dataset):
        line = (
            f"--dataset {args.dataset}: sources of a mixture are names of folders below --data_dir, not paths"
        )
        return [Problem(line, "dataset")]
    if not args.dataset or bad_name(Path(args.dataset).name):
        return [Problem(f"--dataset {args.dataset!r} is not a folder name", "dataset")]
    return []


def adapter_problems(args: Namespace) -> list[Problem]:
    """Of --adapt."""
    if args.adapt is None or args.init_from is not None:
        return []
    line = f"--adapt {args.adapt} trains beside weights that stay as they are: give them by --init_from"
    return [Problem(line, "adapt", "init_from")]


def notes_on_checkpoints(args: Namespace) -> list[str]:
    late = sorted(step for step in set(args.keep_steps or ()) if step > args.iterations)
    return [
        f"--keep_steps {step} is beyond --iterations {args.iterations}: there will be no checkpoint of that"
        " step"
        for step in late
    ]


LARGEST = 4096  # micro-batch that is worth naming


def batch_sizes_that_fit(samples: int, processes: int) -> list[int]:
    """Sizes of a micro-batch, the largest first, of which every process can run the same number in a step of
    so many samples; none where the samples themselves cannot be shared evenly.
    """
    share, left = divmod(samples, processes)
    return [] if left else [size for size in range(min(share, LARGEST), 0, -1) if share % size == 0]


def check_world_size(args: Namespace, world_size: int) -> None:
    """Raises UserError where the micro-batches of a step cannot be shared evenly."""
    if args.acc_steps % world_size:
        samples = args.batch_size * args.acc_steps
        sizes = ", ".join(map(str, batch_sizes_that_fit(samples, world_size)))
        fitting = f"the same {samples} of a step can be cut into micro-batches of {sizes}"
        if not sizes:
            fitting = f"nor can they share the {samples} of a step in any other way"
        raise UserError(
            f"--acc_steps {args.acc_steps} is not divisible by {world_size} processes: each runs acc_steps /"
            f" processes micro-batches of --batch_size {args.batch_size} a step; {fitting}"
        )
