"""Flags of the network."""

from __future__ import annotations

from config.adaptation import adaptation
from config.schema import EVALUATION, PLACE, Flag, boolean, dtype_name, switch
from models.variants import ALIASES, VARIANTS, positional_encoders, random_depth_methods

DTYPES = ("auto", "float32", "bfloat16", "float16")
FP8_RECIPES = ("tensorwise", "rowwise")
ATTENTION = ("fast", "reference")
BLOCKS = ("published", "modern")

MODEL: tuple[Flag, ...] = (
    Flag(
        "model",
        str,
        "base",
        "architecture: " + ", ".join(VARIANTS) + " (short: " + ", ".join(ALIASES) + ")",
        choices=(*VARIANTS, *ALIASES),
        short_forms=ALIASES,
    ),
    Flag(
        "block",
        str,
        "published",
        "what layers are made of: published (the paper's), or modern: norms without weights, rotary"
        " positions and QK-norm, squared ReLU, value embeddings, scalars for a layer's input and for the"
        " embeddings, an untied head with capped logits",
        choices=BLOCKS,
    ),
    Flag("n_layer", int, 24, "transformer blocks in all: begin + middle + end", low=1),
    Flag("n_embd", int, 768, "model width", low=1),
    Flag("n_head", int, 12, "attention heads; divides n_embd", low=1),
    Flag(
        "n_kv_head",
        int,
        None,
        "modern blocks: heads of keys and values; divides n_head (None: n_head)",
        low=1,
    ),
    Flag(
        "window_pattern",
        str,
        "L",
        "modern blocks: letters that say, layer by layer and from the start again, how far back attention"
        " sees: L = sequence_length, S = half of it; the last layer is L",
    ),
    Flag("sequence_length", int, 512, "tokens of a training sequence", low=1),
    Flag(
        "dtype",
        dtype_name,
        "auto",
        "dtype of autocast: auto (bfloat16 on CUDA, float32 on CPU) or one of the others; weights stay"
        " float32",
        choices=DTYPES,
    ),
    switch(
        "fp8",
        "large linear layers compute in FP8 in training, on GPUs of compute capability 8.9 or more;"
        " evaluations stay in bfloat16; faster only with --compile",
    ),
    Flag(
        "fp8_recipe",
        str,
        "tensorwise",
        "what shares a scale in FP8: tensorwise (a whole tensor; fastest) or rowwise (each row; more exact,"
        " weights' gradients in bfloat16)",
        choices=FP8_RECIPES,
    ),
    switch("bias", "bias in Linear layers and norms"),
    Flag("attn_bias", boolean, None, "bias in attention's Linear layers (None: as --bias)"),
    Flag("mlp_bias", boolean, None, "bias in the MLP's Linear layers (None: as --bias)"),
    Flag("norm_bias", boolean, None, "bias in norms (None: as --bias)"),
    Flag("mlp_width", int, None, "width of the MLP's inner layer (None: 4 x n_embd)", low=1),
    Flag("rope_base", float, 10000.0, "base of the angles of rotary positions", low=1.0001),
    Flag(
        "rope_dtype",
        str,
        "float32",
        "dtype to which cosines and sines of rotary positions are rounded",
        choices=("float32", "bfloat16"),
    ),
    Flag(
        "scaled_init",
        boolean,
        True,
        "residual projections begin with a standard deviation of 0.02 / sqrt(2 n_layer), instead of 0.02",
    ),
    Flag("dropout", float, 0.0, "after embedding, attention and MLP; 0 = off", low=0, high=1),
    switch(
        "compile",
        "compile what blocks do around attention (torch.compile; needs a compiler)",
        scope=PLACE,
    ),
    switch(
        "cuda_graphs",
        "launch all kernels of a micro-batch at once: faster where it is small; for one GPU, next_token, and"
        " models whose passes all tokens take",
        scope=PLACE,
    ),
    Flag(
        "activation_checkpointing",
        str,
        "none",
        "save memory: keep only the inputs of a pass, or of a block, and recompute the rest for the "
        "gradients",
        choices=("none", "pass", "block"),
        scope=PLACE,
    ),
    Flag(
        "attention",
        str,
        "fast",
        "fast, or reference: all passes' keys under one dense mask, as published; the same numbers, to"
        " check the fast one",
        choices=ATTENTION,
        scope=PLACE,
    ),
    Flag("positional_encoder", str, "rotary", "rotary, or none", choices=positional_encoders),
    Flag(
        "attention_window_length",
        int,
        None,
        "a query sees keys at most this many positions back (None: all)",
        low=0,
    ),
    Flag(
        "mup_base_width",
        int,
        None,
        "muP, with adamw or lion: --lr and initial weights are those of a network with this --n_embd, and"
        " rates of matrices, their initial size, attention scores and logits follow from the true one, so"
        " that the best --lr of a small network is that of a large one (None: no muP)",
        low=1,
    ),
    Flag(
        "adapt",
        adaptation,
        None,
        "train adapters alone, beside the weights of --init_from: lora:RANK, or lora:RANK:ALPHA, for all"
        " matrices of attention and MLP; alpha / rank scales them (None: train all weights)",
    ),
)

