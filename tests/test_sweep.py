"""The sweep over compute budgets: points of the figure, going on, and which sweeps are the same."""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.bins import identity_of
from get_ppl_per_mac import of_depth, others, read_losses, seconds_per_sequence
from models.macs import count_macs
from optim.intervals import interval
from optim.window_losses import save_arrays
from tests.helpers import tiny_args, tiny_model
from tests.programs import PEER, python, run
from tests.sweeps import ADAPTIVE, PLACES, Windows, program

# sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    program("get_ppl_per_mac.py", folder, "--thresholds", "0", "0.2", "1")
    program("eval.py", folder)
    program("eval.py", folder / "half", "--eval_length_factor", "1", "0")
    return folder


def points(folder, kind, key):
    return {point[key]: point for point in json.loads((folder / "ppl_per_mac.json").read_text())[kind]}


@pytest.mark.slow
def test_full_budget_is_what_eval_says(swept):
    full = json.loads((swept / "eval_summary_ckpt.json").read_text())
    assert (
        points(swept, "fixed_depth", "passes")[3]["val_loss"]
        == points(swept, "router", "threshold")[0]["val_loss"]
        == full["val_loss"]
    )


@pytest.mark.slow
def test_fixed_depth_is_evaluation_with_whole_factors(swept):
    half = json.loads((swept / "half" / "eval_summary_ckpt.json").read_text())
    assert points(swept, "fixed_depth", "passes")[2]["val_loss"] == half["val_loss"]


@pytest.mark.slow
def test_every_fixed_depth_is_there(swept):
    assert list(points(swept, "fixed_depth", "passes")) == [1, 2, 3]


@pytest.mark.slow
def test_cut_one_lets_no_token_go_on(swept):
    assert points(swept, "router", "threshold")[1]["length_factors"] == [0, 0]


@pytest.mark.slow
def test_a_point_says_which_cut_it_is_in_both_countings(swept):
    assert points(swept, "router", "threshold")[0.2]["published_threshold"] == 0.8


@pytest.mark.slow
def test_published_sweep_has_the_authors_capacities_and_is_another_sweep(swept, tmp_path):
    said = program("get_ppl_per_mac.py", tmp_path, "--published", "--thresholds", "0.18", "0.2").stdout
    assert "scores >= 0.18 go on (t = 0.82)" in said
    for point in points(tmp_path, "router", "threshold").values():
        assert point["length_factors"] == [round(share, 2) for share in point["length_factors"]]
    sweep = json.loads((tmp_path / "ppl_per_mac.json").read_text())
    assert (sweep["published"], sweep["router_sample_size"]) == (
        True,
        np.fromfile(PEER / "datasets/openwebtext2/val.bin", "<u2").size,
    )
    outcome = run(
        [
            sys.executable,
            "get_ppl_per_mac.py",
            "--checkpoint",
            str(ADAPTIVE),
            "--output_dir",
            str(tmp_path),
            *PLACES,
        ]
    )
    assert (
        outcome.returncode == 2 and "is a sweep with another router_sample_size, published;" in outcome.stderr
    )


@pytest.mark.slow
def test_macs_are_those_of_the_closed_form(swept):
    sweep = json.loads((swept / "ppl_per_mac.json").read_text())
    args = tiny_args(
        "adm",
        **{
            name: sweep["args"][name]
            for name in (
                "n_layer",
                "n_embd",
                "n_head",
                "n_repeat",
                "vocab_size",
                "n_layer_begin",
                "n_layer_end",
            )
        },
    )
    point = points(swept, "router", "threshold")[0.2]
    assert point["macs"] == count_macs(args, sweep["sequence_length"], point["length_factors"])


@pytest.mark.slow
def test_all_budgets_read_the_same_windows_and_are_compared_in_pairs_with_full_depth(swept):
    losses = np.load(swept / "ppl_per_mac.npz")
    one, full = losses["fixed_depth_1"], losses["fixed_depth_3"]
    point = points(swept, "fixed_depth", "passes")[1]
    expected = interval(one - full, None)
    assert full.mean() == pytest.approx(points(swept, "fixed_depth", "passes")[3]["val_loss"], abs=1e-12)
    assert point["loss_difference"] == pytest.approx((one - full).mean(), abs=1e-12)
    assert point["loss_difference_ci95"] == pytest.approx([expected.low, expected.high], abs=1e-12)


@pytest.mark.slow
def test_full_depth_differs_from_itself_by_nothing(swept):
    for point in (points(swept, "fixed_depth", "passes")[3], points(swept, "router", "threshold")[0]):
        assert (point["loss_difference"], point["loss_difference_ci95"]) == (0, [0, 0])


