"""Router scores: cascades, capacities, and the files that they are streamed to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from get_ppl_per_mac import CUTS
from get_router_weights import growing_npz
from optim.cascade import CASCADES, cascade
from optim.routers import reaching, rounded, router_scores
from tests.helpers import tiny_model
from tests.programs import PEER, run
from tests.sweeps import ADAPTIVE, PLACES, Windows, program

# two tokens change places after the first pass: token 1 has the better score there
REORDERED = torch.tensor([[[0.2, 0.9], [0.8, 0.1]]])


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


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_disk_that_scores_fill_is_an_error_that_names_the_file(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        with (
            pytest.raises(OSError, match=r"No space left on device.*scores\.npz"),
            growing_npz(tmp_path / "scores.npz", "weights", 1 << 14, 4),
        ):
            pass
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


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
