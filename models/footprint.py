"""Bytes of a training and of a generation, by formula: plain arithmetic from the flags of a model, without
torch.

    memory = footprint(ModelSettings.from_args(args), Training(batch_size=16, dtype="bfloat16"))
    memory.peak, memory.largest_phase

What is counted is tensors: of a compiled model, of dropout's masks and of a GPU's context and allocator
nothing is. `bench/scale.py` holds the formulas against measured bytes.

Legend: n tokens of a micro-batch, T positions, D model width, V rows of the output weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from errors import UserError
from models.settings import GATE_CHANNELS, ModelSettings

FLOAT = 4  # bytes of float32, which weights, gradients and states are in
SLICE_ELEMENTS = 1 << 25  # logits held at once, as models/loss.py has them
CPU_SLICES = 4
COUNTED = ("fixed", "compact")  # policies whose activations there is a formula for
MUON_COPIES = 6  # of the matrix that is orthogonalised


@dataclass(frozen=True)
class Part:
    """Parameters of one shape. kind: matrix, vector, table, head or router."""

    name: str
    kind: str
    shape: tuple[int, ...]
    count: int = 1

    @property
    def size(self) -> int:
        """Numbers, all of them together."""
        return math.prod(self.shape) * self.count

    @property
    def in_block(self) -> bool:
        return self.name.startswith("block.")


@dataclass(frozen=True)
class Training:
    """What memory depends on beside the model.

    micro_batches: of a step, per process. shares: of the tokens that are in each pass after the first, for
    routed models (None: all, the most there can be). cuda: attention's output needs no copy, and softmax is
    not in place.
    """

    batch_size: int
    dtype: str = "float32"
    opt: str = "adamw"
    processes: int = 1
    micro_batches: int = 1
    shard: str = "none"
    shares: tuple[float, ...] | None = None
    cuda: bool = True

    @property
    def width(self) -> int:
        """Bytes of a number that products are taken in."""
        return FLOAT if self.dtype == "float32" else 2


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process. phases: all that is held in each phase of a step."""

    weights: int
    gradients: int
    states: int
    kept: int
    phases: dict[str, int]

    @property
    def largest_phase(self) -> str:
        return max(self.phases, key=self.phases.__getitem__)

    @property
    def peak(self) -> int:
        return self.phases[self.largest_phase]


def _block(settings: ModelSettings) -> Iterator[Part]:
    """Of every layer."""
    width, inner, layers = settings.n_embd, settings.inner_width, settings.n_layer
    kv_width = settings.kv_heads * settings.head_width
    if settings.is_modern:
        yield Part("block.attn", "matrix", (width, width), 2 * layers)
        yield Part("block.attn", "matrix", (kv_width, width), 2 * layers)
        gates = len(settings.value_layers)
        yield Part("block.gate", "matrix", (settings.kv_heads, GATE_CHANNELS), gates)
    elif settings.variant.split_qkv:
        yield Part("block.attn", "matrix", (width, width), 2 * layers)
        yield Part("block.attn", "matrix", (2 * width, width), layers)
    else:
        yield Part("block.attn", "matrix", (width, width), layers)
        yield Part("block.attn", "matrix", (3 * width, width), layers)
    yield Part("block.mlp", "matrix", (inner, width), layers)
    yield Part("block.mlp.out", "matrix", (width, inner), layers)
    if settings.is_modern:
        return
    yield Part("block.norm", "vector", (width,), layers * 2 * (1 + settings.has_bias("norm")))
    if settings.has_bias("attn"):
        yield Part("block.attn.bias", "vector", (4 * width,), layers)
    if settings.has_bias("mlp"):
        yield Part("block.mlp.bias", "vector", (inner + width,), layers)


