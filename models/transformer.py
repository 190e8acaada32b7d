"""The transformer of all nine models: three stacks of pre-norm blocks, of which the middle one is repeated.

Legend: B batch, T positions, R passes, D model width, V vocabulary.

Parameters and how they start (the authors' scheme; GPT-2's residual scaling)
  Linear, Embedding    N(0, 0.02)
  c_proj.weight        N(0, 0.02 / sqrt(2 n_layer))
  norms 1, biases 0    last layer of the stick-breaking gate 0 (halting starts even)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import KeyValue, Positions, Rotary, SelfAttention, causal_tiles, flash_works, visible
from models.loss import IGNORE, linear_cross_entropy
from models.policies import POLICIES, Memory
from models.settings import ModelSettings
from models.variants import ROUTED_POLICIES


class MLP(nn.Module):
    """Four times as wide inside, GELU."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width, bias = settings.n_embd, settings.bias
        self.c_fc, self.c_proj = (
            nn.Linear(width, 4 * width, bias=bias),
            nn.Linear(4 * width, width, bias=bias),
        )
        # the reference stays as published
        self.dropout, self.lean = nn.Dropout(settings.dropout), settings.attention == "fast"

    def forward(self, x: Tensor) -> Tensor:
        def narrow(inner: Tensor) -> Tensor:
            return self.c_proj(F.gelu(inner))

        # a compiler decides by itself
        lean = self.lean and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        # kept; the GELU's output is the widest activation of a block, and the cheapest to make again
        inner = self.c_fc(x)
        return self.dropout(
            checkpoint(narrow, inner, use_reentrant=False, preserve_rng_state=False)
            if lean
            else narrow(inner)
        )


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to its input (Xiong et al. 2020)."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width, bias = settings.n_embd, settings.bias
        self.ln_1 = nn.LayerNorm(width, bias=bias)
        self.attn = SelfAttention(width, settings.n_head, bias, settings.dropout, settings.row.split_qkv)
        self.ln_2 = nn.LayerNorm(width, bias=bias)
        self.mlp = MLP(settings)

    def project(
        self, x: Tensor, x_keys: Tensor | None, rope: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What comes before attention: queries, keys and values, each (B, H, T, Dh)."""
        return self.attn.project(self.ln_1(x), None if x_keys is None else self.ln_1(x_keys), rope)

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        """What comes after it, of the block's input x (B, T, D) and the attended values y (B, H, T, Dh)."""
        x = x + self.attn.output(y)
        return x + self.mlp(self.ln_2(x))

    def forward(
        self, x: Tensor, x_keys: Tensor | None, past: list[KeyValue], at: Positions
    ) -> tuple[Tensor, KeyValue]:
        """x (B, T, D) -> output (B, T, D), and this pass's keys and values.

        x_keys: what keys and values are made of, if not x itself. past: keys and values of earlier passes.
        """
        q, k, v = self.project(x, x_keys, at.rope)
        return self.finish(x, self.attn.attend(q, [*past, (k, v)], at)), (k, v)


class DepthEmbedding(nn.Module):
    """Tells a pass how many are left (section 3.3): one vector times that number, or a row of a table."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.linear = settings.depth_embedding == "linear_learned"
        self.embs = nn.Embedding(1 if self.linear else settings.n_repeat, settings.n_embd)

    def forward(self, x: Tensor, passes_left: int) -> Tensor:
        return x + (self.embs.weight[0] * passes_left if self.linear else self.embs.weight[passes_left])


class Router(nn.Module):
    """Scores of tokens for going round again (section 4.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mod_router = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> logits (B, T); the score is their sigmoid."""
        return self.mod_router(x).squeeze(-1)


class HaltingGate(nn.Module):
    """Log-probabilities of going on and of halting, for stick breaking (Tan et al. 2023)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._gate = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, 2)."""
        return F.log_softmax(self._gate(x), dim=-1)


class Transformer(nn.Module):
    """A row of the table in models/variants.py; state-dict names are the authors' own."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        row, width = settings.row, settings.n_embd
        begin, middle, end = (
            nn.ModuleList(Block(settings) for _ in range(size)) for size in settings.stack_sizes
        )
        rotary = settings.positional_encoder == "rotary"
        parts: dict[str, nn.Module] = {
            "wte": nn.Embedding(settings.vocab_size, width),
            "wpe": Rotary(settings.head_width) if rotary else nn.Identity(),
            "drop": nn.Dropout(settings.dropout),
        }
        parts |= {"h_begin": begin, "h_mid": middle, "h_end": end} if row.loop else {"h": begin}
        if row.ln_mid:
            parts["ln_mid"] = (
                nn.Identity() if settings.disable_ln_mid else nn.LayerNorm(width, bias=settings.bias)
            )
        if row.policy in ROUTED_POLICIES:
            parts["mod"] = nn.ModuleList(Router(width) for _ in range(settings.n_repeat - 1))
        norm = nn.LayerNorm(width, bias=settings.bias)
        if row.policy != "ponder":
            parts["ln_f"] = norm
        self.transformer = nn.ModuleDict(parts)
        head = nn.Linear(width, settings.vocab_size, bias=False)
        head.weight = cast(nn.Embedding, self.transformer["wte"]).weight
        if row.policy == "ponder":
            self.to_logits = nn.Sequential(norm, head)
            self.to_halt_logits = nn.ModuleList(nn.Linear(width, 1) for _ in range(settings.n_repeat))
        else:
            self.lm_head = head
        if row.depth_emb and settings.depth_embedding is not None:
            self.depth_emb = DepthEmbedding(settings)
        # pondernet has no use for the gate: the authors' state dict has it when their only predictor is asked
        # for
        if row.policy == "sticks" or (row.policy == "ponder" and settings.depth_random_method == "sb_act"):
            self.depth_predictor = HaltingGate(width)
        self._initialise()

    def _initialise(self) -> None:
        residual_std = 0.02 / math.sqrt(2 * self.settings.n_layer)
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=residual_std if name.endswith("c_proj") else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if hasattr(self, "depth_predictor"):
            nn.init.zeros_(cast(nn.Linear, self.depth_predictor._gate[-1]).weight)

    # pieces that the policies put together

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """Angles of positions (B or 1, T); None where positions are not encoded."""
        return self.transformer["wpe"](positions) if self.settings.positional_encoder == "rotary" else None

    def computes_in(self, device: torch.device) -> torch.dtype:
        """The dtype of attention: the autocast's, or that of the weights."""
        return (
            torch.get_autocast_dtype(device.type)
            if torch.is_autocast_enabled(device.type)
            else next(self.parameters()).dtype
        )

    def is_fast(self, device: torch.device, alike: bool) -> bool:
        """Whether attention may go pass by pass. alike: all passes are of the same tokens; GPUs' kernels
        take no mask.
        """
        if (
            self.settings.attention == "reference"
            or (self.training and self.settings.dropout > 0)
            or (device.type != "cpu" and not alike)
        ):
            return False
        return flash_works(device, self.computes_in(device), self.settings.head_width)

    def positions(self, query_positions: Tensor, key_positions: list[Tensor]) -> Positions:
        """What queries at (B or 1, T) positions see of keys at the passes' (B or 1, K_r) positions."""
        rope, window = self.rope(query_positions), self.settings.attention_window_length
        if len(key_positions) == 1 and key_positions[0] is query_positions and window is None:
            return Positions(rope)
        alike = window is None and all(positions is query_positions for positions in key_positions)
        if self.is_fast(query_positions.device, alike):
            return Positions(
                rope,
                causal_tiles(query_positions, key_positions, window),
                query_positions,
                tuple(key_positions),
                window,
            )
        rows = max(keys.shape[0] for keys in key_positions)
        all_keys = torch.cat([keys.expand(rows, -1) for keys in key_positions], dim=-1)
        return Positions(rope, mask=visible(query_positions, all_keys, window))

    def blocks(self, stack: str) -> nn.ModuleList:
        """Blocks of h (models without a loop), h_begin, h_mid or h_end."""
        return cast(nn.ModuleList, self.transformer[stack])

    def route(self, x: Tensor, pass_number: int) -> Tensor:
        """Logits (B, T) of the router after a pass (1-based)."""
        return cast(nn.ModuleList, self.transformer["mod"])[pass_number - 1](x)

    def compile_blocks(self) -> None:
        """Compile what a block does before and after attention, once: all layers and passes share the two
        programs.
        """
        # the number of tokens, from pass to pass
        varies = True if self.settings.row.policy == "compact" else None
        for block in (module for module in self.modules() if isinstance(module, Block)):
            for name in ("project", "finish"):
                setattr(block, name, torch.compile(getattr(block, name), dynamic=varies))

    def remade(self, work: Callable[..., Any], *given: Any, units: tuple[str, ...]) -> Any:
        """work(*given). Where --activation_checkpointing is one of the units, what its gradients need is
        computed again when they are due.
        """
        if not torch.is_grad_enabled() or self.settings.activation_checkpointing not in units:
            return work(*given)
        return checkpoint(work, *given, use_reentrant=False, preserve_rng_state=self.settings.dropout > 0)

    def one_pass(
        self, stack: str, x: Tensor, past: list[list[KeyValue]], at: Positions
    ) -> tuple[Tensor, list[KeyValue]]:
        """A stack of blocks over x (B, T, D), each seeing its own keys of earlier passes; returns those of
        this one too.
        """

        def work(x: Tensor) -> tuple[Tensor, list[KeyValue]]:
            made = []
            for block, earlier in zip(self.blocks(stack), past, strict=True):
                x, own = self.remade(block, x, None, earlier, at, units=("block",))
                made.append(own)
            return x, made

        return cast(tuple[Tensor, list[KeyValue]], self.remade(work, x, units=("pass",)))

    def add_depth(self, x: Tensor, pass_number: int) -> Tensor:
        """The depth embedding of a pass (1-based), where there is one."""
        return self.depth_emb(x, self.settings.n_repeat - pass_number) if hasattr(self, "depth_emb") else x

    def norm_mid(self, x: Tensor) -> Tensor:
        """The norm between passes, where there is one."""
        return self.transformer["ln_mid"](x) if self.settings.row.ln_mid else x

    @property
    def head(self) -> tuple[nn.Module, Tensor]:
        """Last norm and output weight (V, D)."""
        if self.settings.row.policy == "ponder":
            return self.to_logits[0], cast(nn.Linear, self.to_logits[1]).weight
        return self.transformer["ln_f"], self.lm_head.weight

    def length_factors(self) -> list[float]:
        """Shares of the tokens that go on after each pass but the last, for this forward."""
        given = self.settings.training_length_factor if self.training else self.settings.eval_length_factor
        if given is not None:
            return list(given)
        if not self.training:
            return [1.0] * (self.settings.n_repeat - 1)
        return draw_length_factors(self.settings.depth_random_method, self.settings.n_repeat - 1)

    def thresholds(self) -> list[float] | None:
        """Scores above which a token goes on after each pass but the last; None where capacities decide,
        as in training.
        """
        given = self.settings.router_threshold or (0.5,)
        if self.training or self.settings.routing == "capacity":
            return None
        return list(given) * (self.settings.n_repeat - 1) if len(given) == 1 else list(given)

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        get_logits: bool = False,
        get_router_weights: bool = False,
        memory: Memory | None = None,
    ) -> dict[str, Any]:
        """Run the model.

        idx (B, T) int64, or its embeddings (B, T, D); targets (B, T) int64, -1 where there is none; memory:
        of the tokens before, and of where these stand (None: these are whole sequences). Returns a dict:
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
        assert idx.shape[1] <= self.settings.sequence_length, "longer than the model's sequence_length"
        x = self.transformer["drop"](idx if idx.is_floating_point() else self.transformer["wte"](idx))
        if memory is None:
            memory = Memory(self, torch.arange(idx.shape[1], device=idx.device).unsqueeze(0))
        x = memory.run("h_begin" if self.settings.row.loop else "h", 1, x, memory.everyone)
        if self.settings.row.loop:
            done = POLICIES[self.settings.row.policy](self, x, memory, targets)
        else:
            done = {"hidden": x, "passes": torch.ones((), device=x.device)}
        out: dict[str, Any] = {
            "logits": None,
            "loss": None,
            "cross_entropy_loss": None,
            "hidden": done["hidden"],
            "active": done.get("active"),
        }
        norm, weight = self.head
        if "loss" in done:
            out |= {name: done[name] for name in ("loss", "cross_entropy_loss")}
        elif targets is not None:
            out |= self._losses(norm(done["hidden"]), weight, targets)
            out["loss"] = out["cross_entropy_loss"] + done.get("penalty", 0.0)
        if get_logits:
            out["logits"] = F.linear(norm(done["hidden"]), weight)
        begin, middle, end = self.settings.stack_sizes
        out["average_depth"] = done["passes"] * middle + begin + end
        if get_router_weights:
            out["router_weights"] = done.get("router_weights")
        return out

    def _losses(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Tensor]:
        total, losses, hits = linear_cross_entropy(hidden.flatten(0, 1), weight, targets.flatten())
        return {
            "cross_entropy_loss": total / (targets != IGNORE).sum(),
            "token_losses": losses.view_as(targets),
            "hits": hits.view_as(targets),
        }


def draw_length_factors(method: str, n: int) -> list[float]:
    """n non-increasing shares in [0, 1] from torch's CPU generator, one draw for each forward in training."""
    reach = {
        "pick_mid_and_recurse": 1.05,
        "pick_mid_and_recurse_more_chance_for_one": 1.5,
        "pick_mid_and_recurse_more_chance_for_one_even_more": 2.0,
    }
    if method in reach:

        def between(count: int, low: float, high: float) -> list[float]:
            if count == 0:
                return []
            middle = torch.clamp(torch.rand(1) * reach[method], max=1).item() * (high - low) + low
            above = (count - 1) // 2
            return [*between(above, middle, high), middle, *between(count - 1 - above, low, middle)]

        return between(n, 0.0, 1.0)
    if method == "exponential_decay":
        return (torch.clamp(torch.rand(1) * 1.05, max=1) ** torch.arange(1, n + 1)).tolist()
    if method == "at_least_10percent":
        return (torch.clamp(torch.rand(1) * 0.95 + 0.1, max=1) ** torch.arange(1, n + 1)).tolist()
    draws = torch.rand(n) * 1.1 - 0.05 if method == "more_chance_for_zero_too" else torch.rand(n) * 1.05
    return torch.clamp(draws, min=0, max=1).sort(descending=True).values.tolist()
