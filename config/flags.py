"""Every flag of the default recipe, once: name, type, default, help. Nothing heavy is imported here, so
`--help` is instant.
"""

from __future__ import annotations

from config.mixture import DROP, EPOCHS, ERROR, SAMPLINGS
from config.old_flags import OLD_FLAGS
from config.schema import EVALUATION, PLACE, SCHEDULE, Flag, boolean, dataset_or_mixture, dtype_name, switch
from models.variants import ALIASES, VARIANTS, positional_encoders, random_depth_methods

BACKENDS = ("nccl", "gloo")
DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTION = ("fast", "reference")
BLOCKS = ("published", "modern")
SCHEDULERS = ("cos", "linear", "wsd", "warmup_cos", "trapezoid", "none")
OPTIMIZERS = ("adamw", "sgd", "adafactor", "muon")
GPT2, CHARACTERS, BYTES = "gpt2", "char", "bytes"  # tokenizers
TOKENIZER_FILE = "tokenizer.json"  # the tokenizer of a user, as Hugging Face stores one

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # that can stop a training
DEFAULT_STOP_SIGNALS = STOP_SIGNALS[:5]

GROUPS: dict[str, tuple[Flag, ...]] = {
    "run": (
        Flag(
            "config",
            str,
            None,
            "JSON file of flag values, in sections or not, between the defaults and the command line",
            scope=PLACE,
        ),
        Flag("iterations", int, 25000, "optimiser steps in all (not epochs)", low=1, scope=SCHEDULE),
        Flag("batch_size", int, 32, "sequences of one micro-batch on one process", low=1),
        Flag(
            "acc_steps",
            int,
            4,
            "micro-batches of one step, over all processes; effective batch = batch_size x acc_steps",
            low=1,
        ),
        Flag("seed", int, 2, "seed of the weights, dropout and depth draws", low=0),
        Flag("data_seed", int, None, "seed of the order of the samples (None: the value of --seed)", low=0),
        Flag("device", str, "auto", "auto (cuda if there, else cpu), cpu, cuda or cuda:N", scope=PLACE),
        switch(
            "deterministic", "use only deterministic algorithms (exact resume on GPUs; slower)", scope=PLACE
        ),
        Flag(
            "stop_file",
            str,
            None,
            "stop cleanly when this file exists; its text, if any, is the reason. The file 'stop' in the"
            " experiment folder always does (None: only that one)",
            scope=PLACE,
        ),
        Flag(
            "stop_signals",
            str,
            None,
            f"signals at which to finish the step, save and end (None: {' '.join(DEFAULT_STOP_SIGNALS)}); a"
            " SIGHUP that nohup has ignored stays ignored",
            choices=STOP_SIGNALS,
            many=True,
            scope=PLACE,
        ),
        Flag(
            "outcome_file",
            str,
            None,
            "write a copy of outcome.json here, also where the experiment's folder cannot be written (None:"
            " no copy)",
            scope=PLACE,
        ),
        Flag(
            "max_runtime_minutes",
            float,
            None,
            "stop cleanly after this many minutes (None: no limit)",
            low=0,
            scope=PLACE,
        ),
        Flag(
            "extend",
            str,
            None,
            "when --iterations was raised on an experiment: 'continue' takes the rate from where it is to its"
            " end value over the new steps; 'restart' warms it up again first; 'rejoin' takes the rates of a"
            " run that was planned this long from the start, from this step on",
            choices=("continue", "restart", "rejoin"),
            scope=SCHEDULE,
        ),
    ),
    "optimiser": (
        Flag(
            "opt",
            str,
            "adamw",
            "optimiser; adamw is fused where the device allows it; muon: orthogonalised momentum for matrices"
            " inside the network, adamw for all else",
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
        Flag("beta1", float, 0.9, "decay of AdamW's first moment (momentum of sgd)", low=0, high=1),
        Flag("beta2", float, 0.95, "decay of AdamW's second moment", low=0, high=1),
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
            "what --weight_decay is on: weights of Linear layers, but for a tied head, or all parameters",
            choices=("matrices", "all"),
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
            " --warmdown_ratio down to --final_lr_frac of lr; none: constant",
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
        Flag("warmup_steps", int, 200, "steps of the warm-up of warmup_cos", low=0),
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
    ),
    "data": (
        Flag(
            "dataset",
            dataset_or_mixture,
            "slimpajama",
            "prepared folder under --data_dir, or a path to one; built in are 'stdlib', and 'lib_code',"
            " 'lib_docs' and 'lib_licenses' in bytes; owt2 = openwebtext2; or a mixture,"
            " NAME=WEIGHT,NAME=WEIGHT,... (or a JSON object) of prepared folders of one tokenizer",
        ),
        Flag(
            "sampling",
            str,
            EPOCHS,
            "of a mixture: epochs (sources take turns, each without replacement) or random (source and window"
            " drawn with replacement)",
            choices=SAMPLINGS,
        ),
        Flag(
            "missing_sources",
            str,
            ERROR,
            "of a mixture, where sources are not prepared: error, or drop (the others' weights are divided by"
            " their sum)",
            choices=(ERROR, DROP),
            scope=PLACE,
        ),
        switch(
            "normalise_weights", "divide the weights of a mixture by their sum, which else is 1", scope=PLACE
        ),
        Flag(
            "data_dir", str, None, "root of the datasets (None: data/datasets in the repository)", scope=PLACE
        ),
        switch(
            "data_in_ram",
            "read the token files into memory before training (one copy for all processes of a node)",
            scope=PLACE,
        ),
        Flag(
            "vocab_size",
            int,
            50304,
            "GPT-2's 50257 rounded up to a multiple of 64; must cover every token of the data",
            low=1,
        ),
    ),
    "model": (
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
    ),
    "recurrent depth": (
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
        Flag(
            "ponder_lambda_p", float, 0.4, "pondernet: rate of the geometric prior over passes", low=0, high=1
        ),
        Flag(
            "ponder_kl_div_loss_weight",
            float,
            0.01,
            "pondernet: weight of the divergence from the prior",
            low=0,
        ),
    ),
    "evaluation": (
        Flag("eval_freq", int, 200, "evaluate every N steps; 0 = only at the end", low=0, scope=PLACE),
        Flag(
            "eval_batches",
            int,
            24,
            "batches of an evaluation during training, always the same ones; 0 = the whole split, as at"
            " the end",
            low=0,
            scope=EVALUATION,
        ),
        Flag("eval_seq_prefix", str, "Once upon a time", "prompt of text samples", scope=EVALUATION),
        Flag(
            "eval_seq_length",
            int,
            None,
            "eval.py: tokens of a sequence (None: --sequence_length)",
            low=1,
            scope=EVALUATION,
        ),
        Flag(
            "eval_sample_size",
            int,
            None,
            "eval.py: tokens to evaluate (None: the whole split)",
            low=1,
            scope=EVALUATION,
        ),
        Flag(
            "log_freq",
            int,
            10,
            "write a log line and a metrics row every N steps; 0 = never",
            low=0,
            scope=PLACE,
        ),
        Flag(
            "sample_every",
            int,
            0,
            "continue prompts every N steps, in the log, metrics.jsonl and Weights & Biases; 0 = never",
            low=0,
            scope=PLACE,
        ),
        Flag(
            "sample_prompts",
            str,
            None,
            "file of the prompts of --sample_every: one a line, or a JSON list of strings (None:"
            " --eval_seq_prefix and a few that are built in)",
            scope=PLACE,
        ),
        Flag("sample_tokens", int, 32, "most tokens that a sample adds to its prompt", low=1, scope=PLACE),
        Flag(
            "sample_temperature",
            float,
            0.0,
            "divides the logits of samples; 0 takes the likeliest token each time",
            low=0,
            scope=PLACE,
        ),
        switch(
            "wandb", "log to Weights & Biases (WANDB_MODE=offline on nodes without internet)", scope=PLACE
        ),
        Flag(
            "wandb_project",
            str,
            "my-project",
            "project in Weights & Biases; WANDB_PROJECT is used where this is not given",
            scope=PLACE,
        ),
        Flag(
            "wandb_entity",
            str,
            None,
            "team in Weights & Biases (None: WANDB_ENTITY, else the personal account)",
            scope=PLACE,
        ),
    ),
    "checkpoints": (
        Flag(
            "results_base_folder",
            str,
            "./exps",
            "root of the experiment folders <dataset>/<model>/<name>",
            scope=PLACE,
        ),
        Flag(
            "exp_name",
            str,
            None,
            "name of the experiment folder (None: built from what differs from the defaults)",
            scope=PLACE,
        ),
        Flag("run_prefix", str, None, "prefix of the name that is built", scope=PLACE),
        Flag(
            "save_checkpoint_freq",
            int,
            None,
            "write ckpt_N.pt every N steps (None: only the final ckpt.pt and on a stop)",
            low=1,
            scope=PLACE,
        ),
        Flag("keep_checkpoints", int, 2, "newest ckpt_N.pt to keep; 0 = all", low=0, scope=PLACE),
        Flag(
            "keep_steps",
            int,
            None,
            "write ckpt_N.pt after these steps too, and never delete those (None: no such steps)",
            low=1,
            many=True,
            scope=PLACE,
        ),
        Flag(
            "track",
            str,
            None,
            "keep the best checkpoint as best.pt, by a quantity of the evaluations during training: val_loss,"
            " val_pp, val_acc, or val_bpb, bits per byte (None: no best.pt)",
            scope=PLACE,
        ),
        switch(
            "remove_intermediary_checkpoints_at_end",
            "delete every ckpt_N.pt but those of --keep_steps once ckpt.pt is there",
            scope=PLACE,
        ),
        Flag(
            "init_from",
            str,
            None,
            "begin with the weights of a checkpoint file, or of the newest one of an experiment (folder or"
            " name), ours or the authors': fresh optimiser, any data and schedule. Read once; later jobs"
            " resume without it (None: random weights)",
        ),
        Flag(
            "use_pretrained",
            str,
            "auto",
            "auto: resume from the newest valid checkpoint of the experiment; a file; None: start afresh",
            scope=PLACE,
            optional=True,
        ),
    ),
    "when things go wrong": (
        Flag(
            "on_bad_step",
            str,
            "stop",
            "what to do where a step's loss or gradient is not finite, or its norm is above"
            " --grad_norm_limit: stop, or skip the step (ten in a row stop the run)",
            choices=("stop", "skip"),
            scope=PLACE,
        ),
        Flag(
            "grad_norm_limit",
            float,
            None,
            "gradient norm that counts as an explosion (None: only one that is not finite)",
            low=0,
            scope=PLACE,
        ),
        Flag(
            "watchdog_minutes",
            float,
            30.0,
            "end a process that completes no step, evaluation batch or save in this time, and write the "
            "stacks of its threads; 0 = never",
            low=0,
            high=1e6,
            scope=PLACE,
        ),
        switch(
            "selftest_resume",
            "train a small model here with and without kills, compare every bit, print the verdict; trains"
            " nothing else",
            scope=PLACE,
        ),
    ),
    "distributed": (
        Flag(
            "distributed_backend",
            str,
            None,
            "nccl or gloo (None under torchrun: nccl with CUDA, else gloo)",
            choices=BACKENDS,
            scope=PLACE,
        ),
    ),
}

FLAGS: dict[str, Flag] = {flag.name: flag for group in (*GROUPS.values(), OLD_FLAGS) for flag in group}