@pytest.mark.slow
def test_interrupted_sweep_goes_on_with_the_missing_points(swept, tmp_path):
    sweep = json.loads((swept / "ppl_per_mac.json").read_text())
    kept = sweep["fixed_depth"][0] | {"val_loss": 99.0}  # a point that is there is not measured again
    (tmp_path / "ppl_per_mac.json").write_text(json.dumps(sweep | {"fixed_depth": [kept], "router": []}))
    program("get_ppl_per_mac.py", tmp_path, "--thresholds", "0", "0.2", "1")
    again = points(tmp_path, "fixed_depth", "passes")
    assert (again[1]["val_loss"], again[3]["val_loss"]) == (99.0, sweep["fixed_depth"][2]["val_loss"])
    assert kept["seconds_per_sequence"] != again[1]["seconds_per_sequence"] > 0  # times are of one call


@pytest.mark.slow
def test_new_points_of_a_sweep_of_before_are_compared_with_full_depth(swept, tmp_path):
    sweep = json.loads((swept / "ppl_per_mac.json").read_text())
    old = [
        {name: value for name, value in point.items() if not name.startswith("loss_difference")}
        for point in sweep["fixed_depth"]
    ]
    (tmp_path / "ppl_per_mac.json").write_text(
        json.dumps({**sweep, "fixed_depth": old, "router": [], "timing": None})
    )
    outcome = program("get_ppl_per_mac.py", tmp_path, "--thresholds", "0.2")
    (found,) = points(tmp_path, "router", "threshold").values()
    assert (
        found["loss_difference_ci95"]
        == next(point for point in sweep["router"] if point["threshold"] == 0.2)["loss_difference_ci95"]
    )
    assert "3 points are of an earlier version and have no paired difference" in outcome.stdout


@pytest.mark.slow
def test_sweep_of_another_setting_is_refused_and_left_as_it_is(swept, tmp_path):
    before = (swept / "ppl_per_mac.json").read_text()
    (tmp_path / "ppl_per_mac.json").write_text(before)
    outcome = run(
        [
            sys.executable,
            "get_ppl_per_mac.py",
            "--checkpoint",
            str(ADAPTIVE),
            "--output_dir",
            str(tmp_path),
            *PLACES,
            "--eval_sample_size",
            "480",
        ]
    )
    assert outcome.returncode == 2 and "is a sweep with another n_tokens" in outcome.stderr
    assert (tmp_path / "ppl_per_mac.json").read_text() == before


@pytest.mark.slow
def test_sweep_under_another_model_setting_is_refused(swept, tmp_path):
    (tmp_path / "ppl_per_mac.json").write_text((swept / "ppl_per_mac.json").read_text())
    outcome = run(
        [
            sys.executable,
            "get_ppl_per_mac.py",
            "--checkpoint",
            str(ADAPTIVE),
            "--output_dir",
            str(tmp_path),
            *PLACES,
            "--thresholds",
            "0",
            "--attention_window_length",
            "0",
        ]
    )
    assert outcome.returncode == 2
    assert (
        "is a sweep with another attention_window_length (None there, 0 now); give another --output_dir"
        in outcome.stderr
    )


@pytest.mark.slow
def test_evaluation_says_which_data_it_read(swept):
    summary = json.loads((swept / "eval_summary_ckpt.json").read_text())
    assert summary["data"] == identity_of(PEER / "datasets" / "openwebtext2")["val"]


# losses by window and times


def saved_losses(folder, told, whole=True, **arrays):
    save_arrays(folder / "ppl_per_mac.npz", **arrays)
    return read_losses(
        folder / "ppl_per_mac.npz",
        {"router": [], "fixed_depth": [{"passes": 3, "val_loss": told}]},
        np.arange(2),
        whole,
    )


def test_losses_of_windows_are_taken_up_where_they_are_those_of_the_sweep(tmp_path):
    losses = np.array([1.0, 2.0])
    assert saved_losses(tmp_path, 1.5, fixed_depth_3=losses)["fixed_depth_3"].tolist() == [1.0, 2.0]
    assert saved_losses(tmp_path, 1.6, fixed_depth_3=losses) == {}


def test_losses_of_other_windows_are_not_taken_up(tmp_path):
    losses = np.array([1.0, 2.0])
    assert saved_losses(tmp_path, 1.5, whole=False, fixed_depth_3=losses) == {}
    assert saved_losses(tmp_path, 1.5, windows=np.array([0, 7]), fixed_depth_3=losses) == {}
    assert set(saved_losses(tmp_path, 1.5, whole=False, windows=np.arange(2), fixed_depth_3=losses)) == {
        "fixed_depth_3"
    }


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn"])
def test_damaged_losses_are_told_and_measured_again(tmp_path, capsys, content):
    (tmp_path / "ppl_per_mac.npz").write_bytes(content)
    assert (
        read_losses(tmp_path / "ppl_per_mac.npz", {"router": [], "fixed_depth": []}, np.arange(2), True) == {}
    )
    assert "full depth is evaluated again" in capsys.readouterr().out