def parameters(settings: ModelSettings) -> list[Part]:
    """All parameters, each once. Raises UserError for models without a formula."""
    variant, width, rows = settings.variant, settings.n_embd, settings.table_rows
    if variant.policy not in COUNTED or settings.lora is not None:
        what = "--adapt" if settings.lora is not None else f"model {settings.model}"
        raise UserError(f"there is no formula for the memory of {what}")
    parts = [*_block(settings), Part("wte", "table", (rows, width))]
    norms = 1 + (variant.ln_mid and not settings.disable_ln_mid)
    if settings.is_modern:
        parts.append(Part("lm_head", "head", (rows, width)))
        kv_width = settings.kv_heads * settings.head_width
        parts.append(Part("value_embeds", "table", (rows, kv_width), len(settings.value_layers)))
        parts.append(Part("lambdas", "vector", (len(settings.layer_of),), 2))
    else:
        parts.append(Part("norm", "vector", (width,), norms * (1 + settings.has_bias("norm"))))
    if variant.depth_emb and settings.depth_embedding is not None:
        depths = 1 if settings.depth_embedding == "linear_learned" else settings.n_repeat
        parts.append(Part("depth_emb", "table", (depths, width)))
    if variant.routes:
        parts.append(Part("mod", "router", (1, width), settings.n_repeat - 1))
    return parts


def numbers(parts: Sequence[Part]) -> int:
    return sum(part.size for part in parts)


def block_numbers(parts: Sequence[Part]) -> int:
    """Of the layers alone."""
    return numbers([part for part in parts if part.in_block])


def state_numbers(part: Part, opt: str) -> int:
    """What an optimiser keeps of some parameters, step counts left out."""
    rows, columns = part.shape[0], part.shape[-1]
    if opt == "adafactor" and len(part.shape) > 1:
        return (rows + columns) * part.count
    if opt in ("lion", "sgd", "adafactor"):
        return part.size
    if opt == "muon" and part.kind == "matrix":
        return part.size + max(rows, columns) * part.count
    return 2 * part.size


def _published(settings: ModelSettings, training: Training, n: int, passes: int) -> int:
    """Bytes that a layer keeps for the backward pass, its input among them. passes: whose keys it sees."""
    width, inner, c = settings.n_embd, settings.inner_width, training.width
    split, rotates = settings.variant.split_qkv, settings.positional_encoder == "rotary"
    joined = settings.attention == "reference" and passes > 1
    streams = 2 * n * width * FLOAT + 4 * n * FLOAT + n * settings.n_head * FLOAT
    products = 2 + (2 if split else 3) + 2 * rotates + 1 + (not training.cuda)  # norms, q k v, turned, output
    if split:
        products += (not rotates) + (c < FLOAT)  # the norm's output is cast for each of the two
    if joined:  # keys and values of all passes, beside the queries alone
        products += 2 * passes - (2 if split else 3) - rotates
    wide = inner * (1 + (settings.attention == "reference"))
    own = n * (products * width + wide) * c
    if joined:
        own += settings.sequence_length**2 * passes * c
    return streams + own


def _modern(settings: ModelSettings, training: Training, n: int, has_values: bool) -> int:
    """As `_published`."""
    width, inner, c = settings.n_embd, settings.inner_width, training.width
    kv_width, half = settings.kv_heads * settings.head_width, c < FLOAT
    shares_keys = kv_width < width
    streams = n * FLOAT * (3 * width + 2)  # input, two norms and their scales
    queries = n * FLOAT * (width + kv_width + 2 * settings.n_head + settings.kv_heads)
    cast = n * c * 4 * width * half  # the norm's output for each linear layer
    if half:
        queries += n * c * width
    of_keys = width if shares_keys else kv_width
    keys = of_keys * (half or shares_keys) + of_keys
    products = n * c * (keys + width * (1 + (not training.cuda)))
    wide = n * c * inner * (1 + (settings.attention == "reference"))
    values = 0
    if has_values:
        values = n * (kv_width * FLOAT + 2 * settings.kv_heads * c + GATE_CHANNELS * c * half)
    return streams + queries + cast + products + wide + values


