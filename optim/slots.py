"""Keys and values of all tokens so far, for generation: a new token is all that is computed.

Legend: B batch, S tokens of one call, H heads, D model width, Dh head width.
"""

from __future__ import annotations

from torch import Tensor

from models.attention import KeyValue, Positions, Seen, Tile
from models.policies import Memory
from models.transformer import Transformer


class Slots(Memory):
    """A slot for each position, in every layer and pass.

    A token stands in the slot of its position. Where it took no part in a pass, that pass has `nowhere` for its position,
    which no query sees; what fills up a batch stands nowhere too, and is written to a slot of its own behind the others.
    """

    def __init__(self, model: Transformer, batch: int) -> None:
        self.model, self.batch = model, batch
        self.nowhere = model.settings.sequence_length
        self.kept: dict[tuple[str, int, int], KeyValue] = {}  # (stack, layer, pass) -> (B, H, slots, Dh) each
        self.places: dict[tuple[str, int], Tensor] = {}  # (stack, pass) -> (B, slots), positions
        self.views: dict[tuple[str, int], tuple[Positions, list[tuple[int, int]]]] = {}
        self.before = self.used = 0

    def begin(self, positions: Tensor, used: int, ragged: bool) -> None:
        """A call over tokens at positions (B, S); used: slots in use after it. ragged: rows stand at different positions."""
        self.everyone, self.before, self.used = positions, self.used, used
        settings = self.model.settings
        self.plain = not ragged and settings.attention_window_length is None and settings.row.policy != "compact"
        self.views = {}

    def _view(self, stack: str, number: int, positions: Tensor) -> tuple[Positions, list[tuple[int, int]]]:
        """What queries at positions see: for each of the kept passes, and last for the call itself, how much of it."""
        if (stack, number) in self.views:
            return self.views[stack, number]
        model, attends_all = self.model, stack == "h_mid" and self.model.settings.row.attends == "all"
        sources = [(earlier, self.used) for earlier in range(1, number)] if attends_all else []
        if (stack, number) in self.places:
            sources.append((number, self.before))
        else:
            self.places[stack, number] = positions.new_full((self.batch, self.nowhere + 1), self.nowhere)
        keys = [self.places[stack, earlier][:, :end].clone() for earlier, end in sources] + [positions]
        if positions.device.type != "cpu" or model.settings.attention == "reference":  # other devices' kernels take no mask
            at = model.positions(positions, keys)
        else:
            single = positions.shape[1] == 1
            seen = []
            for turn, of_pass in enumerate(keys):
                how = "positions"
                if self.plain and (single or (turn < len(sources) and sources[turn] == (number, self.before))):
                    how = "all"
                elif self.plain and of_pass.shape[1] == positions.shape[1] and not self.before:
                    how = "causal"
                seen.append(Seen(turn, slice(None), how))
            at = Positions(model.rope(positions), (Tile(slice(None), tuple(seen)),), positions, tuple(keys), model.settings.attention_window_length)
        self.views[stack, number] = at, sources
        return self.views[stack, number]

    def _block(self, stack: str, layer: int, number: int, x: Tensor, x_keys: Tensor | None, positions: Tensor) -> Tensor:
        at, sources = self._view(stack, number, positions)
        past = [tuple(kept[:, :, :end] for kept in self.kept[stack, layer, earlier]) for earlier, end in sources]
        x, own = self.model.blocks(stack)[layer](x, x_keys, past, at)
        if (stack, layer, number) not in self.kept:
            shape = (self.batch, own[0].shape[1], self.nowhere + 1, own[0].shape[3])
            self.kept[stack, layer, number] = own[0].new_zeros(shape), own[1].new_zeros(shape)
        slots = positions.expand(self.batch, -1)
        for kept, new in zip(self.kept[stack, layer, number], own, strict=True):
            kept.scatter_(2, slots[:, None, :, None].expand_as(new), new)
        if layer == len(self.model.blocks(stack)) - 1:
            self.places[stack, number].scatter_(1, slots, slots)
        return x

    def run(self, stack: str, number: int, x: Tensor, positions: Tensor) -> Tensor:
        """As Memory.run; positions (B, T_r)."""
        for layer in range(len(self.model.blocks(stack))):
            x = self._block(stack, layer, number, x, None, positions)
        return x

    def run_block(self, layer: int, number: int, x: Tensor, x_keys: Tensor | None) -> Tensor:
        """As Memory.run_block."""
        return self._block("h_mid", layer, number, x, x_keys, self.everyone)
