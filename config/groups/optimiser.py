"""Flags of the optimiser and its schedule."""

from __future__ import annotations

from config.schema import Flag

SCHEDULERS = (
    "cos",
    "linear",
    "wsd",
    "warmup_cos",
    "trapezoid",
    "none",
    "cosine",
    "linear_decay",
    "constant",
)
OPTIMIZERS = ("adamw", "sgd", "adafactor", "muon", "lion")

OPTIMISER: tuple[Flag, ...] = (
    Flag(
        "opt",
        str,
        "adamw",
        "optimiser; adamw is fused where the device allows it; muon: orthogonalised momentum for matrices"
        " inside the network, adamw for all else; lion: signs of a momentum, with a rate 3 to 10 times"
        " smaller than adamw's and --beta2 0.99",
        choices=OPTIMIZERS,
    ),
    Flag(
        "lr",
        float,
        1e-3,
        "peak learning rate; of matrices with muon, where 0.02 is usual",
        low=0,
        high=1e30,
    ),
    Flag("embedding_lr", float, None, "muon: peak rate of embeddings (None: --lr)", low=0, high=1e30),
    Flag(
        "unembedding_lr",
        float,
        None,
        "muon: peak rate of an output head that is not tied, and of routers (None: --lr)",
        low=0,
        high=1e30,
    ),
    Flag(
        "scalar_lr",
        float,
        None,
        "muon: peak rate of norms, biases, scalars (None: --lr)",
        low=0,
        high=1e30,
    ),
    Flag(
        "muon_dtype",
        str,
        "auto",
        "muon: dtype of the products that orthogonalise; auto: bfloat16 on CUDA, float32 on CPU",
        choices=("auto", "float32", "bfloat16"),
    ),
    Flag(
        "beta1",
        float,
        0.9,
        "decay of AdamW's first moment (momentum of sgd; lion: share of the momentum in a step)",
        low=0,
        high=1,
    ),
    Flag("beta2", float, 0.95, "decay of AdamW's second moment (of lion's momentum)", low=0, high=1),
    Flag(
        "adafactor_eps",
        float,
        None,
        "adafactor: added to squared gradients, 1e-30 in its paper (None: 1.2e-7, torch's for float32)",
        low=1e-37,
        high=1,
    ),
    Flag(
        "weight_decay",
        float,
        0.1,
        "on what --decayed says; muon: on matrices, where a weight and its step agree in sign",
        low=0,
        high=1e6,
    ),
    Flag(
        "decay_schedule",
        str,
        "constant",
        "weight decay over the run: constant, or linear down to 0 after the last step",
        choices=("constant", "linear"),
    ),
    Flag(
        "decayed",
        str,
        "matrices",
        "what --weight_decay is on: weights of Linear layers, but for a tied head (matrices), these and"
        " embeddings, or all parameters",
        choices=("matrices", "matrices_embeddings", "all"),
    ),
    Flag(
        "grad_clip",
        float,
        0.0,
        "largest L2 norm of the gradient; 0 = no clipping (the norm is still measured)",
        low=0,
    ),
    Flag(
        "scheduler",
        str,
        "cos",
        "cos and linear: warm-up, then down over the whole run; wsd: warm-up, stable, decay at the end "
        "(the one that can be extended); warmup_cos: up from 0 in --warmup_steps, then a cosine down to "
        "--min_lr; trapezoid: up from 0 in --warmup_ratio of the steps, stable, in the last"
        " --warmdown_ratio down to --final_lr_frac of lr; none: constant from the first step; the training"
        " library's: cosine, linear_decay (its `linear`) and constant: up from 1e-7 in --warmup_steps, then"
        " down to 0 after the last step, or constant",
        choices=SCHEDULERS,
    ),
    Flag(
        "warmup_percent",
        float,
        0.05,
        "share of --iterations spent in warm-up, from lr/100 to lr",
        low=0,
        high=1,
    ),
    Flag(
        "warmup_steps", int, 200, "steps of the warm-up of warmup_cos, cosine, linear_decay, constant", low=0
    ),
    Flag("min_lr", float, 3e-5, "rate that warmup_cos falls to", low=0),
    Flag("warmup_ratio", float, 0.0, "share of --iterations in trapezoid's warm-up", low=0, high=1),
    Flag("warmdown_ratio", float, 0.5, "share of --iterations in trapezoid's warm-down", low=0, high=1),
    Flag("final_lr_frac", float, 0.0, "trapezoid's last rate, as a share of --lr", low=0, high=1),
    Flag(
        "final_div_factor",
        float,
        0.05,
        "the last rate is lr/100/final_div_factor: 20% of the peak at 0.05 (not 5%)",
        low=1e-12,
    ),
    Flag(
        "decay_percent",
        float,
        0.2,
        "share of --iterations spent in the final decay of wsd",
        low=0,
        high=1,
    ),
)