RECURRENT_DEPTH: tuple[Flag, ...] = (
    Flag("n_repeat", int, 2, "passes through the middle layers", low=1),
    Flag("n_layer_begin", int, 0, "layers before the repeated ones", low=0),
    Flag("n_layer_end", int, 0, "layers after the repeated ones", low=0),
    Flag(
        "min_repeat",
        int,
        1,
        "fewest passes; changes only the experiment's name; published commands have it",
        low=1,
    ),
    Flag(
        "depth_random_method",
        str,
        "uniform",
        "how routed models draw the training factors: uniform and uniform_random_range (sorted uniform "
        "draws), or one of the others; sb_act adds the stick-breaking gate to pondernet's state",
        choices=random_depth_methods,
    ),
    Flag(
        "depth_embedding",
        str,
        None,
        "added before each pass: linear_learned (one vector x passes left), learned (a table), None",
        choices=("linear_learned", "learned"),
    ),
    switch("disable_ln_mid", "no norm between passes"),
    Flag(
        "depth_index",
        str,
        "pass",
        "modern blocks that repeat: what scalars, --window_pattern and the alternation of value embeddings"
        " count: layer (each of n_layer once, the same in all passes) or pass (each run of a layer, in the"
        " order of computation; a layer has one table of value embeddings for all its runs)",
        choices=("layer", "pass"),
    ),
    Flag(
        "eval_length_factor",
        float,
        None,
        "n_repeat - 1 shares of the tokens that go on after each pass, in evaluation (None: all go on)",
        low=0,
        high=1,
        many=True,
        scope=EVALUATION,
    ),
    Flag(
        "routing",
        str,
        "capacity",
        "how routed models choose in evaluation: capacity (the paper's: the best scores of the whole"
        " sequence, so it looks at later tokens) or threshold (causal: each score against"
        " --router_threshold)",
        choices=("capacity", "threshold"),
        scope=EVALUATION,
    ),
    Flag(
        "router_threshold",
        float,
        None,
        "with --routing threshold: the score above which a token goes on, one for all passes or "
        "n_repeat - 1 of them (None: 0.5)",
        low=0,
        high=1,
        many=True,
        scope=EVALUATION,
    ),
    Flag(
        "training_length_factor",
        float,
        None,
        "as --eval_length_factor, in training instead of the random draw",
        low=0,
        high=1,
        many=True,
    ),
    Flag(
        "halt_threshold",
        float,
        0.999,
        "a stick-breaking token stops when its halting mass exceeds this",
        low=0,
        high=1,
    ),
    Flag(
        "depth_predictor_loss_coef",
        float,
        None,
        "weight of the stick-breaking depth penalty, summed over tokens (None: 0.03)",
        low=0,
    ),
    Flag("ponder_lambda_p", float, 0.4, "pondernet: rate of the geometric prior over passes", low=0, high=1),
    Flag(
        "ponder_kl_div_loss_weight",
        float,
        0.01,
        "pondernet: weight of the divergence from the prior",
        low=0,
    ),
)