def test_one_slow_moment_of_the_machine_makes_no_budget_slower(monkeypatch):
    """The first time that each budget is measured, the machine is busy with another thing."""
    model = tiny_model("adm").eval()
    clock, calls = [0.0], [0]

    def busy(module, inputs, output):
        calls[0] += 1
        clock[0] += 100.0 if calls[0] <= 4 else 1.0

    model.register_forward_hook(busy)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    args = tiny_args("adm", batch_size=4, dtype="float32")
    restored = SimpleNamespace(args=args, world=SimpleNamespace(device=torch.device("cpu")))
    budgets = [of_depth(passes, args.n_repeat) for passes in (1, 2)]
    assert seconds_per_sequence(restored, model, Windows(), budgets) == [0.25, 0.25]


# which sweeps are the same


def sweep_of(**changes):
    """The head of a ppl_per_mac.json; other names than those of a head are flags."""
    head = {
        "checkpoint": "a/ckpt.pt",
        "modified": 1.0,
        "itr": 60,
        "data": "/data/owt2",
        "splits": SPLITS,
        "sequence_length": 16,
        "n_tokens": 160,
        "router_sample_size": 48,
        "device": "cpu",
        "published": False,
        "sample": None,
        "args": vars(tiny_args("adm")),
    }
    return {
        **head,
        **{name: value for name, value in changes.items() if name in head},
        "args": {**head["args"], **{name: value for name, value in changes.items() if name not in head}},
    }


SPLITS = {name: {"tokens": 300, "blocks": "ab", "sha256": None} for name in ("train", "val")}
OTHER_SPLITS = SPLITS | {"val": SPLITS["val"] | {"blocks": "cd"}}


def before(sweep):
    """As it was written before data were known by what they hold."""
    return {name: value for name, value in sweep.items() if name not in ("splits", "published", "sample")}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpoint": "b/ckpt.pt"}, ["checkpoint"]),
        ({"n_tokens": 80}, ["n_tokens"]),
        ({"device": "cuda:0"}, ["device"]),
        ({"published": True}, ["published"]),
        ({"sample": "spread evenly"}, ["sample"]),
        ({"splits": OTHER_SPLITS}, ["data"]),
        ({"batch_size": 3}, ["batch_size (32 there, 3 now)"]),
        ({"dtype": "bfloat16"}, ["dtype (auto there, bfloat16 now)"]),
        ({"halt_threshold": 0.5}, ["halt_threshold (0.999 there, 0.5 now)"]),
        ({"disable_ln_mid": True}, ["disable_ln_mid (False there, True now)"]),
    ],
)
def test_what_makes_another_sweep_is_named(changes, said):
    assert others(sweep_of(), sweep_of(**changes)) == said


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "/copy/of/owt2", "dataset": "copy"},
        {"routing": "threshold"},
        {"eval_sample_size": 160},
        {"wandb": True},
        {"data_dir": "/elsewhere"},
    ],
)
def test_sweep_goes_on_where_its_numbers_would_be_the_same(changes):
    assert others(sweep_of(), sweep_of(**changes)) == []


def test_older_sweep_of_the_same_folder_goes_on():
    assert others(before(sweep_of()), sweep_of()) == []


@pytest.mark.parametrize(
    ("changes", "said"), [({"data": "/other"}, ["data"]), ({"lr": 0.5}, ["lr (0.001 there, 0.5 now)"])]
)
def test_older_sweep_of_another_kind_is_refused(changes, said):
    assert others(before(sweep_of()), sweep_of(**changes)) == said


@pytest.mark.parametrize("damage", [{"args": None}, {"args": []}, {"splits": None}, {"splits": 5}])
def test_damaged_sweep_is_another_one(damage):
    assert others({**sweep_of(), **damage}, sweep_of())


# evaluation on several processes


@pytest.mark.slow
def test_evaluation_on_two_processes_equals_one(swept, tmp_path):
    words = ["eval.py", "--checkpoint", str(ADAPTIVE), "--output_dir", str(tmp_path), *PLACES]
    outcome = run([*python(2), *words])
    assert outcome.returncode == 0, outcome.stderr
    one, two = (json.loads((folder / "eval_summary_ckpt.json").read_text()) for folder in (swept, tmp_path))
    assert two["val_loss"] == pytest.approx(one["val_loss"], abs=1e-6)
