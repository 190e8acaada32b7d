"""The nine models as variants of one transformer. Plain data, no torch: the command line reads their names.

Fields (paper: Mohtashami et al., ICLR 2025)
  loop       the middle layers are repeated (False: one stack `transformer.h`, section 2)
  attends    what a query of pass r sees of the middle layers' keys: those of its own pass ("pass"), of all
             passes so far ("all", section 3), or an average with the states of halted tokens ("frozen")
  ln_mid     a norm follows each pass (section 3.3)
  depth_emb  the variant may use --depth_embedding (section 3.3)
  policy     which tokens take another pass: all of them ("fixed"), or those that a router chooses, with
             the rest left out of the computation ("compact", section 4.1) or masked ("masked"), or those that
             have not halted, at random ("ponder", Banino et al. 2021) or by stick breaking ("sticks", Tan et
             al. 2023); table 5 compares them
  split_qkv  queries have a projection of their own (`q_attn`) beside `c_attn`
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    loop: bool = True
    attends: str = "pass"
    ln_mid: bool = False
    depth_emb: bool = False
    policy: str = "fixed"
    split_qkv: bool = False
    # the loss has a sum over the tokens of a micro-batch, so the cut of a batch changes what is trained
    cut_matters: bool = False

    @property
    def adaptive(self) -> bool:
        """Tokens may take different numbers of passes."""
        return self.policy != "fixed"

    @property
    def routes(self) -> bool:
        """A router after each pass but the last chooses the tokens that go on."""
        return self.policy in ("compact", "masked")

    @property
    def variable_tokens(self) -> bool:
        """The tokens that go on are gathered, so the number of tokens changes from pass to pass."""
        return self.policy == "compact"

    @property
    def exits_each_pass(self) -> bool:
        """The last layers and the head follow every pass, and each token leaves after a pass of its own."""
        return self.policy == "ponder"

    @property
    def breaks_sticks(self) -> bool:
        """A gate shared by all passes halts tokens by stick breaking."""
        return self.policy == "sticks"

    @property
    def rounds_in_float32(self) -> bool:
        """The authors multiply the capacity by the number of tokens in float32, which can round otherwise."""
        return self.policy == "masked"


_MASKED = Variant(ln_mid=True, depth_emb=True, policy="masked")

VARIANTS: dict[str, Variant] = {
    "base": Variant(loop=False),
    "but_full_depth": Variant(split_qkv=True),
    "cotformer_full_depth": Variant(attends="all"),
    "cotformer_full_depth_lnmid_depthemb": Variant(attends="all", ln_mid=True, depth_emb=True),
    "adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final": Variant(
        attends="all", ln_mid=True, depth_emb=True, policy="compact"
    ),
    "but_mod_efficient_sigmoid_lnmid_depthemb_random_factor": _MASKED,
    "but_mod_efficient_sigmoid_lnmid_depthemb_random_factor_for_mac_compute": _MASKED,
    "pondernet": Variant(depth_emb=True, policy="ponder", split_qkv=True),
    "but_halting_freeze_input_on_stop": Variant(
        attends="frozen", depth_emb=True, policy="sticks", split_qkv=True, cut_matters=True
    ),
}

ALIASES: dict[str, str] = {
    "but": "but_full_depth",
    "cot": "cotformer_full_depth",
    "lncot": "cotformer_full_depth_lnmid_depthemb",
    "adm": "adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final",
    "but_mod": "but_mod_efficient_sigmoid_lnmid_depthemb_random_factor",
    "but_halting": "but_halting_freeze_input_on_stop",
}

positional_encoders = ("rotary", "none")

random_depth_methods = (
    "uniform",
    "uniform_random_range",
    "more_chance_for_zero_too",
    "exponential_decay",
    "pick_mid_and_recurse",
    "at_least_10percent",
    "pick_mid_and_recurse_more_chance_for_one",
    "pick_mid_and_recurse_more_chance_for_one_even_more",
    "sb_act",
)
