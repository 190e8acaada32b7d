"""The models behind the interface of transformers: AutoModelForCausalLM, generate, Trainer.

`python -m models.export` copies this file, and the files that it imports, beside the weights. Nothing else
here imports
it: transformers is needed only where an exported model is used.

Legend: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation.utils import GenerationMode
from transformers.modeling_outputs import CausalLMOutput

from models.cache import GenerationCache, without_gradients
from models.layers import Block
from models.loss import IGNORE
from models.quantised import quantise
from models.settings import ModelSettings
from models.transformer import Transformer

UNLABELLED = -100  # what transformers puts where there is no label


def packing(attention_mask: Tensor) -> Tensor:
    """(B, T) -> the columns of each sequence's tokens in their order, then of what is left out, (B, T)."""
    return (attention_mask == 0).byte().sort(dim=1, stable=True).indices


def unpacked(x: Tensor, order: Tensor, attention_mask: Tensor) -> Tensor:
    """x (B, T, D) in the order of `packing` -> in that of the mask, 0 where it leaves out."""
    columns = order.argsort(dim=1).unsqueeze(-1).expand_as(x)
    return x.gather(1, columns).masked_fill((attention_mask == 0).unsqueeze(-1), 0)


class CoTFormerConfig(PretrainedConfig):
    """Holds the fields of ModelSettings, as config.json states them."""

    model_type = "cotformer"
    has_no_defaults_at_init = True  # a model has no default size
    attribute_map: ClassVar = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "sequence_length",
    }


class Kept:
    """Keys and values of the tokens of one generation, and how many columns of its input they are of."""

    def __init__(self) -> None:
        self.cache: GenerationCache | None = None
        self.columns = 0


