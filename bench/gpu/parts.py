"""What bench/gpu.sh runs, in this order: a row here for each process. A new model is a row of
models/variants.py, which the checks go through; a new part is a row here.
"""

from __future__ import annotations

from dataclasses import dataclass

HALF = ("bfloat16", "float16")
ALL = ("float32", *HALF)
SELFTEST = ("--selftest_resume", "--dataset", "selftest", "--deterministic", "--model", "lncot")
SELFTEST += ("--n_layer", "4", "--n_layer_begin", "1", "--n_layer_end", "1", "--n_repeat", "3")
SELFTEST += ("--sequence_length", "64", "--batch_size", "4", "--iterations", "30", "--eval_freq", "10")
SELFTEST += ("--eval_batches", "2", "--save_checkpoint_freq", "5", "--dtype", "bfloat16")


@dataclass(frozen=True)
class Figure:
    """A number of a script that prints one line of JSON. path: keys that lead to it. at_least, at_most: its
    target.
    """

    name: str
    path: tuple[str, ...]
    unit: str
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Part:
    """A process. command: what Python is given; `{device}` and `{folder}` are filled in.

    large, small: further words on a GPU, and for sizes that suit a CPU. seconds: of its limit at least, while
    so much time is left; what is over is shared by these. needs: devices of CUDA, 0 where a CPU will do.
    figures: of a script that prints these as one line; empty where it prints rows. says: where the exit code
    tells all, what it tells, as the name of the only row.
    """

    name: str
    command: tuple[str, ...]
    large: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    seconds: float = 15
    needs: int = 0
    figures: tuple[Figure, ...] = ()
    says: str = ""


def check(name: str, *dtypes: str, model: str = "", seconds: float) -> Part:
    command = ("-m", "bench.gpu.checks", name, "--device", "{device}", "--dtype", *dtypes)
    if model:
        small = ("--tiny", "--dtype", dtypes[0])  # a CPU's compiler takes its time
        return Part(f"{name} {model}", (*command, "--model", model), small=small, seconds=seconds)
    title = f"{name} {dtypes[0]}" if len(dtypes) == 1 else name
    return Part(title, command, small=("--tiny",), seconds=seconds)


def systems(name: str, *dtypes: str, seconds: float) -> Part:
    command = ("-m", "bench.gpu.systems", name, "--device", "{device}")
    small = ("--tiny", "--dtype", dtypes[0])
    return Part(f"systems {name}", command, ("--dtype", *dtypes), small, seconds)


def measured(name: str, seconds: float, module: str = "figures") -> Part:
    command = ("-m", f"bench.gpu.{module}", name, "--device", "{device}")
    return Part(name, command, small=("--tiny",), seconds=seconds)


def killed(name: str, *program: str, acc_steps: int, needs: int, seconds: float, shard: str = "none") -> Part:
    """Whether a training whose processes are killed and stopped ends with the bits of one that is not.

    program: what is given the self-test's flags.
    """
    place = (
        "--shard",
        shard,
        "--device",
        "{device}",
        "--results_base_folder",
        "{folder}",
        "--acc_steps",
        str(acc_steps),
    )
    large = ("--n_embd", "256", "--n_head", "4", "--vocab_size", "1024")
    small = ("--n_embd", "32", "--n_head", "2", "--vocab_size", "256")
    return Part(name, (*program, *SELFTEST, *place), large, small, seconds, needs, says=name)


def script(
    name: str,
    *words: str,
    figures: tuple[Figure, ...],
    small: tuple[str, ...],
    seconds: float,
    large: tuple[str, ...] = (),
) -> Part:
    """A benchmark that has a command of its own too."""
    large = ("--dtype", "bfloat16", "--n_layer", "24", *large)
    return Part(name, (f"bench/{name}.py", "--device", "{device}", *words), large, small, seconds, 0, figures)


def two(name: str, shard: str, seconds: float) -> Part:
    program = ("-m", "bench.gpu.pair")
    return killed(
        f"resume on two GPUs ({name})", *program, acc_steps=2, needs=2, seconds=seconds, shard=shard
    )


SMALL = ("--n_embd", "64", "--n_layer", "4")

