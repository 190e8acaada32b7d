"""The models behind the interface of transformers: AutoModelForCausalLM, generate, Trainer.

`python -m models.export` copies this file, and the files that it imports, beside the weights. Nothing else here imports
it: transformers is needed only where an exported model is used.

Legend: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from models.causality import looks_ahead
from models.loss import IGNORE
from models.settings import ModelSettings
from models.transformer import Transformer

UNLABELLED = -100  # what transformers puts where there is no label


def packing(attention_mask: Tensor) -> Tensor:
    """(B, T) -> the columns of each row's tokens in their order, then of what is left out, (B, T)."""
    return (attention_mask == 0).byte().sort(dim=1, stable=True).indices


def unpacked(x: Tensor, order: Tensor, attention_mask: Tensor) -> Tensor:
    """x (B, T, D) in the order of `packing` -> in that of the mask, 0 where it leaves out."""
    columns = order.argsort(dim=1).unsqueeze(-1).expand_as(x)
    return x.gather(1, columns).masked_fill((attention_mask == 0).unsqueeze(-1), 0)


class CoTFormerConfig(PretrainedConfig):
    """Holds the fields of ModelSettings, as config.json states them."""

    model_type = "cotformer"
    has_no_defaults_at_init = True  # a model has no default size
    attribute_map: ClassVar = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
                               "max_position_embeddings": "sequence_length"}


class CoTFormerForCausalLM(PreTrainedModel, GenerationMixin):
    """`Transformer` under the name `model`. It keeps no keys between tokens: generation runs the whole sequence each time."""

    config_class = CoTFormerConfig
    base_model_prefix = "model"
    accepts_loss_kwargs = False
    _supports_sdpa = True  # its own attention calls it

    def __init__(self, config: CoTFormerConfig) -> None:
        super().__init__(config)
        self.model = Transformer(ModelSettings.from_args(config))
        head = "to_logits.1" if self.model.settings.row.policy == "ponder" else "lm_head"
        self._keep_in_fp32_modules_strict = {"wpe"}  # angles of positions: half precision would confuse neighbours
        self._tied_weights_keys = {f"model.{head}.weight": "model.transformer.wte.weight"}
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer["wte"]

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: `Transformer` initialises itself, and an exported file holds every weight."""

    def _check(self, length: int, attention_mask: Tensor | None, rows: int) -> None:
        longest = self.model.settings.sequence_length
        if length > longest:
            raise ValueError(f"{length} tokens are more than the {longest} that this model was trained for (config.sequence_length)")
        if attention_mask is None:
            return
        if attention_mask.shape != (rows, length):
            raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, the tokens are {(rows, length)}")
        if not bool(attention_mask.all()) and looks_ahead(self.model.settings, self.training):
            raise ValueError("this model chooses the tokens that go on over the whole row, so padding would change its output: "
                             "give rows of one length, without padding")

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None,
                use_cache: bool | None = None, return_dict: bool | None = None) -> CausalLMOutput | tuple[Tensor, ...]:
        """input_ids (B, T), labels (B, T) or None -> logits (B, T, V), and the loss of each label given the tokens before it.

        What attention_mask (B, T) leaves out is as if it were not there, on either side: its logits are 0 and its labels do not
        count. `use_cache` has no effect.
        """
        self._check(input_ids.shape[1], attention_mask, input_ids.shape[0])
        mask = None if attention_mask is None or bool(attention_mask.all()) else attention_mask
        order = None if mask is None else packing(mask)
        if order is not None and mask is not None:
            input_ids = input_ids.gather(1, order)
            labels = None if labels is None else labels.masked_fill(mask == 0, UNLABELLED).gather(1, order)
        targets = None
        if labels is not None:
            targets = torch.full_like(labels, IGNORE)
            targets[:, :-1] = labels[:, 1:]
            targets[targets == UNLABELLED] = IGNORE
        out = self.model(input_ids, targets=targets, get_logits=True)
        logits = out["logits"] if order is None or mask is None else unpacked(out["logits"], order, mask)
        result = CausalLMOutput(loss=out["loss"], logits=logits)
        return result if return_dict is not False else result.to_tuple()

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The last tokens that fit. Raises ValueError for prompts that are padded at the end: new tokens would follow the padding."""
        longest = self.model.settings.sequence_length
        attention_mask = kwargs.get("attention_mask")
        if attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise ValueError("generate() takes padding on the left only (padding_side=\"left\"): new tokens would follow it")
        return {"input_ids": input_ids[:, -longest:], "attention_mask": None if attention_mask is None else attention_mask[:, -longest:],
                "use_cache": False}