class CoTFormerForCausalLM(PreTrainedModel, GenerationMixin):
    """`Transformer` under the name `model`."""

    config_class = CoTFormerConfig
    base_model_prefix = "model"
    accepts_loss_kwargs = False
    _supports_sdpa = True  # its own attention calls it
    supports_gradient_checkpointing = True

    def __init__(self, config: CoTFormerConfig) -> None:
        super().__init__(config)
        self.model = Transformer(ModelSettings.from_args(config))
        head = "to_logits.1" if self.model.settings.variant.exits_each_pass else "lm_head"
        # angles of positions: half precision would confuse neighbours
        self._keep_in_fp32_modules_strict = {"wpe"}
        self._tied_weights_keys = {}
        if config.tie_word_embeddings:
            self._tied_weights_keys = {f"model.{head}.weight": "model.transformer.wte.weight"}
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer["wte"]

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: `Transformer` initialises itself, and an exported file holds every weight."""

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        """By the model's own means, a block at a time; off: as it was exported."""
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        self.model.settings = replace(
            self.model.settings,
            activation_checkpointing="block" if enable else self.config.activation_checkpointing,
        )

    def round_weights(self, kind: str) -> None:
        """Generate faster on CPUs, with weights read in "bfloat16" or "int8": logits change a little, for
        good. Raises ValueError for other names and devices, in training mode, and for weights that are not
        in float32.
        """
        quantise(self.model, kind)

    def train(self, mode: bool = True) -> CoTFormerForCausalLM:
        """As of any module. Raises ValueError where weights are rounded."""
        if mode and self.model.quantised_head is not None:
            raise ValueError("rounded weights are for inference alone: load the folder again to train")
        return super().train(mode)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As of any model. Raises ValueError where weights are rounded."""
        if self.model.quantised_head is not None:
            raise ValueError("rounded weights are not stored: load the folder again, and save that")
        super().save_pretrained(*args, **kwargs)

    def _check(self, length: int, attention_mask: Tensor | None, batch: int) -> None:
        longest = self.model.settings.sequence_length
        if length > longest:
            raise ValueError(
                f"{length} tokens are more than the {longest} that this model was trained for"
                " (config.sequence_length)"
            )
        if attention_mask is None:
            return
        if attention_mask.shape != (batch, length):
            raise ValueError(
                f"attention_mask is {tuple(attention_mask.shape)}, the tokens are {(batch, length)}"
            )
        if not bool(attention_mask.all()) and self.model.settings.looks_ahead(self.training):
            raise ValueError(
                "this model chooses the tokens that go on over the whole sequence, so padding would change"
                " its output: give sequences of one length, without padding"
            )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        kept: Kept | None = None,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """input_ids (B, T), or their inputs_embeds (B, T, D); labels (B, T) or None -> logits (B, T, V), and
        the loss of each label given the tokens before it.

        What attention_mask (B, T) leaves out is as if it were not there, on either side: its logits are 0 and
        its labels do not count. output_hidden_states: embeddings, then what each block gives in the order of
        computation (middle blocks once a pass), the last after the last norm; each (B, T, D). kept: of
        `generate`, whose new tokens these are; logits of the last only.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give input_ids or inputs_embeds")
        if self.model.quantised_head is not None and given.device.type != "cpu":
            raise ValueError(f"rounded weights are for CPUs, and these tokens are on {given.device.type}")
        if kept is not None:
            return CausalLMOutput(logits=self._go_on(given, attention_mask, kept))
        self._check(given.shape[1], attention_mask, given.shape[0])
        mask = None if attention_mask is None or bool(attention_mask.all()) else attention_mask
        order = None if mask is None else packing(mask)
        if order is not None and mask is not None:
            given = given.gather(1, order if given.dim() == 2 else order.unsqueeze(-1).expand_as(given))
            labels = None if labels is None else labels.masked_fill(mask == 0, UNLABELLED).gather(1, order)
        targets = None
        if labels is not None:
            targets = torch.full_like(labels, IGNORE)
            targets[:, :-1] = labels[:, 1:]
            targets[targets == UNLABELLED] = IGNORE
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if wanted:
            out, states = self._watched(given, targets)
        else:
            out, states = self.model(given, targets=targets, get_logits=True), None
        logits = out["logits"]
        if order is not None and mask is not None:
            logits = unpacked(logits, order, mask)
            if states is not None:
                states = tuple(unpacked(state, order, mask) for state in states)
        result = CausalLMOutput(loss=out["loss"], logits=logits, hidden_states=states)
        return result if return_dict is not False else result.to_tuple()

    def _watched(self, given: Tensor, targets: Tensor | None) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """A run, and its hidden states.

        Raises ValueError where blocks do not see all tokens, or where there is no last state.
        """
        settings, why = self.model.settings, None
        if settings.variant.exits_each_pass:
            why = "each token leaves after a pass of its own"
        elif settings.variant.variable_tokens and settings.looks_ahead(self.training):
            why = "passes leave tokens out"
        if why is not None:
            raise ValueError(f"this model has no hidden states of all tokens to give: {why}")
        states = [given if given.is_floating_point() else self.get_input_embeddings()(given)]
        hooks = [
            module.register_forward_hook(lambda module, given, made: states.append(made[0]))
            for module in self.modules()
            if isinstance(module, Block)
        ]
        try:
            out = self.model(given, targets=targets, get_logits=True)
        finally:
            for hook in hooks:
                hook.remove()
        return out, (*states[:-1], self.model.head[0](out["hidden"]))

    def _go_on(self, idx: Tensor, attention_mask: Tensor | None, kept: Kept) -> Tensor:
        """Logits (B, 1, V) after new tokens idx (B, S), whose keys and values are put to those of the
        tokens before them.
        """
        with without_gradients(idx.device):
            logits = self._after(idx, attention_mask, kept)
        return logits.clone()  # an ordinary tensor

    def _after(self, idx: Tensor, attention_mask: Tensor | None, kept: Kept) -> Tensor:
        """As `_go_on`."""
        batch, new = idx.shape
        nowhere = self.model.settings.sequence_length
        if attention_mask is None:
            attention_mask = idx.new_ones(batch, kept.columns + new)
        positions = (attention_mask.cumsum(1) - 1).masked_fill(attention_mask == 0, nowhere)[
            :, kept.columns :
        ]
        if kept.cache is None:
            kept.cache = GenerationCache(self.model.settings, batch)
        kept.cache.begin(positions, int(attention_mask.sum(1).max()), ragged=not bool(attention_mask.all()))
        kept.columns += new
        return self.model.logits(self.model.run(idx, kept.cache).states[:, -1:])

    def _prepare_cache_for_generation(  # type: ignore[override]
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Keys and values of its own kind, of all passes.

        None for beams, for a choice over the whole sequence, and where exits are drawn.
        """
        settings = self.model.settings
        if (
            generation_config.use_cache
            and generation_mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
            and not settings.variant.exits_each_pass
            and not settings.looks_ahead(self.training)
            and not generation_config.output_hidden_states
        ):
            model_kwargs["kept"] = Kept()

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The last tokens that fit. Raises ValueError for prompts that are padded at the end: new tokens
        would follow the padding.
        """
        longest = self.model.settings.sequence_length
        attention_mask = kwargs.get("attention_mask")
        if attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise ValueError(
                'generate() takes padding on the left only (padding_side="left"): new tokens would follow it'
            )
        kept = kwargs.get("kept")
        if kept is not None and input_ids.shape[1] <= longest:  # beyond, positions begin anew with each token
            return {"input_ids": input_ids[:, kept.columns :], "attention_mask": attention_mask, "kept": kept}
        return {
            "input_ids": input_ids[:, -longest:],
            "attention_mask": None if attention_mask is None else attention_mask[:, -longest:],
            "use_cache": False,
        }