def _layer(settings: ModelSettings, training: Training, n: int, depth: int, passes: int) -> int:
    if settings.is_modern:
        return _modern(settings, training, n, depth in settings.value_depths)
    return _published(settings, training, n, passes)


def _keys(settings: ModelSettings, training: Training, n: int) -> int:
    """Bytes that the keys and values of a layer hold in memory between passes."""
    if settings.is_modern:
        return 2 * n * settings.kv_heads * settings.head_width * training.width
    rotates = settings.positional_encoder == "rotary"
    # values are a view of all that their product gave
    return n * settings.n_embd * training.width * ((2 if settings.variant.split_qkv else 3) + rotates)


@dataclass(frozen=True)
class _Run:
    """One run of a stack: its layers' bytes if all is kept, and what it keeps in any case."""

    layers: tuple[int, ...]
    input: int
    keys: int  # of each layer, which later passes see


def _runs(settings: ModelSettings, training: Training) -> Iterator[_Run]:
    variant, n = settings.variant, training.batch_size * settings.sequence_length
    row = settings.n_embd * FLOAT
    tokens = [n] * settings.n_repeat
    if variant.routes and training.shares is not None:
        tokens = [n, *(int(share * n) for share in training.shares)]

    def run(name: str, pass_number: int, active: int, passes: int) -> _Run:
        depths = settings.depths(name, pass_number)
        layers = tuple(_layer(settings, training, active, depth, passes) for depth in depths)
        later = name == "h_mid" and variant.attends == "all" and pass_number < settings.n_repeat
        return _Run(layers, active * row, _keys(settings, training, active) * later)

    yield run("h_begin" if variant.loop else "h", 1, n, 1)
    if not variant.loop:
        return
    for pass_number, active in enumerate(tokens, 1):
        passes = pass_number if variant.attends == "all" else 1
        yield run("h_mid", pass_number, active, passes)
    yield run("h_end", settings.n_repeat, n, 1)


def _between(settings: ModelSettings, training: Training) -> int:
    """Bytes kept outside of the layers: norms after passes, routers' mixtures, the last norm, angles."""
    variant, n, row = (
        settings.variant,
        training.batch_size * settings.sequence_length,
        settings.n_embd * FLOAT,
    )
    total = n * row + 2 * n * FLOAT  # input of the last norm; of modern blocks its output
    angles = settings.sequence_length * settings.head_width * FLOAT
    if not variant.loop:
        return total + angles
    if variant.ln_mid and not settings.disable_ln_mid:
        total += settings.n_repeat * (n * row + 2 * n * FLOAT)
    if variant.routes:
        later = training.shares or (1.0,) * (settings.n_repeat - 1)
        total += int(2 * n * row * sum(later))
        if training.width < FLOAT:  # what routers score is cast
            total += int(n * settings.n_embd * training.width * (1 + sum(later[:-1])))
    return total + angles * (1 + settings.n_repeat * (variant.attends == "all"))


def kept_bytes(settings: ModelSettings, training: Training, runs: int | None = None) -> int:
    """Activations that a forward pass leaves for the backward one, without weights' copies and the loss's.
    runs: of so many runs of stacks, from the first (None: of all).
    """
    total, way = _between(settings, training), settings.activation_checkpointing
    for run in list(_runs(settings, training))[:runs]:
        if way == "none":
            total += sum(run.layers)
        else:
            inputs = 1 if way == "pass" else len(run.layers)
            total += run.input * inputs * bool(run.layers) + run.keys * len(run.layers)
    return total


def _again(settings: ModelSettings, training: Training) -> int:
    """Bytes that the backward pass computes again at a time, of the largest run or layer."""
    way = settings.activation_checkpointing
    if way == "none":
        return 0
    take = sum if way == "pass" else max
    return max(take(run.layers) - run.input for run in _runs(settings, training) if run.layers)


