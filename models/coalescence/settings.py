"""The shape of a network of coalescence times, and those that have names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from models.settings import ModelSettings

VOCABULARY = 326  # 0 is unused, 1 begins a sequence, the others are bins of the logarithm of a time
SCALES = 4  # of the windows that sites are counted in
CHANNELS = 2  # sites at which the two haplotypes differ, and at which they agree
LN_LAST_N, ALL = (
    "ln_lastN",
    "all",
)  # trained with an adapter: norms and last blocks; everything


@dataclass(frozen=True)
class AdapterSettings:
    """A map from counts over n_samples haplotypes to the counts that a trained network takes.

    bottleneck: width of its branch. unfrozen: what of the network is trained with it. last_n: so many blocks,
    where that is LN_LAST_N.
    """

    n_samples: int
    bottleneck: int = 32
    dropout: float = 0.0
    last_n: int = 2
    unfrozen: str = LN_LAST_N


@dataclass(frozen=True)
class CoalescenceSettings:
    """n_samples: bins of a histogram, one for each haplotype. n_windows: along a sequence.

    mask_singletons: bin 0, the sites of the other channel, is not read; where it is read, it may hold the
    share of a window that is missing. expansion: features of a histogram for each of its bins. adapter: in
    front of the network, whose own weights it keeps for the most part. recomputes: what is inside a block,
    for the gradients, instead of keeping it.
    """

    n_samples: int
    n_windows: int
    n_layer: int
    n_head: int = 4
    mask_singletons: bool = True
    dropout: float = 0.1
    adapter: AdapterSettings | None = None
    vocab_size: int = VOCABULARY
    expansion: int = 2
    recomputes: bool = False

    @property
    def n_embd(self) -> int:
        """Model width: the features of the histograms of all scales."""
        return SCALES * self.expansion * self.n_samples

    @property
    def head_width(self) -> int:
        return self.n_embd // self.n_head

    @property
    def of_blocks(self) -> ModelSettings:
        """Of the blocks, which are those of the text networks: as these have no loop, the fields of loops and
        tokens have no effect.
        """
        return ModelSettings(
            model="base",
            vocab_size=self.vocab_size,
            sequence_length=2 * self.n_windows + 1,
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            n_head=self.n_head,
            n_layer_begin=0,
            n_layer_end=0,
            n_repeat=1,
            dropout=self.dropout,
            bias=False,
            positional_encoder="rotary",
            attention_window_length=None,
            attention="fast",
            activation_checkpointing="none",
            depth_embedding=None,
            disable_ln_mid=True,
            depth_random_method="uniform",
            eval_length_factor=None,
            training_length_factor=None,
            routing="capacity",
            router_threshold=None,
            halt_threshold=1.0,
            depth_predictor_loss_coef=None,
            ponder_lambda_p=1.0,
            ponder_kl_div_loss_weight=0.0,
        )

    @property
    def input_samples(self) -> int:
        """Bins of the histograms that are given to the network."""
        return self.n_samples if self.adapter is None else self.adapter.n_samples


@dataclass(frozen=True)
class Preset:
    """A named network. n_samples, n_windows, window_size (in base pairs): of the data that it is for."""

    n_layer: int
    window_size: int = 2000
    mask_singletons: bool = True
    n_samples: int = 50
    n_windows: int = 500
    n_head: int = 4
    dropout: float = 0.1

    def settings(self, n_windows: int | None = None) -> CoalescenceSettings:
        """Of the network, for sequences of so many windows (None: its own number)."""
        return CoalescenceSettings(
            n_samples=self.n_samples,
            n_windows=n_windows or self.n_windows,
            n_layer=self.n_layer,
            n_head=self.n_head,
            mask_singletons=self.mask_singletons,
            dropout=self.dropout,
        )


PUBLISHED: Mapping[str, Preset] = MappingProxyType(
    {
        "narrow": Preset(6),
        "broad": Preset(10),
        "broad_w200": Preset(10, window_size=200),
        "residual": Preset(10),
        "w200_wmissing": Preset(10, window_size=200, mask_singletons=False),
    }
)
# the same networks, small enough for a CPU: 5 diploids, 100 kb or 10 kb
TINY: Mapping[str, Preset] = MappingProxyType(
    {
        "tiny_narrow": Preset(2, n_samples=10, n_windows=50),
        "tiny": Preset(3, n_samples=10, n_windows=50),
        "tiny_w200": Preset(3, window_size=200, n_samples=10, n_windows=50),
        "tiny_w200_wmissing": Preset(3, window_size=200, mask_singletons=False, n_samples=10, n_windows=50),
    }
)
PRESETS: Mapping[str, Preset] = MappingProxyType({**PUBLISHED, **TINY})


def settings_of(args: Any, n_windows: int | None = None) -> CoalescenceSettings:
    """Of the network that flags ask for, for sequences of so many windows (None: as many as its preset's)."""
    settings, adapter = PRESETS[args.model].settings(n_windows), None
    if args.adapter:
        adapter = AdapterSettings(
            args.adapter_samples,
            args.adapter_bottleneck,
            args.adapter_dropout,
            args.adapter_last_n,
            getattr(args, "unfreeze_strategy", LN_LAST_N),  # which older checkpoints do not name
        )
    dropout = settings.dropout if args.dropout is None else args.dropout
    recomputes = args.activation_checkpointing == "block"
    return replace(settings, dropout=dropout, adapter=adapter, recomputes=recomputes)
