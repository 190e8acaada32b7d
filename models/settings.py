"""The door between flags and models: one frozen dataclass, so that nothing below sees a Namespace."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

from config.adaptation import Lora, lora_of
from errors import UserError
from models.variants import ALIASES, VARIANTS, Variant

# of modern blocks: channels of a layer's normed input that the gates of its value embeddings read
GATE_CHANNELS = 32
VOCABULARY_UNIT = 64  # modern blocks: rows of embedding and head are a multiple of it
DEFAULT_ACT_PENALTY = 0.03  # of the stick-breaking depth loss, where --depth_predictor_loss_coef is not given


@dataclass(frozen=True)
class ModelSettings:
    """Flags of the same names; lengths in tokens, widths in features."""

    model: str
    vocab_size: int
    sequence_length: int
    n_layer: int
    n_embd: int
    n_head: int
    n_layer_begin: int
    n_layer_end: int
    n_repeat: int
    dropout: float
    bias: bool
    positional_encoder: str
    attention_window_length: int | None
    attention: str
    activation_checkpointing: str
    depth_embedding: str | None
    disable_ln_mid: bool
    depth_random_method: str
    eval_length_factor: tuple[float, ...] | None
    training_length_factor: tuple[float, ...] | None
    routing: str
    router_threshold: tuple[float, ...] | None
    halt_threshold: float
    depth_predictor_loss_coef: float | None
    ponder_lambda_p: float
    ponder_kl_div_loss_weight: float
    # what came later, with what models were before
    mlp_width: int | None = None
    rope_base: float = 10000.0
    attn_bias: bool | None = None
    mlp_bias: bool | None = None
    norm_bias: bool | None = None
    scaled_init: bool = True
    block: str = "published"
    window_pattern: str = "L"
    n_kv_head: int | None = None
    rope_dtype: str = "float32"
    depth_index: str = "pass"
    trained_length: int | None = None  # where it is not sequence_length: windows are shares of it
    mup_base_width: int | None = None
    adapt: str | None = None

    @classmethod
    def from_args(cls, args: Any) -> ModelSettings:
        """Raises UserError for a model name that is no row of the table."""
        values, model = {}, ALIASES.get(args.model, args.model)
        if model not in VARIANTS:
            raise UserError(f"unknown model {model!r}; there are: {', '.join(VARIANTS)}")
        for field in fields(cls):
            has_default = field.default is not MISSING
            values[field.name] = getattr(args, field.name, *([field.default] if has_default else []))
        values["model"] = model
        for name in ("eval_length_factor", "training_length_factor", "router_threshold"):
            values[name] = None if values[name] is None else tuple(values[name])
        return cls(**values)

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.model]

    def beyond_the_paper(self) -> list[str]:
        """Fields, among those that came later, whose values the authors' models do not have."""
        return [field.name for field in LATER if getattr(self, field.name) != field.default]

    @property
    def inner_width(self) -> int:
        """Of the MLP."""
        return 4 * self.n_embd if self.mlp_width is None else self.mlp_width

    def has_bias(self, part: str) -> bool:
        """Whether a part (attn, mlp, norm) has biases: as it says itself, or as all of the model."""
        own: bool | None = getattr(self, f"{part}_bias")
        return self.bias if own is None else own

    @property
    def head_width(self) -> int:
        return self.n_embd // self.n_head

    @property
    def width_multiple(self) -> float | None:
        """Of muP: the width over that for which rates and initial weights were chosen; None without muP."""
        return None if self.mup_base_width is None else self.n_embd / self.mup_base_width

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by, beside the root of the head width that scores are over: that root
        once more with muP.
        """
        return 1.0 if self.mup_base_width is None else self.head_width**-0.5

    @property
    def lora(self) -> Lora | None:
        """The adapters of --adapt."""
        return None if self.adapt is None else lora_of(self.adapt)

    @property
    def is_modern(self) -> bool:
        return self.block == "modern"

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, each of which serves n_head / kv_heads heads of queries."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def table_rows(self) -> int:
        """Of the embeddings and the head: the vocabulary, padded where blocks are modern."""
        if not self.is_modern:
            return self.vocab_size
        return -(-self.vocab_size // VOCABULARY_UNIT) * VOCABULARY_UNIT

    @property
    def layer_of(self) -> list[int]:
        """The layer of each depth, by which scalars, windows and value embeddings of modern blocks are
        indexed. With --depth_index layer these are the layers themselves, the same in all passes; with pass,
        every run of a layer is one depth further, in the order of computation.
        """
        layers, (begin, middle, _) = list(range(self.n_layer)), self.stack_sizes
        if self.depth_index == "layer" or not self.variant.loop:
            return layers
        repeated, last = layers[begin : begin + middle], layers[begin + middle :]
        if self.variant.exits_each_pass:
            return layers[:begin] + (repeated + last) * self.n_repeat
        return layers[:begin] + repeated * self.n_repeat + last

    def depths(self, stack: str, pass_number: int) -> range:
        """Of the layers of a stack (h, h_begin, h_mid or h_end), in a pass from 1 on."""
        begin, middle, end = self.stack_sizes
        if stack not in ("h_mid", "h_end"):
            return range(begin)
        first, size = (begin, middle) if stack == "h_mid" else (begin + middle, end)
        if self.depth_index == "pass":
            exits = self.variant.exits_each_pass
            before = pass_number - 1 if exits or stack == "h_mid" else self.n_repeat - 1
            first += before * (middle + end * exits)
        return range(first, first + size)

    @property
    def windows(self) -> list[int]:
        """Of each depth of modern blocks: how many positions back the furthest key is. S is half the context,
        L all of it; the last depth is always L.
        """
        letters = [self.window_pattern[i % len(self.window_pattern)] for i in range(len(self.layer_of))]
        letters[-1] = "L"
        context = self.trained_length or self.sequence_length
        lengths = {"S": context // 2, "L": context}
        return [lengths[letter.upper()] for letter in letters]

    @property
    def value_depths(self) -> range:
        """Depths of modern blocks whose values have value embeddings: every other one, the last included."""
        depths = len(self.layer_of)
        return range((depths - 1) % 2, depths, 2)

    @property
    def value_layers(self) -> list[int]:
        """Layers that own a table of value embeddings: those of value_depths. A layer has one for all
        passes.
        """
        return sorted({self.layer_of[depth] for depth in self.value_depths})

    @property
    def stack_sizes(self) -> tuple[int, int, int]:
        """Layers before, inside and after the repeated part; a model without a loop has all of them in the
        first.
        """
        if not self.variant.loop:
            return self.n_layer, 0, 0
        return self.n_layer_begin, self.n_layer - self.n_layer_begin - self.n_layer_end, self.n_layer_end

    @property
    def stack_in_words(self) -> str:
        begin, middle, end = self.stack_sizes
        of_blocks = " of modern blocks" if self.is_modern else ""
        if not self.variant.loop:
            return f"{begin} layers{of_blocks}"
        return f"{begin} -> {middle} x {self.n_repeat} -> {end} layers{of_blocks}"

    @property
    def act_penalty(self) -> float:
        """Weight of the stick-breaking depth loss, which is a sum over tokens."""
        return (
            DEFAULT_ACT_PENALTY if self.depth_predictor_loss_coef is None else self.depth_predictor_loss_coef
        )

    def looks_ahead(self, training: bool = False) -> bool:
        """Whether the output at a token can depend on later tokens of its sequence.

        Routing by capacity picks the best scores of a whole sequence, so later tokens (padding, too) change
        which are picked. Where every token goes on there is no choice, and routed models are causal like the
        others.
        """
        if not self.variant.routes:
            return False
        return training or any(share != 1 for share in self.eval_length_factor or ())


LATER = tuple(field for field in fields(ModelSettings) if field.default is not MISSING)
