"""The transformer of all nine models: three stacks of pre-norm blocks, of which the middle one is repeated.

Legend: B batch, T positions, R passes, D model width, V vocabulary.

Parameters and how they start (the authors' scheme; GPT-2's residual scaling)
  Linear, Embedding    N(0, 0.02)
  c_proj.weight        N(0, 0.02 / sqrt(2 n_layer)), with --scaled_init
  norms 1, biases 0    last layer of the stick-breaking gate 0 (halting starts even)
With --block modern (nanochat's scheme)
  wte                  N(0, 1)
  lm_head              N(0, 0.001)
  matrices of blocks   uniform, of standard deviation 1 / sqrt(n_embd); value embeddings too
  c_proj, ve_gate      0
  scalars              1 for a layer's input, 0.1 for the embeddings
  depth embedding, routers, gates that halt: as above
With --mup_base_width, these are of a network of that width; matrices of blocks fall with the root of the
width from there, routers and gates that halt with the width, all others stay
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.adapters import adapter_roles, add_lora, trained_parameters
from models.attention import Rotary
from models.hidden import Hidden
from models.layers import Block, DepthEmbedding, HaltingGate, LayerInputs, PublishedBlock, Router, Scaled
from models.losses import next_token
from models.macs import training_flops_per_token
from models.memory import Memory, SequenceMemory, Stack
from models.modern import SOFTCAP, ModernBlock, RMSNorm, rms_norm
from models.network import (
    EMBEDDING,
    GATE,
    HEAD,
    MATRIX,
    RESIDUAL_SCALAR,
    ROUTER,
    VALUE_EMBEDDING,
    X0_SCALAR,
    by_layer_type,
)
from models.passes import Passes
from models.planner import Planner
from models.policies import POLICIES
from models.settings import ModelSettings

# parts that start alike with all blocks
OF_THE_PAPER = ("depth_emb.", "transformer.mod.", "to_halt_logits.", "depth_predictor.")


def _blocks(settings: ModelSettings) -> list[nn.ModuleList]:
    """Of the stacks before, inside and after the repeated part."""
    blocks: list[Block] = []
    for layer in range(settings.n_layer):
        if settings.is_modern:
            blocks.append(ModernBlock(settings, has_values=layer in settings.value_layers))
        else:
            blocks.append(PublishedBlock(settings))
    begin, middle, _ = settings.stack_sizes
    cuts = slice(begin), slice(begin, begin + middle), slice(begin + middle, None)
    return [nn.ModuleList(blocks[cut]) for cut in cuts]


def _norm(settings: ModelSettings) -> nn.Module:
    if settings.is_modern:
        return RMSNorm()
    return nn.LayerNorm(settings.n_embd, bias=settings.has_bias("norm"))


class Transformer(nn.Module):
    """A row of the table in models/variants.py; state-dict names are the authors' own, and those of modern
    blocks nanochat's.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.quantised_head: nn.Module | None = None  # models/quantised.py
        variant, width, rows = settings.variant, settings.n_embd, settings.table_rows
        begin, middle, end = _blocks(settings)
        parts: dict[str, nn.Module] = {
            "wte": nn.Embedding(rows, width),
            "wpe": nn.Identity(),
            "drop": nn.Dropout(settings.dropout),
        }
        if settings.positional_encoder == "rotary":
            rounded_to = torch.bfloat16 if settings.rope_dtype == "bfloat16" else None
            parts["wpe"] = Rotary(settings.head_width, settings.rope_base, rounded_to)
        parts |= {"h_begin": begin, "h_mid": middle, "h_end": end} if variant.loop else {"h": begin}
        if variant.ln_mid:
            parts["ln_mid"] = nn.Identity() if settings.disable_ln_mid else _norm(settings)
        if variant.routes:
            parts["mod"] = nn.ModuleList(Router(width) for _ in range(settings.n_repeat - 1))
        norm = _norm(settings)
        if not variant.exits_each_pass:
            parts["ln_f"] = norm
        self.transformer = nn.ModuleDict(parts)
        head = nn.Linear(width, rows, bias=False)
        if not settings.is_modern:
            head.weight = cast(nn.Embedding, self.transformer["wte"]).weight
        if variant.exits_each_pass:
            self.to_logits = nn.Sequential(norm, head)
            self.to_halt_logits = nn.ModuleList(nn.Linear(width, 1) for _ in range(settings.n_repeat))
        else:
            self.lm_head = head
        if settings.is_modern:
            kv_width = settings.kv_heads * settings.head_width
            tables = {str(layer): nn.Embedding(rows, kv_width) for layer in settings.value_layers}
            self.value_embeds = nn.ModuleDict(tables)
            self.resid_lambdas = nn.Parameter(torch.ones(len(settings.layer_of)))
            self.x0_lambdas = nn.Parameter(torch.full_like(self.resid_lambdas.detach(), 0.1))
        if variant.depth_emb and settings.depth_embedding is not None:
            self.depth_emb = DepthEmbedding(settings)
        # pondernet has no use for the gate: the authors' state dict has it when their only predictor is asked
        # for
        if variant.breaks_sticks or (variant.exits_each_pass and settings.depth_random_method == "sb_act"):
            self.depth_predictor = HaltingGate(width)
        self._initialise()
        if settings.lora is not None:
            add_lora(self, Block, settings.lora)

    def _initialise(self) -> None:
        residual_std = 0.02
        if self.settings.scaled_init:
            residual_std = 0.02 / math.sqrt(2 * self.settings.n_layer)
        roles = self.roles()
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                if self.settings.is_modern and not name.startswith(OF_THE_PAPER):
                    self._initialise_modern(name, module.weight)
                else:
                    std = residual_std if name.endswith("c_proj") else 0.02
                    role = roles.get(f"{name}.weight", EMBEDDING)  # of a tied head
                    nn.init.normal_(module.weight, std=std * self._mup_factor(role, module.weight))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if hasattr(self, "depth_predictor"):
            nn.init.zeros_(cast(nn.Linear, self.depth_predictor._gate[-1]).weight)

    def _mup_factor(self, role: str, weight: Tensor) -> float:
        """What muP multiplies the initial standard deviation of a weight of the paper's parts by."""
        multiple = self.settings.width_multiple
        if multiple is None or role not in (MATRIX, ROUTER):
            return 1.0
        is_hidden = role == MATRIX or weight.shape[0] == self.settings.n_embd
        return float(multiple ** (-0.5 if is_hidden else -1.0))

    def _initialise_modern(self, name: str, weight: Tensor) -> None:
        width = self.settings.n_embd
        if name.startswith("value_embeds."):
            width = self.settings.mup_base_width or width
        bound = math.sqrt(3 / width)
        if name == "transformer.wte":
            nn.init.normal_(weight)
        elif weight is self.head[1]:
            nn.init.normal_(weight, std=0.001)
        elif name.endswith(("c_proj", "ve_gate")):
            nn.init.zeros_(weight)
        else:
            nn.init.uniform_(weight, -bound, bound)

    def planner(self, sequences: int) -> Planner:
        """What plans the attention of one run of so many sequences, in the present mode and dtype."""
        rotary = None
        if self.settings.positional_encoder == "rotary":
            rotary = self.transformer["wpe"]
        return Planner(self.settings, rotary, next(self.parameters()).dtype, self.training, sequences)

    def compile_blocks(self) -> None:
        """Compile what a block does before and after attention, once: all layers and passes share the two
        programs.
        """
        dynamic = True if self.settings.variant.variable_tokens else None
        for block in (module for module in self.modules() if isinstance(module, Block)):
            for name in block.compiled:
                setattr(block, name, torch.compile(getattr(block, name), dynamic=dynamic))

    @property
    def units(self) -> list[nn.Module]:
        """As models.network.Network. A process whose tokens have all left skips further passes: blocks that
        may so be called less often than on other processes are none.
        """
        names = ["h_begin", "h_mid", "h_end"] if self.settings.variant.loop else ["h"]
        if self.settings.variant.variable_tokens:
            names.remove("h_mid")
        return [block for name in names for block in cast(nn.ModuleList, self.transformer[name])]

    @property
    def head(self) -> tuple[nn.Module, Tensor]:
        """Last norm, over muP's multiple of the width, and output weight (V, D), with padded rows below those
        of tokens.
        """
        if self.settings.variant.exits_each_pass:
            norm, weight = self.to_logits[0], cast(nn.Linear, self.to_logits[1]).weight
        else:
            norm, weight = self.transformer["ln_f"], self.lm_head.weight
        multiple = self.width_multiple
        return norm if multiple is None else Scaled(norm, 1 / multiple), weight

    @property
    def width_multiple(self) -> float | None:
        """As models.network.Network."""
        return self.settings.width_multiple

    @property
    def embedding(self) -> nn.Embedding:
        """As models.network.Network."""
        return cast(nn.Embedding, self.transformer["wte"])

    @property
    def vocabulary(self) -> int:
        """As models.network.Network."""
        return self.settings.vocab_size

    @property
    def softcap(self) -> float | None:
        """As models.network.Network."""
        return SOFTCAP if self.settings.is_modern else None

    def logits(self, states: Tensor) -> Tensor:
        """Hidden states (..., D) -> (..., V)."""
        norm, weight = self.head
        normed = norm(states)
        if self.quantised_head is not None:
            logits = self.quantised_head(normed)
        else:
            logits = F.linear(normed, weight[: self.vocabulary])
        if self.softcap is None:
            return logits
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return (self.softcap * (wide / self.softcap).tanh()).type_as(logits)

    def run(self, inputs: Tensor, cache: Memory | None = None) -> Hidden:
        """inputs (B, T) int64, or their embeddings (B, T, D) -> hidden states, without logits or loss.

        cache: of the tokens before, and of the positions of these (None: these are whole sequences). Raises
        ValueError for embeddings where layers look up more than those. Sequences longer than
        sequence_length are for modern blocks alone, whose windows they leave as they are.
        """
        settings = self.settings
        assert settings.is_modern or inputs.shape[1] <= settings.sequence_length, (
            "longer than the model's sequence_length"
        )
        x = inputs if inputs.is_floating_point() else self.transformer["wte"](inputs)
        x = self.transformer["drop"](x)
        planner, memory = self.planner(x.shape[0]), cache
        if memory is None:
            positions = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
            memory = SequenceMemory(positions, max(settings.sequence_length, x.shape[1]))
        if settings.is_modern:
            x = rms_norm(x)
        stack = partial(self._stack, inputs, x, memory.length)
        first = stack("h_begin" if settings.variant.loop else "h")
        x = memory.run_stack(planner, first, 1, x, memory.positions)
        if not settings.variant.loop:
            return Hidden(states=x, passes=torch.ones((), device=x.device))
        return POLICIES[settings.variant.policy](self._passes(planner, memory, stack), x)

    def _stack(
        self,
        inputs: Tensor,
        embeddings: Tensor,
        length: int,
        name: str,
        pass_number: int = 1,
        columns: Tensor | None = None,
    ) -> Stack:
        """A stack in a pass of one run. inputs: as `run` takes them; embeddings (B, T, D): what the first
        layer takes; length: of the sequences so far. columns (B, T_r): of the tokens that take part, T and
        more for padding; None: all do.
        """
        settings, blocks = self.settings, cast(Sequence[Block], self.transformer[name])
        if not settings.is_modern:
            count = len(blocks)
            return Stack(name, blocks, [settings.attention_window_length] * count, [None] * count)
        if inputs.is_floating_point():
            raise ValueError("modern blocks look up value embeddings: give tokens, not their embeddings")
        if columns is not None:
            columns = columns.clamp(max=inputs.shape[1] - 1)
            inputs = inputs.gather(1, columns)
            embeddings = embeddings.gather(1, columns.unsqueeze(-1).expand(-1, -1, embeddings.shape[2]))
        residual, x0 = self.resid_lambdas.unbind(), self.x0_lambdas.unbind()
        layers, lengths, windows, layer_inputs = settings.layer_of, settings.windows, [], []
        for depth in settings.depths(name, pass_number):
            windows.append(lengths[depth] if lengths[depth] < length - 1 else None)
            values = None
            if depth in settings.value_depths:
                values = cast(Tensor, self.value_embeds[str(layers[depth])].weight)
            layer_inputs.append(LayerInputs(inputs, embeddings, residual[depth], x0[depth], values))
        return Stack(name, blocks, windows, layer_inputs)

    def _passes(self, planner: Planner, memory: Memory, stack: Callable[..., Stack]) -> Passes:
        return Passes(
            settings=self.settings,
            training=self.training,
            stack=stack,
            depth_embedding=getattr(self, "depth_emb", None),
            norm=self.transformer["ln_mid"] if self.settings.variant.ln_mid else None,
            gates=self._gates(),
            planner=planner,
            memory=memory,
        )

    def _gates(self) -> Sequence[nn.Module]:
        """What scores tokens after a pass, as Passes has it."""
        variant = self.settings.variant
        if variant.routes:
            return cast(Sequence[nn.Module], self.transformer["mod"])
        if variant.exits_each_pass:
            return cast(Sequence[nn.Module], self.to_halt_logits)
        return [self.depth_predictor] if variant.breaks_sticks else []

    @property
    def may_leave_unused(self) -> bool:
        """Whether a step may leave a parameter without a gradient."""
        return self.settings.variant.adaptive

    def roles(self) -> dict[str, str]:
        """As models.network.Network.roles: what scores tokens after a pass is a router."""
        roles = by_layer_type(self)
        if self.settings.is_modern:
            roles |= {name: VALUE_EMBEDDING for name in roles if name.startswith("value_embeds.")}
            roles |= {"resid_lambdas": RESIDUAL_SCALAR, "x0_lambdas": X0_SCALAR}
        if self.settings.mup_base_width is not None:
            roles |= {name: GATE for name in roles if name.endswith("ve_gate.weight")}
        gates = {id(parameter) for gate in self._gates() for parameter in gate.parameters()}
        for name, parameter in self.named_parameters():
            if id(parameter) in gates and (self.settings.is_modern or roles[name] == MATRIX):
                roles[name] = ROUTER
            elif self.settings.is_modern and parameter is self.head[1]:
                roles[name] = HEAD
        return roles | adapter_roles(self, with_mup=self.settings.mup_base_width is not None)

    def begins_with(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A file's weights, and new adapters of its own."""
        new = {name: self.get_parameter(name).detach() for name in adapter_roles(self)}
        return {**new, **weights}

    def flops_per_token(self, length: int | None = None) -> float:
        """As models.macs.training_flops_per_token."""
        return training_flops_per_token(self.settings, length)

    def describe(self) -> str:
        """Model, stacks and number of parameters, for the first lines of a run."""
        parameters = sum(p.numel() for p in self.parameters())
        line = f"{self.settings.model}, {self.settings.stack_in_words}, {parameters:,} parameters"
        if self.settings.lora is None:
            return line
        return f"{line}, of which {trained_parameters(self):,} of adapters are trained"

    def average_depth(self, hidden: Hidden) -> Tensor:
        """Layers that a token passes through, on average (scalar)."""
        begin, middle, end = self.settings.stack_sizes
        return hidden.passes * middle + begin + end

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        get_logits: bool = False,
        get_router_weights: bool = False,
        cache: Memory | None = None,
    ) -> dict[str, Any]:
        """Run the model, with logits and the next-token loss where they are asked for.

        idx, cache: as `run` takes them; targets (B, T) int64, -1 where there is none. Returns a dict:
          hidden              (B, T, D) before the last norm
          logits              (B, T, V) where get_logits, else None
          loss                what training minimises, in nats per token; None without targets
          cross_entropy_loss  the part of it that is mean cross-entropy
          token_losses, hits  (B, T) cross-entropies in nats and, where no gradient is taken, correct guesses
          average_depth       layers that a token passes through, on average (scalar)
          active              of routed models, tokens of a sequence that took part in each pass, on average
          router_weights      where get_router_weights: per routed pass, positions and scores of its tokens,
                              (B, T_r)
        """
        hidden = self.run(idx, cache)
        out: dict[str, Any] = {
            "logits": None,
            "loss": None,
            "cross_entropy_loss": None,
            "hidden": hidden.states,
            "active": hidden.active,
        }
        if targets is not None:
            losses = next_token(self, hidden, targets)
            out |= {"loss": losses.loss, "cross_entropy_loss": losses.cross_entropy_loss}
            if losses.token_losses is not None:
                out |= {"token_losses": losses.token_losses, "hits": losses.hits}
        if get_logits:
            out["logits"] = self.logits(hidden.states)
        out["average_depth"] = self.average_depth(hidden)
        if get_router_weights:
            out["router_weights"] = hidden.routing
        return out
