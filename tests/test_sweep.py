"""Router scores and the sweep over compute budgets: cascades, streaming to disk, points of the figure,
going on.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.batch import Batch
from data.bins import identity_of
from get_ppl_per_mac import CUTS, of_depth, others, read_losses, seconds_per_sequence
from models.macs import count_macs
from optim.cascade import CASCADES, cascade
from optim.intervals import interval
from optim.routers import reaching, rounded, router_scores
from optim.window_losses import save_arrays
from tests.helpers import tiny_args, tiny_model
from tests.programs import PEER, python, run

ADAPTIVE = next((PEER / "exps" / "owt2").glob("adaptive*")) / "official_adm"
PLACES = ["--data_dir", str(PEER / "datasets"), "--device", "cpu"]
# two tokens change places after the first pass: token 1 has the better score there
REORDERED = torch.tensor([[[0.2, 0.9], [0.8, 0.1]]])


def program(name, output_dir, *flags):
    outcome = run(
        [
            sys.executable,
            name,
            "--checkpoint",
            str(ADAPTIVE),
            "--output_dir",
            str(output_dir),
            *PLACES,
            *flags,
        ]
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome


class Windows:
    """Windows of random tokens, as data.TokenWindows gives them."""

    length = 16

    def __len__(self):
        return 8

    def batch(self, chosen):
        idx = torch.stack([torch.from_numpy(np.random.RandomState(n).randint(0, 64, 17)) for n in chosen])
        return Batch({"inputs": idx[:, :-1], "targets": idx[:, 1:]}, idx[:, 1:].numel())


# cascades


def test_token_cascade_is_the_least_score_of_each_token():
    assert torch.equal(cascade(REORDERED, "token"), torch.tensor([[[0.2, 0.2], [0.8, 0.1]]]))


def authors_cascade(scores, is_sorted):
    """As the authors' loop has it: each pass's top-k gives scores and tokens a new order, and places are
    compared (get_router_weights.py).
    """
    left, order = [], torch.arange(scores.shape[1]).expand(scores.shape[:2])
    for scored in scores.unbind(-1):
        values, chosen = torch.topk(
            scored.take_along_dim(order, dim=1).unsqueeze(-1), scores.shape[1], dim=1, sorted=is_sorted
        )
        left.append(values.squeeze(-1))
        order = order.take_along_dim(chosen.squeeze(2), dim=1)
    for earlier, later in pairwise(left):
        later.copy_(torch.minimum(earlier, later))
    return torch.stack(left, dim=-1)


@pytest.mark.parametrize(("kind", "is_sorted"), [("device", False), ("position", True)])
@pytest.mark.parametrize("tokens", [6, 256])
def test_cascades_by_place_are_those_of_the_authors_loop(kind, is_sorted, tokens):
    scores = torch.rand(3, tokens, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cascade(scores, kind), authors_cascade(scores, is_sorted))


def test_position_cascade_pairs_scores_of_the_same_rank():
    """The best of the first pass (0.8, of token 1) stands beside the best of the second (0.9, of token 0)."""
    assert torch.equal(cascade(REORDERED, "position"), torch.tensor([[[0.8, 0.8], [0.2, 0.1]]]))


@pytest.mark.parametrize("kind", CASCADES)
def test_no_cascade_changes_the_scores_of_the_first_pass(kind):
    scores = torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cascade(scores, kind)[..., 0].sort().values, scores[..., 0].sort().values)


# capacities of the router sweep


def test_cuts_are_one_minus_the_paper_s_thresholds():
    assert CUTS == [1, 0.9, 0.8, 0.6, 0.4, 0.2, 0.15, 0.1, 0.05, 0]


def test_default_capacities_are_the_shares_of_tokens_that_every_router_so_far_scored_at_the_cut_or_above():
    """Independent uniform scores: one minus the cut, to the power of the routers so far."""
    scores = torch.rand(400, 256, 3, generator=torch.Generator().manual_seed(0))
    shares = reaching(scores, CUTS, "token") / (400 * 256)
    expected = (1 - torch.tensor(CUTS, dtype=torch.float64)).unsqueeze(1) ** torch.arange(1, 4)
    assert torch.allclose(shares, expected, atol=0.005)


def test_a_score_that_equals_the_cut_goes_on():
    assert reaching(torch.tensor([[[0.5], [0.25]]]), [0.5], "token").tolist() == [[1.0]]


def authors_factors(scores, threshold):
    """What their get_ppl_per_mac.py makes of the arrays that their get_router_weights.py wrote."""
    weights = cascade(scores, "device").flatten(0, 1).numpy().astype(np.float64).T
    return [
        float(f"{np.ceil((each >= 1 - threshold).sum() / len(each) * 256) / 256:.02f}") for each in weights
    ]


def test_published_capacities_are_the_authors_of_scores_of_a_known_distribution():
    """Most tokens score next to nothing, as after training: shares differ from cut to cut where the cuts
    are small.
    """
    scores = torch.rand(40, 256, 4, generator=torch.Generator().manual_seed(0)) ** torch.tensor(
        [1.0, 2.0, 4.0, 8.0]
    )
    counts = reaching(scores, CUTS, "device") / (40 * 256)
    ours = [[rounded(share) for share in row] for row in counts.tolist()]
    assert ours == [
        authors_factors(scores, threshold)
        for threshold in (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 1.0)
    ]
    assert len({tuple(row) for row in ours}) == 10


def test_tokens_over_a_threshold_by_their_cascade_are_those_that_threshold_routing_lets_go_on():
    model = tiny_model("adm", routing="threshold", router_threshold=[0.5])
    idx = Windows().batch(range(4))["inputs"]
    passes = 4 * 16
    for positions, scores in model(idx, get_router_weights=True)["router_weights"]:
        passes += int(((scores > 0.5) & (positions < 16)).sum())
    assert float(model(idx)["average_depth"]) == pytest.approx(2 + passes / 64)


# scores


@pytest.mark.parametrize("name", ["adm", "but_mod"])
def test_scores_do_not_depend_on_the_batch(name):
    model = tiny_model(name)
    at_once, one_by_one = (
        torch.cat(
            list(router_scores(model, Windows(), np.arange(6), size, torch.no_grad, torch.device("cpu")))
        )
        for size in (6, 1)
    )
    assert torch.allclose(at_once, one_by_one, atol=1e-6)


def test_first_scores_are_the_router_s_own_of_the_state_after_the_first_pass():
    model, states = tiny_model("adm"), []
    model.transformer["mod"][0].register_forward_hook(
        lambda module, inputs, output: states.append(inputs[0].detach())
    )
    scores = next(router_scores(model, Windows(), np.arange(2), 2, torch.no_grad, torch.device("cpu")))
    weight = model.transformer["mod"][0].mod_router.weight[0].detach()
    assert torch.allclose(scores[..., 0], (states[0] @ weight).sigmoid(), atol=1e-6)


@pytest.mark.slow
def test_files_hold_every_token_in_order_and_load_without_pickle(tmp_path):
    program("get_router_weights.py", tmp_path, "--cascade", "raw", "token")
    raw, token = (
        np.load(tmp_path / f"router_weights_{kind}.npz", allow_pickle=False)["weights"]
        for kind in ("raw", "token")
    )
    assert raw.shape == (19968, 2)
    assert np.array_equal(token, np.minimum.accumulate(raw, axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--cascade", "--thresholds"])
@pytest.mark.parametrize("value", [[], ["none"]])
def test_list_without_a_value_is_refused(flag, value):
    name = "get_router_weights.py" if flag == "--cascade" else "get_ppl_per_mac.py"
    outcome = run([sys.executable, name, "--checkpoint", str(ADAPTIVE), flag, *value])
    assert (outcome.returncode, outcome.stderr) == (2, f"{name}: error: {flag} needs a value\n")


@pytest.mark.slow
def test_one_cascade_is_written_under_the_plain_name_with_its_description(tmp_path):
    program("get_router_weights.py", tmp_path, "--eval_sample_size", "480")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "router_weights.npz",
        "router_weights_meta.json",
    ]
    meta = json.loads((tmp_path / "router_weights_meta.json").read_text())
    assert (meta["cascade"], meta["n_tokens"], meta["device"]) == ("token", 480, "cpu")


@pytest.mark.slow
def test_scores_of_the_training_split_are_as_many_as_validation_has_with_their_means(tmp_path):
    program("get_router_weights.py", tmp_path, "--split", "train", "--cascade", "raw", "device")
    meta = json.loads((tmp_path / "router_weights_device_meta.json").read_text())
    weights = np.load(tmp_path / "router_weights_device.npz")["weights"]
    assert (meta["split"], meta["n_tokens"], len(weights)) == ("train", 19968, 19968)
    means, low = weights.mean(0, dtype=np.float64), (weights < 0.01).mean(0)
    assert meta["mean_by_pass"] == pytest.approx(means.tolist()) and meta[
        "share_below_0.01"
    ] == pytest.approx(low.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["get_router_weights.py", "get_ppl_per_mac.py"])
def test_model_that_routes_nothing_is_refused_in_one_line(name, tmp_path):
    plain = PEER / "exps" / "owt2" / "cotformer_full_depth" / "official_cot_res"
    outcome = run([sys.executable, name, "--checkpoint", str(plain), "--output_dir", str(tmp_path), *PLACES])
    assert outcome.returncode == 2
    assert (
        outcome.stderr
        == f"{name}: error: cotformer_full_depth routes no tokens; this is for adaptive models (adm,"
        " but_mod)\n"
    )


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