def _in_passing(settings: ModelSettings, training: Training) -> int:
    """Bytes that a layer needs while it runs, where they are not kept: keys and values of its run, the inner
    states of the MLP, and eight states of the model's width.
    """
    if settings.activation_checkpointing == "none":
        return 0
    n, most = training.batch_size * settings.sequence_length, max(map(len, _layers(settings, training)))
    own = n * training.width * (2 * settings.inner_width + 8 * settings.n_embd)
    return own + most * _keys(settings, training, n)


def _layers(settings: ModelSettings, training: Training) -> Iterator[tuple[int, ...]]:
    return (run.layers for run in _runs(settings, training))


def _casts(parts: Sequence[Part], training: Training, everything: bool) -> int:
    """Copies of the layers' weights in half precision; everything: those too that only products that are
    computed again read.
    """
    if training.width == FLOAT:
        return 0
    cast = [part for part in parts if part.in_block and part.name != "block.norm"]
    return training.width * numbers([part for part in cast if everything or part.name != "block.mlp.out"])


def _loss(settings: ModelSettings, training: Training) -> tuple[int, int]:
    """Bytes of the loss that stay for the backward pass, and those that it needs beside while it runs."""
    n, width, rows, c = (
        training.batch_size * settings.sequence_length,
        settings.n_embd,
        settings.table_rows,
        training.width,
    )
    vocabulary, half = settings.vocab_size, training.width < FLOAT
    tokens = max(1, SLICE_ELEMENTS // vocabulary)
    if settings.is_modern and not training.cuda:
        slices = max(1, -(-n * vocabulary // (CPU_SLICES * SLICE_ELEMENTS)))
        tokens = -(-n // slices)
    tokens = min(n, tokens)
    stays = n * width * FLOAT + rows * width * FLOAT + 2 * n * FLOAT
    logits = FLOAT + (2 * c) * half + FLOAT * training.cuda + FLOAT * settings.is_modern * training.cuda
    beside = tokens * vocabulary * logits + n * width * FLOAT + tokens * width * c
    if settings.is_modern:
        beside += n * width * c
        if not training.cuda:
            beside += min(tokens * vocabulary, 1 << 20) * FLOAT
    if half:
        beside += n * width * c + 2 * vocabulary * width * c
    return stays, beside


@dataclass(frozen=True)
class _Whole:
    """Bytes of weights that --shard full makes whole for a time: all that is in no unit, from the first layer
    to the last gradient; a unit, which is a block, and with it the one that is fetched meanwhile, in two
    copies; and repeated units, whose gradients stay whole until the first pass has given its own.
    """

    outside: int = 0
    unit: int = 0
    repeated: int = 0

    @classmethod
    def of(cls, settings: ModelSettings, parts: Sequence[Part]) -> _Whole:
        of_blocks, repeated = block_numbers(parts), repeated_numbers(settings, parts)
        outside, unit = numbers(parts) - of_blocks, of_blocks // settings.n_layer
        if settings.variant.variable_tokens:  # processes run these blocks a different number of times
            return cls(FLOAT * (outside + repeated), FLOAT * unit)
        return cls(FLOAT * outside, FLOAT * unit, FLOAT * repeated)


def footprint(settings: ModelSettings, training: Training) -> Footprint:
    """Of one process of a training. Raises UserError for models without a formula."""
    parts, is_several = parameters(settings), training.processes > 1
    is_full = training.shard == "full" and is_several
    n = training.batch_size * settings.sequence_length
    total, of_blocks = FLOAT * numbers(parts), FLOAT * block_numbers(parts)
    states = FLOAT * sum(state_numbers(part, training.opt) for part in parts)
    weights = gradients = total
    if training.shard == "optimizer" and is_several:
        states = states * largest_share(parts, training.processes) // numbers(parts)
    if is_full:
        weights, gradients, states, of_blocks = (
            -(-each // training.processes) for each in (total, total, states, of_blocks)
        )
    whole = _Whole.of(settings, parts) if is_full else _Whole()
    held = weights + states
    # the buckets of DDP are never given back; nor is what earlier micro-batches have added up
    always = training.micro_batches > 1 or (is_several and not is_full)
    kept, (stays, beside) = kept_bytes(settings, training), _loss(settings, training)
    casts = _casts(parts, training, everything=settings.attention == "reference")
    copies = _casts(parts, training, everything=True)
    before = held + gradients * always + whole.outside
    working = 2 * n * settings.inner_width * training.width + _again(settings, training)
    working += 4 * whole.unit
    if not always and not is_full:
        working += of_blocks // settings.n_layer
    table = FLOAT * settings.table_rows * settings.n_embd
    last = table * (always if settings.is_modern else 2)
    if is_full:  # weights and gradients of what is in no unit, and the gradients of a unit
        last = 2 * whole.outside + whole.unit + table * (not settings.is_modern)
    phases = {
        "forward": before + 3 * whole.unit + kept + copies + _in_passing(settings, training),
        "loss": before + kept + copies + stays + beside,
        "backward": before + kept + casts + stays + working,
        "last gradients": held + (of_blocks if is_full and not always else gradients) + last,
        "step": held + gradients + _of_step(training, parts, gradients),
    }
    if is_full:
        phases["gathering"] = before + whole.outside  # what has come in, and its copies
    if whole.repeated:
        of_first = kept_bytes(settings, training, runs=2)
        phases["first pass backward"] = before + whole.repeated + of_first + casts + stays + working
    kept_casts = casts * (settings.activation_checkpointing == "none")
    return Footprint(weights, gradients, states, kept + stays + kept_casts, phases)


def _of_step(training: Training, parts: Sequence[Part], gradients: int) -> int:
    """Bytes that an optimiser's step needs beside."""
    if training.opt == "muon":
        return MUON_COPIES * FLOAT * max(math.prod(part.shape) for part in parts if part.kind == "matrix")
    return gradients if training.opt == "lion" else 0


def largest_share(parts: Sequence[Part], processes: int) -> int:
    """Numbers of the process with the most, where each gets whole tensors, as ZeroRedundancyOptimizer gives
    them out: first those that decay, of these the largest, each to the process that has the least.
    """
    shares = [0] * processes
    for part in sorted(parts, key=lambda part: (part.kind in ("vector", "table"), -math.prod(part.shape))):
        for _ in range(part.count):
            shares[shares.index(min(shares))] += math.prod(part.shape)
    return max(shares)


def repeated_numbers(settings: ModelSettings, parts: Sequence[Part]) -> int:
    """Of the layers that are repeated."""
    middle = settings.stack_sizes[1] if settings.variant.loop and settings.n_repeat > 1 else 0
    return block_numbers(parts) * middle // settings.n_layer


def largest_micro_batch(settings: ModelSettings, training: Training, limit: int) -> int:
    """Sequences whose training stays within so many bytes; 0: not even one does."""

    def fits(size: int) -> bool:
        return footprint(settings, replace(training, batch_size=size)).peak <= limit

    if not fits(1):
        return 0
    high = 2
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def checkpoint_bytes(settings: ModelSettings, opt: str) -> int:
    """Of weights and states in a ckpt_N.pt."""
    parts = parameters(settings)
    return FLOAT * (numbers(parts) + sum(state_numbers(part, opt) for part in parts))


def cache_bytes(settings: ModelSettings, tokens: int, width: int = FLOAT) -> int:
    """Keys and values of a generation: of each layer and pass a slot for each of so many tokens of all
    sequences.
    """
    begin, middle, end = settings.stack_sizes
    runs = begin + end + middle * (settings.n_repeat if settings.variant.loop else 1)
    return 2 * runs * settings.kv_heads * settings.head_width * tokens * width
