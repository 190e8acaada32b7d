"""What training asks of a network, whatever is inside it, and what each of its parameters is.

    roles_of(network)                        # {"transformer.wte.weight": "embedding", ...}

Legend: B batch, T positions, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from models.hidden import Hidden

MATRIX = "matrix"  # weights of linear layers
EMBEDDING = "embedding"  # tables of vectors, also where the head is tied to one
GATE = "gate"  # matrices with as many inputs at every width; with muP alone, else they are matrices too
VALUE_EMBEDDING = "value_embedding"  # tables whose vectors are added to attention's values
HEAD = "head"  # an output matrix that is not tied to an embedding
NORM = "norm"
SCALAR = "scalar"  # biases, and whatever else is no matrix
RESIDUAL_SCALAR = "residual_scalar"  # what each layer multiplies its input by
X0_SCALAR = "x0_scalar"  # ... and the embeddings, which it adds
ROUTER = "router"  # weights that score tokens for a further pass, or for leaving
ADAPTER = "adapter"  # added to a trained network, which stays as it is (models/adapters.py)
FROZEN = "frozen"  # takes no gradient
# of a trained network, trained on below an adapter: weights of two or more dimensions, and those of less
TUNED, TUNED_VECTOR = "tuned", "tuned_vector"


class Network(Protocol):
    """A network of tokens. It makes no loss: an objective does, of what `run` returns.

    may_leave_unused: a step may leave a parameter without a gradient, for which DDP must then search. A
    network may also have `softcap`: c, where its logits z are c tanh(z / c); `vocabulary`, where its output
    weight has more rows than there are tokens; `head_recipe`: by which recipe of models/fp8.py the loss
    multiplies with that weight in training; `width_multiple`, where it is made after the rules of muP, which
    the optimiser then follows; `embedding`, the nn.Embedding of its tokens; `units`, the modules that run one
    after the other, each by its call and as often on all processes, of which --shard full has one whole at a
    time; and `begins_with(weights)`: what it begins with, of the weights of a file that --init_from names
    (raises UserError).
    """

    @property
    def may_leave_unused(self) -> bool: ...

    @property
    def head(self) -> tuple[nn.Module, Tensor]:
        """Last norm and output weight (V, D)."""
        ...

    def run(self, inputs: Tensor, cache: Any = None) -> Hidden:
        """inputs (B, T) int64 -> hidden states. cache: of the tokens before (None: whole sequences)."""
        ...

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> dict[str, Any]:
        """As Transformer.forward: evaluations take `token_losses`, `hits` and `average_depth` of it."""
        ...

    def roles(self) -> dict[str, str]:
        """Each parameter's role, by its name."""
        ...

    def flops_per_token(self, length: int | None = None) -> float:
        """Useful floating-point operations of a forward and a backward pass. length: of the sequences (None:
        of all that the network takes).
        """
        ...

    def compile_blocks(self) -> None:
        """Compile what is worth it."""
        ...

    def describe(self) -> str:
        """Its shape in a few words."""
        ...


def roles_of(module: nn.Module) -> dict[str, str]:
    """Each parameter's role, by its name: what the module itself says, or what its layers' types say."""
    said = getattr(module, "roles", None)
    roles: dict[str, str] = said() if callable(said) else by_layer_type(module)
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            roles[name] = FROZEN
    return roles


def by_layer_type(module: nn.Module) -> dict[str, str]:
    """Weights of Linear layers are matrices, of Embeddings embeddings, of norms norms; the rest are scalars.

    A parameter that two layers share is what the Embedding makes of it.
    """
    role_of: dict[int, str] = {}
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, nn.Embedding):
            role_of[id(weight)] = EMBEDDING
        elif isinstance(layer, nn.Linear):
            role_of.setdefault(id(weight), MATRIX)
        elif "Norm" in type(layer).__name__:
            role_of.setdefault(id(weight), NORM)
    return {name: role_of.get(id(parameter), SCALAR) for name, parameter in module.named_parameters()}