# those first from which most is learned, should the time not do for all
PARTS = (
    Part(
        "health",
        ("-m", "distributed.health", "--device", "{device}", "--report", "{folder}/health"),
        says="the node is fit to train",
    ),
    check("equal", "bfloat16", seconds=30),
    systems("near", "bfloat16", seconds=40),
    systems("learns", *HALF, seconds=50),
    measured("gpt", 100, "trainings"),
    measured("blocks", 40, "blocks"),
    check("waits", *HALF, seconds=15),
    check("learns", *HALF, seconds=25),
    check("losses", *ALL, seconds=25),
    check("resume", *HALF, seconds=50),
    systems("resume", "bfloat16", seconds=60),
    script(
        "generate",
        small=(*SMALL, "--tokens", "16"),
        seconds=40,
        figures=(
            Figure("generation, batch 1", ("tokens_per_second",), "tokens/s"),
            Figure("generation over running the whole prefix", ("speedup",), "times"),
        ),
    ),
    measured("graphs", 20, "graphs"),
    measured("batches", 20, "graphs"),
    measured("grpo", 30, "trainings"),
    measured("coalescence", 20, "trainings"),
    Part(
        "decoding of times",
        ("bench/coalescence.py", "--device", "{device}"),
        large=("--model", "narrow", "--dtype", "bfloat16", "--sequences", "8"),
        small=("--sequences", "1", "--replicates", "2"),
        seconds=30,
        figures=(
            Figure("windows drawn, coalescence times", ("tokens_per_second", "kept"), "windows/s"),
            Figure("drawing over running all positions", ("speedup",), "times"),
        ),
    ),
    Part(
        "scale",
        ("bench/scale.py", "--device", "{device}"),
        small=("--n_embd", "32", "--n_head", "2", "--batch_size", "2", "--sequence_length", "64"),
        seconds=25,
        figures=tuple(
            Figure(
                f"formula of memory, largest error: {what}", ("largest_error", what), "of what is measured"
            )
            for what in ("weights", "gradients", "states", "kept", "peak")
        ),
    ),
    measured("speed", 60),
    *(check("compiled", *HALF, model=model, seconds=60) for model in ("gpt", "lncot")),
    killed("resume after kills", "main.py", acc_steps=1, needs=0, seconds=80),
    *(check("compiled", *HALF, model=model, seconds=60) for model in ("adm", "base")),
    measured("micro_batch", 60),
    Part("fp8", ("-m", "bench.gpu.fp8", "fp8", "--device", "{device}"), small=("--tiny",), seconds=80),
    script(
        "budget",
        large=("--batch_size", "32"),
        small=(*SMALL, "--batch_size", "2", "--sequence_length", "64", "--rounds", "3"),
        seconds=30,
        figures=(
            Figure("share of the multiply-accumulates", ("share_of_macs",), ""),
            Figure(
                "evaluation at half the multiply-accumulates", ("time_ratio",), "of the time", at_most=0.6
            ),
            Figure("training at half the multiply-accumulates", ("training_time_ratio",), "of the time"),
        ),
    ),
    script(
        "train_step",
        *("--recipe", "gpt", "--compile", "0"),
        large=("--n_layer", "12", "--batch_size", "4", "--sequence_length", "2048"),
        small=(*SMALL, "--batch_size", "1", "--sequence_length", "32", "--rounds", "1"),
        seconds=40,
        figures=(
            Figure("modern GPT, depth 12, a step of 2^19 tokens", ("tokens_per_second",), "tokens/s"),
            Figure("useful share of the matmul rate, modern GPT", ("utilisation",), ""),
            Figure("Muon's share of such a step", ("share_of_update",), "of the time", at_most=0.08),
            Figure("memory over the plain way, modern GPT", ("memory_share",), "", at_most=0.6),
        ),
    ),
    script(
        "checkpoint",
        "--folder",
        "{folder}",
        small=(*SMALL, "--rounds", "3"),
        seconds=20,
        figures=(
            Figure("size of a checkpoint", ("bytes",), "bytes"),
            Figure("stall of the loop for a checkpoint", ("seconds", "background"), "s"),
            Figure("stall over a synchronous save", ("stall_ratio",), "of the time", at_most=0.25),
        ),
    ),
    check("equal", "float16", seconds=30),
    two("nccl", "none", 150),
    two("nccl, --shard optimizer", "optimizer", 150),
    two("nccl, --shard full", "full", 150),
)
