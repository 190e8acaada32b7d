"""Built names are for ever: an experiment that was begun by an older revision is found again only under the
name that it got then.

The table was made at revision 55eead3, but for the flags that came later.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
from config.flags import FLAGS
from config.schema import IDENTITY
from tests.command_lines import refused

TABLE: list[tuple[str, str]] = [
    ("", "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_seed2"),
    (
        (
            "--model lncot --dataset stdlib --n_layer 5 --n_layer_begin 2 --n_layer_end 1 --n_repeat 3 --dep"
            "th_embedding linear_learned --n_embd 128 --n_head 4 --sequence_length 128 --iterations 300"
        ),
        (
            "exps/stdlib/cotformer_full_depth_lnmid_depthemb/lr0.001_bs32x4_seqlen128_n_layer=5_n_embd=128_n"
            "_head=4_n_repeat=3_n_layer_begin=2_n_layer_end=1_depth_embedding=linear_learned_seed2"
        ),
    ),
    (
        (
            "--model lncot --dataset owt2 --n_layer 24 --n_layer_begin 2 --n_layer_end 1 --n_repeat 5 --dept"
            "h_embedding linear_learned --sequence_length 256 --batch_size 8 --acc_steps 16 --iterations 400"
            "00 --warmup_percent 0.2 --lr 1e-3 --save_checkpoint_freq 2000"
        ),
        (
            "exps/owt2/cotformer_full_depth_lnmid_depthemb/lr0.001_bs8x16_seqlen256_warmup_percent=0.2_n_rep"
            "eat=5_n_layer_begin=2_n_layer_end=1_depth_embedding=linear_learned_seed2"
        ),
    ),
    (
        "--model cot --n_repeat 5 --min_repeat 5 --dataset openwebtext2",
        "exps/openwebtext2/cotformer_full_depth/lr0.001_bs32x4_seqlen512_n_repeat=5_min_repeat=5_seed2",
    ),
    (
        "--model cot --n_repeat 5 --min_repeat 3 --dataset /data/sets/mine/",
        "exps/mine/cotformer_full_depth/lr0.001_bs32x4_seqlen512_n_repeat=5_min_repeat=3_seed2",
    ),
    ("--seed 5", "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_seed5"),
    ("--seed 5 --data_seed 5", "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_seed5"),
    ("--seed 5 --data_seed 9", "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_data_seed=9_seed5"),
    ("--data_seed 2", "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_seed2"),
    (
        (
            "--opt sgd --beta1 0.8 --beta2 0.99 --weight_decay 0.2 --grad_clip 1.0 --scheduler wsd --final_d"
            "iv_factor 1.0 --decay_percent 0.3 --lr 3e-4"
        ),
        (
            "exps/slimpajama/base/lr0.0003_bs32x4_seqlen512_opt=sgd_beta1=0.8_beta2=0.99_weight_decay=0.2_gr"
            "ad_clip=1.0_scheduler=wsd_final_div_factor=1.0_decay_percent=0.3_seed2"
        ),
    ),
    (
        (
            "--vocab_size 50432 --n_layer 12 --n_embd 384 --n_head 6 --dtype torch.bfloat16 --bias --dropout"
            " 0.1 --positional_encoder none --attention_window_length 128"
        ),
        (
            "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_vocab_size=50432_n_layer=12_n_embd=384_n_head=6_d"
            "type=bfloat16_bias=True_dropout=0.1_positional_encoder=none_attention_window_length=128_seed2"
        ),
    ),
    (
        (
            "--scheduler warmup_cos --warmup_steps 100 --min_lr 1e-5 --decayed all --attn_bias --mlp_bias"
            " --norm_bias --mlp_width 1024 --rope_base 500 --scaled_init false"
        ),
        (
            "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_decayed=all_scheduler=warmup_cos_warmup_steps=100_min_"
            "lr=1e-05_attn_bias=True_mlp_bias=True_norm_bias=True_mlp_width=1024_rope_base=500.0_scaled_init=False_seed2"
        ),
    ),
    (
        (
            "--opt muon --lr 0.02 --embedding_lr 0.3 --unembedding_lr 0.004 --scalar_lr 0.5 --muon_dtype"
            " float32 --decay_schedule linear"
        ),
        (
            "exps/slimpajama/base/lr0.02_bs32x4_seqlen512_opt=muon_embedding_lr=0.3_unembedding_lr=0.004_scalar_"
            "lr=0.5_muon_dtype=float32_decay_schedule=linear_seed2"
        ),
    ),
    (
        "--scheduler trapezoid --warmup_ratio 0.1 --warmdown_ratio 0.4 --final_lr_frac 0.05",
        (
            "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_scheduler=trapezoid_warmup_ratio=0.1_warmdown_ratio="
            "0.4_final_lr_frac=0.05_seed2"
        ),
    ),
    (
        (
            "--model adm --n_repeat 3 --training_length_factor 1 0.5 --depth_random_method pick_mid_and_recu"
            "rse --disable_ln_mid --run_prefix group/a"
        ),
        (
            "exps/slimpajama/adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_fina"
            "l/group/a_lr0.001_bs32x4_seqlen512_n_repeat=3_depth_random_method=pick_mid_and_recurse_disable_"
            "ln_mid=True_training_length_factor=1.0,0.5_seed2"
        ),
    ),
    (
        "--model but_halting --n_repeat 3 --halt_threshold 0.9 --depth_predictor_loss_coef 0.5",
        (
            "exps/slimpajama/but_halting_freeze_input_on_stop/lr0.001_bs32x4_seqlen512_n_repeat=3_halt_thres"
            "hold=0.9_depth_predictor_loss_coef=0.5_seed2"
        ),
    ),
    (
        (
            "--model pondernet --n_repeat 4 --ponder_lambda_p 0.3 --ponder_kl_div_loss_weight 0.02 --depth_r"
            "andom_method sb_act"
        ),
        (
            "exps/slimpajama/pondernet/lr0.001_bs32x4_seqlen512_n_repeat=4_depth_random_method=sb_act_ponder"
            "_lambda_p=0.3_ponder_kl_div_loss_weight=0.02_seed2"
        ),
    ),
    (
        (
            "--model but_mod --n_repeat 3 --eval_length_factor 0.6 0.3 --routing threshold --router_threshol"
            "d 0.4 --eval_batches 3 --eval_seq_length 16 --eval_sample_size 9 --eval_seq_prefix x"
        ),
        (
            "exps/slimpajama/but_mod_efficient_sigmoid_lnmid_depthemb_random_factor/lr0.001_bs32x4_seqlen512"
            "_n_repeat=3_seed2"
        ),
    ),
    (
        (
            "--config_format base --add_additional_space --rmsnorm_eps 1e-6 --multiple_of 8 --mod_capacity_f"
            "actor 0.5 --lm_cache none --mem_cache_size 4 --cache_topk 2 --track_cache_attention"
        ),
        "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_seed2",
    ),
    (
        (
            "--device cpu --deterministic --compile --attention reference --activation_checkpointing pass --"
            "eval_freq 7 --log_freq 3 --extend continue --on_bad_step skip --data_in_ram"
        ),
        "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_seed2",
    ),
    (
        (
            "--model adm --n_repeat 26 --depth_random_method more_chance_for_zero_too --training_length_fact"
            "or 0.99 0.98 0.97 0.96 0.95 0.94 0.93 0.92 0.91 0.9 0.89 0.88 0.87 0.86 0.85 0.84 0.83 0.82 0.8"
            "1 0.8 0.79 0.78 0.77 0.76 0.75"
        ),
        (
            "exps/slimpajama/adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_fina"
            "l/lr0.001_bs32x4_seqlen512_n_repeat=26_depth_random_method=more_chance_for_zero_too_training_le"
            "ngth_factor=0.99,0.98,0.97,0.96,0.95,0.94,0.93,0.92,0.91,0.9,0.89,0.88,0.87,0.86,0.85,0.84,0._8"
            "d3b7f1615b8"
        ),
    ),
    (
        (
            "--block modern --window_pattern SSSL --n_kv_head 3 --rope_dtype bfloat16 --n_layer 6 --n_embd 38"
            "4 --n_head 6"
        ),
        (
            "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_block=modern_n_layer=6_n_embd=384_n_head=6_n_kv_hea"
            "d=3_window_pattern=SSSL_rope_dtype=bfloat16_seed2"
        ),
    ),
    (
        "--model cot --block modern --depth_index layer --n_repeat 3",
        (
            "exps/slimpajama/cotformer_full_depth/lr0.001_bs32x4_seqlen512_block=modern_n_repeat=3_depth_index="
            "layer_seed2"
        ),
    ),
    (
        "--objective multi_token --mtp_heads 3 --mtp_weight 0.1",
        "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_objective=multi_token_mtp_heads=3_mtp_weight=0.1_seed2",
    ),
    (
        (
            "--objective distillation --teacher exps/owt2/base/deep/ckpt_40.pt --teacher_dtype float32"
            " --distill_temperature 2 --distill_alpha 0.5"
        ),
        (
            "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_objective=distillation_teacher=deep-ckpt_40.pt_teache"
            "r_dtype=float32_distill_temperature=2.0_distill_alpha=0.5_seed2"
        ),
    ),
    (
        "--objective dpo --reference exps/owt2/base/tuned/ckpt_40.pt --beta 0.3",
        "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_objective=dpo_reference=tuned-ckpt_40.pt_beta=0.3_seed2",
    ),
    (
        "--dataset wiki=0.784,roam=0.196,primer=0.02 --sampling random",
        "exps/mix-primer-roam-wiki-48a08cab/base/lr0.001_bs32x4_seqlen512_sampling=random_seed2",
    ),
    (
        "--packing best_fit --packing_buffer 200",
        "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_packing=best_fit_packing_buffer=200_seed2",
    ),
    (
        "--curriculum length --curriculum_stages 3 --curriculum_min_length 64",
        "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_curriculum=length_curriculum_stages=3"
        "_curriculum_min_length=64_seed2",
    ),
    (
        "--dataset a=0.5,b=0.25,c=0.25 --curriculum difficulty --curriculum_hard b c"
        " --curriculum_warmup 0.25",
        "exps/mix-a-b-c-f66f2d86/base/lr0.001_bs32x4_seqlen512_curriculum=difficulty_curriculum_hard=b,c"
        "_curriculum_warmup=0.25_seed2",
    ),
    ("--exp_name my_run/a --lr 0.5 --results_base_folder elsewhere", "elsewhere/slimpajama/base/my_run/a"),
    (
        "--init_from exps/owt2/base/long_run/ckpt_4000.pt",
        "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_init_from=long_run-ckpt_4000.pt_seed2",
    ),
    (
        "--fp8 --fp8_recipe rowwise",
        "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_fp8=True_fp8_recipe=rowwise_seed2",
    ),
    (
        "--opt adafactor --adafactor_eps 1e-30",
        "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_opt=adafactor_adafactor_eps=1e-30_seed2",
    ),
    (
        "--opt lion --scheduler cosine --mup_base_width 256",
        "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_opt=lion_scheduler=cosine_mup_base_width=256_seed2",
    ),
    (
        "--init_from /somewhere/exps/owt2/base/lr0.1_wide/",
        "exps/slimpajama/base/lr0.001_bs32x4_seqlen512_init_from=lr0.1_wide_seed2",
    ),
]


@pytest.mark.parametrize(("words", "folder"), TABLE)
def test_the_folder_is_the_one_that_it_always_was(words: str, folder: str) -> None:
    assert str(config.experiment_folder(config.parse_args(shlex.split(words)))) == folder


@pytest.mark.parametrize("name", [name for name, flag in FLAGS.items() if flag.scope == IDENTITY])
def test_the_table_shows_every_setting_of_identity(name: str) -> None:
    assert any(f"--{name} " in f"{words} " for words, _ in TABLE)


CHANGES = {
    "batch_size": 7,
    "acc_steps": 3,
    "seed": 5,
    "data_seed": 9,
    "opt": "sgd",
    "lr": 0.00123,
    "beta1": 0.8,
    "beta2": 0.99,
    "weight_decay": 0.2,
    "grad_clip": 1.0,
    "scheduler": "wsd",
    "warmup_percent": 0.2,
    "final_div_factor": 1.0,
    "decay_percent": 0.3,
    "warmup_steps": 100,
    "min_lr": 1e-5,
    "decayed": "all",
    "sampling": "random",
    "vocab_size": 50432,
    "n_layer": 12,
    "n_embd": 384,
    "n_head": 6,
    "block": "modern",
    "n_kv_head": 3,
    "window_pattern": "SSSL",
    "rope_dtype": "bfloat16",
    "sequence_length": 256,
    "dtype": "bfloat16",
    "bias": True,
    "attn_bias": True,
    "mlp_bias": True,
    "norm_bias": True,
    "mlp_width": 1024,
    "rope_base": 500.0,
    "scaled_init": False,
    "dropout": 0.1,
    "positional_encoder": "none",
    "attention_window_length": 128,
    "n_repeat": 5,
    "n_layer_begin": 2,
    "n_layer_end": 1,
    "depth_random_method": "pick_mid_and_recurse",
    "depth_embedding": "linear_learned",
    "disable_ln_mid": True,
    "halt_threshold": 0.9,
    "training_length_factor": [0.9],
    "depth_predictor_loss_coef": 0.5,
    "packing": "best_fit",
    "packing_buffer": 200,
    "curriculum": "length",
    "curriculum_stages": 3,
    "curriculum_min_length": 64,
    "curriculum_hard": ["b"],
    "curriculum_warmup": 0.25,
    "fp8": True,
    "fp8_recipe": "rowwise",
    "adafactor_eps": 1e-30,
    "mup_base_width": 256,
    "depth_index": "layer",
    "objective": "multi_token",
    "mtp_heads": 3,
    "mtp_weight": 0.1,
    "teacher": "deep",
    "teacher_dtype": "float32",
    "distill_temperature": 2.0,
    "distill_alpha": 0.5,
    "reference": "tuned",
    "beta": 0.3,
}


def named(**changes):
    args = config.parse_args([])
    vars(args).update(changes)
    return config.experiment_name(args)


def test_setting_that_changes_the_numbers_changes_the_name():
    names = [named(), *(named(**{name: value}) for name, value in CHANGES.items())]
    assert len(set(names)) == len(CHANGES) + 1


@pytest.mark.parametrize(
    "name",
    [
        "iterations",
        "eval_freq",
        "device",
        "wandb",
        "data_in_ram",
        "save_checkpoint_freq",
        "eval_length_factor",
        "log_freq",
    ],
)
def test_setting_that_changes_no_number_leaves_the_name(name):
    assert named(**{name: "other"}) == named()


def long_name(**changes):
    return named(
        **{
            **CHANGES,
            "training_length_factor": [round(1 - 0.001 * number, 3) for number in range(200)],
            **changes,
        }
    )


def test_name_with_many_long_settings_stays_a_path_component():
    assert len(long_name().encode()) <= 199


@pytest.mark.parametrize(
    "change",
    [
        {"depth_predictor_loss_coef": 0.25},
        {"seed": 6},
        {"training_length_factor": [0.5] * 200},
        {"lr": 0.002},
    ],
)
def test_long_names_differ_where_settings_do(change):
    assert long_name(**change) != long_name()


def test_name_holds_no_further_folders():
    assert "/" not in long_name(run_prefix="group")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=300))
def test_components_stay_short_whatever_the_prefix(prefix):
    assert all(0 < len(part.encode()) <= 199 for part in named(run_prefix=prefix).split("/"))


def test_exp_name_is_the_name():
    assert named(exp_name="my_run", lr=0.5) == "my_run"


def test_run_prefix_stands_before_the_built_name():
    assert named(run_prefix="sweep") == "sweep_" + named()


def test_run_prefix_may_group_runs_in_a_folder():
    assert named(run_prefix="sweep/a").split("/") == ["sweep", "a_" + named()]


@pytest.mark.parametrize(
    ("model", "begun", "asked", "is_same"),
    [
        ("cot", (8, 2), (4, 4), True),
        ("cot", (8, 2), (4, 2), False),
        ("cot", (8, 2), (16, 1), True),
        ("but_halting", (8, 2), (4, 4), False),
    ],
)
@pytest.mark.parametrize(
    "factors",
    [[], ["--training_length_factor", *["0.123456"] * 25, "--n_repeat", "26", "--run_prefix", "group/a"]],
)
def test_another_cut_of_the_same_batch_goes_on_in_the_folder_that_is_there(
    tmp_path, model, begun, asked, is_same, factors
):
    def folder(cut):
        words = [
            "--model",
            model,
            "--results_base_folder",
            str(tmp_path),
            "--batch_size",
            str(cut[0]),
            "--acc_steps",
            str(cut[1]),
            *factors,
        ]
        return config.experiment_folder(config.parse_args(words))

    first = folder(begun)
    first.mkdir(parents=True)
    (first.parent / f"{first.name}2").mkdir()
    assert (folder(asked) == first) is is_same


@pytest.mark.parametrize(
    ("model", "note"),
    [("cot", "going on with lr0.001_bs8x2_"), ("but_halting", "bs8x2_seqlen512_seed2 is another training")],
)
def test_another_cut_of_the_same_batch_is_told_until_it_has_a_folder(tmp_path, model, note):
    args = config.parse_args(
        ["--model", model, "--results_base_folder", str(tmp_path), "--batch_size", "4", "--acc_steps", "4"]
    )
    own = tmp_path / "slimpajama" / args.model / config.experiment_name(args)
    (own.parent / own.name.replace("bs4x4", "bs8x2")).mkdir(parents=True)
    (told,) = config.notes_on_cut(args)
    own.mkdir()
    assert note in told and config.notes_on_cut(args) == []


def test_a_folder_under_the_very_name_comes_first(tmp_path):
    for cut in ("4x4", "8x2"):
        (tmp_path / f"slimpajama/base/lr0.001_bs{cut}_seqlen512_seed2").mkdir(parents=True)
    words = ["--results_base_folder", str(tmp_path), "--batch_size", "4", "--acc_steps", "4"]
    assert config.experiment_folder(config.parse_args(words)).name == "lr0.001_bs4x4_seqlen512_seed2"


def test_experiment_folder_is_base_dataset_model_name(tmp_path):
    args = config.parse_args(
        ["--results_base_folder", str(tmp_path), "--dataset", "owt2", "--model", "lncot", "--exp_name", "run"]
    )
    assert config.experiment_folder(args) == tmp_path / "owt2" / "cotformer_full_depth_lnmid_depthemb" / "run"


def test_dataset_given_as_a_path_is_named_by_its_last_folder():
    args = config.parse_args(["--dataset", "/data/sets/mine/", "--exp_name", "run"])
    assert config.experiment_folder(args) == Path("exps/mine/base/run")


@pytest.mark.parametrize("name", ["..", "../x", "x/../y", "./x", "x//y", "/x", "x/"])
def test_exp_name_cannot_leave_its_folder(capsys, name):
    assert "must be a plain folder name" in refused(capsys, "--exp_name", name)[0]
