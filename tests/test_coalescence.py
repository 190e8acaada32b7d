"""Coalescence times: what the network sees, what a command means, and what a training begins with."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import config
from data.batch import Batch
from data.genomes.store import open_genomes
from data.genomes.targets import FIRST, GRID
from data.genomes.windows import GenomeSet
from distributed.world import World
from errors import UserError
from models.coalescence.settings import ALL, CHANNELS, PUBLISHED, SCALES, TINY, AdapterSettings
from models.network import ADAPTER, FROZEN, TUNED, TUNED_VECTOR, roles_of
from optim import initial
from optim.checkpoint import save_checkpoint
from optim.coalescence.held_out import HeldOutTimes
from optim.coalescence.load import load_model, network_of
from optim.coalescence.objective import NextTime
from optim.coalescence.training import left_out
from optim.optimizers import make_optimizer
from optim.schedules import Schedule, Shape
from tests.coalescence import WINDOWS, its_names, network, write_public, write_sets
from tests.command_lines import refused

SMALL = AdapterSettings(6, bottleneck=5, last_n=1)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("genomes"))


def inputs(samples: int = 10, batch: int = 2) -> torch.Tensor:
    draw = torch.Generator().manual_seed(4)
    return torch.rand(batch, CHANNELS, SCALES, WINDOWS, samples, generator=draw)


def tokens(batch: int = 2) -> torch.Tensor:
    draw = torch.Generator().manual_seed(5)
    found = torch.randint(FIRST, 326, (batch, 1 + WINDOWS), generator=draw)
    found[:, 0] = 1
    return found


def parsed(*flags: object) -> config.Namespace:
    return config.parse_args(["coalescence", *map(str, flags)])


# the network


def test_a_token_sees_nothing_after_it() -> None:
    net, y = network().eval(), tokens()
    before = net(inputs(), y)
    y[:, 5:] = 3
    assert torch.allclose(net(inputs(), y)[:, :5], before[:, :5], atol=1e-6)


def test_windows_see_one_another_and_no_token() -> None:
    net, y = network().eval(), tokens()
    source = net.encode(inputs())
    states, _ = net.through(torch.cat((source, net.embed(y)), dim=1), WINDOWS)
    alone, _ = net.through(source, WINDOWS)
    assert torch.allclose(states[:, :WINDOWS], alone, atol=1e-6)
    changed = source.clone()
    changed[:, -1] = 0
    assert not torch.allclose(net.through(changed, WINDOWS)[0][:, 0], alone[:, 0], atol=1e-4)


def test_a_network_below_an_adapter_goes_without_dropout() -> None:
    net = network(adapter=SMALL).train()
    x = inputs(6)
    assert net.adapter is not None and net.adapter.training
    assert torch.equal(net(x, tokens()), net(x, tokens()))


def test_without_an_adapter_dropout_is_on() -> None:
    net = network().train()
    assert not torch.equal(net(inputs(), tokens()), net(inputs(), tokens()))


def test_recomputing_blocks_gives_the_same_gradients() -> None:
    grads = []
    for recomputes in (False, True):
        net = network().train()
        net.settings = replace(net.settings, recomputes=recomputes)
        torch.manual_seed(6)  # of dropout
        NextTime(net)(Batch({"x": inputs(), "tokens": tokens()}, 2 * WINDOWS)).mean.backward()
        grads.append([parameter.grad for parameter in net.parameters()])
    assert all(map(torch.equal, *grads))


def test_what_is_below_an_adapter_is_frozen_but_for_norms_and_last_blocks() -> None:
    roles = roles_of(network(adapter=SMALL))
    assert {name: roles[name] for name in roles if name.startswith("transformer.h.1.")}.keys()
    assert roles["transformer.h.0.mlp.c_fc.weight"] == FROZEN
    assert roles["transformer.h.1.mlp.c_fc.weight"] == TUNED
    assert roles["transformer.h.0.ln_1.weight"] == TUNED_VECTOR
    assert roles["adapter.alpha"] == roles["mask_token"] == ADAPTER


def test_everything_may_be_trained_with_an_adapter() -> None:
    net = network(adapter=replace(SMALL, unfrozen=ALL)).train()
    roles = roles_of(net)
    assert not {FROZEN, TUNED, TUNED_VECTOR} & set(roles.values()) and net.transformer["drop"].training
    assert {name for name in roles if roles[name] == ADAPTER} == {
        name for name, _ in net.named_parameters() if name.startswith(("adapter.", "mask_token"))
    }


def test_nothing_is_masked_where_bin_0_has_a_meaning() -> None:
    net, other = network("tiny_w200_wmissing", adapter=SMALL).eval(), inputs(6)
    other[..., 0] += 1
    assert net.mask_token is None
    assert not torch.equal(net(inputs(6), tokens()), net(other, tokens()))


def test_floating_point_operations_are_those_that_torch_counts() -> None:
    net = network().eval()
    # the one kernel of a CPU that is counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(inputs(batch=1), tokens(1)[:, :-1])
    # in full rectangles, where half of what tokens see of one another is of use
    unused = 2 * 2 * net.settings.n_embd * net.settings.n_layer * WINDOWS * (WINDOWS - 1) / 2
    assert net.flops_per_token() * WINDOWS == pytest.approx(
        3 * (counter.get_total_flops() - unused), rel=1e-3
    )


# commands


def test_the_command_of_the_public_code_means_the_same_here(sets: Path) -> None:
    spec = ["--model", "broad", "--gpus", 0, 1, "--epochs", 3, "--lr", 3e-5, "--batch-size", 16]
    more = ["--grad-accum", 2, "--workers", 3, "--checkpoint", "broad", "--log-dir", "logs"]
    adapter = ["--adapter", "--adapter-samples", 6, "--adapter-bottleneck", 8, "--adapter-dropout", 0.1]
    args = parsed(*spec, *more, *adapter, "--resume-adapter", "one.ckpt", "--dataset-path", sets / "n6")
    assert (args.acc_steps, args.batch_size, args.results_base_folder) == (2, 16, "logs")
    assert (args.gpus, args.workers, args.adapter_bottleneck) == ([0, 1], 3, 8)
    assert args.init_from == "one.ckpt"  # which counts before --checkpoint
    assert args.iterations == 3 * math.ceil(40 / 32)


def test_a_small_network_has_its_own_batch_and_rate(sets: Path) -> None:
    args = parsed("--model", "tiny", "--dataset-path", sets / "w2000", "--epochs", 2)
    assert (args.batch_size, args.acc_steps, args.lr, args.iterations) == (32, 1, 1e-3, 4)


def test_before_the_pairs_are_there_a_command_can_be_read() -> None:
    assert parsed("--model", "tiny", "--dataset-path", "nowhere/pairs", "--epochs", 4).iterations == 4


def test_the_name_of_an_experiment_has_no_length_of_texts(sets: Path) -> None:
    args = parsed("--model", "broad", "--dataset", "nowhere/w2000")
    assert str(config.experiment_folder(args)).endswith("exps/w2000/broad/lr0.0003_bs128x6_seed2")


@pytest.mark.parametrize(
    ("flags", "name"),
    [([], "lr0.001_bs32x1_seed2"), (["--decay_steps", 9], "lr0.001_bs32x1_decay_steps=9_seed2")],
)
def test_the_name_of_an_experiment_has_no_default_of_its_model(flags: list[object], name: str) -> None:
    args = parsed("--model", "tiny", "--dataset", "nowhere/w2000", *flags)
    assert config.experiment_folder(args).name == name


def test_a_file_is_named_by_the_flag_that_gave_it() -> None:
    worded = config.as_written(
        ["coalescence", "--adapter", "--checkpoint", "a.pt", "--resume-adapter", "b.pt"]
    )
    assert worded("--init_from b.pt does not fit") == "--resume-adapter b.pt does not fit"
    worded = config.as_written(["coalescence", "--checkpoint", "a.pt"])
    assert worded("--init_from a.pt does not fit") == "--checkpoint a.pt does not fit"


@pytest.mark.parametrize("how", ["continue", "restart", "rejoin"])
def test_an_extension_beyond_the_decay_has_no_rate_out_of_bounds(how: str) -> None:
    shape = Shape("warmup_cos", 1e-3, 0.0, 1.0, 0.0, warmup_steps=4, min_lr=1e-4, decay_steps=8)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    before = Schedule(optimiser, shape, 20)
    for _ in range(20):
        before.step()
    after = Schedule(optimiser, shape, 40)
    after.load_state_dict(before.state_dict(), extend=how)
    assert all(1e-4 <= after.rate_at(step) <= 1e-3 for step in range(20, 40))
    assert after.rate_at(39) == pytest.approx(1e-4)


def test_files_that_could_not_be_prepared_are_told(sets: Path) -> None:
    meta = open_genomes(sets / "w2000").meta
    assert left_out(meta) == []
    (line,) = left_out(replace(meta, errors=[["ssd/b.trees", "it has 3 samples"], ["ssd/c.trees", ""]]))
    assert "lack 2 tree sequences" in line and "ssd/b.trees: it has 3 samples" in line


def test_windows_of_another_size_than_the_network_is_for_are_told(sets: Path) -> None:
    (note,) = config.unused_settings(parsed("--model", "tiny_w200", "--dataset-path", sets / "w2000"))
    assert note.endswith("has windows of 2000 bp, and --model tiny_w200 is for windows of 200 bp")
    assert config.unused_settings(parsed("--model", "tiny_w200", "--dataset-path", sets / "w200")) == []


WRONG = [
    (["--model", "brood"], "did you mean broad?"),
    (["--resume-adapter", "x.pt"], "--resume-adapter goes on with an adapter: give --adapter too"),
    (["--model", "tiny", "--adapter", "--adapter-samples", 10], "leave --adapter out"),
    (["--adapter", "--adapter_last_n", 11], "more than the 10 blocks of broad"),
    (["--adapter", "--opt", "muon"], "--opt muon has no rates"),
    (["--adapter", "--adapter-dropout", 1], "--adapter-dropout must be below 1"),
    (["--dataset-path", "a=0.5,b=0.5"], "is not one folder"),
    (["--gpus", 0, 0], "names a GPU twice"),
    (["--gpus", 0, "--device", "cpu"], "give one"),
    (["--gpus", 0, 1, 2, 3], "cannot be shared by 4 processes"),
    (["--epochs", 0], "must be at least 1"),
    (["--track", "val_bpb"], "nothing measures that"),
    (["--lr", 1e-6, "--min_lr", 1e-5], "the rate would rise"),
    (["--n_layer", 3], "unknown flag --n_layer"),
]


@pytest.mark.parametrize(("flags", "line"), WRONG, ids=[" ".join(map(str, flags)) for flags, _ in WRONG])
def test_wrong_flags_are_refused_in_one_line(
    flags: list[object], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = refused(capsys, "coalescence", *flags)
    assert len(lines) == 1 and line in lines[0]


UNFIT = [
    ("broad", "w2000", [], "--model broad takes 50 samples, and the pairs of"),
    ("tiny", "n6", [], "give --adapter --adapter-samples 6, or other data"),
    ("tiny", "n6", ["--adapter", "--adapter-samples", 5], "--adapter-samples 5: the pairs of"),
    ("tiny_w200_wmissing", "w200", [], "prepare it with --bitmask"),
    ("tiny_w200", "w200_missing", [], "would take them for regions without mutations"),
]


@pytest.mark.parametrize(("model", "name", "flags", "line"), UNFIT)
def test_pairs_that_do_not_fit_are_refused_in_one_line(
    model: str, name: str, flags: list[object], line: str, sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = refused(capsys, "coalescence", "--model", model, "--dataset-path", sets / name, *flags)
    assert len(lines) == 1 and line in lines[0]


def test_gpus_are_refused_inside_a_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (line,) = refused(capsys, "coalescence", "--gpus", 0)
    assert "a job has the GPUs that it was given" in line


def test_a_set_of_texts_is_no_set_of_genomes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "meta.json").write_text('{"end_of_text": 0}')
    (line,) = refused(capsys, "coalescence", "--dataset-path", tmp_path)
    assert "holds no genomes of format" in line


def test_what_is_trained_with_an_adapter_is_in_three_groups() -> None:
    args = parsed("--adapter", "--lr", 1e-2, "--dataset-path", "nowhere/pairs")
    groups = make_optimizer(network(adapter=SMALL), args).param_groups
    assert [(group.get("rate", 1.0), group["weight_decay"]) for group in groups] == [
        (1.0, 0.1),
        (0.05, 0.1),
        (0.05, 0.0),
    ]
    assert "mask_token" in groups[0]["param_names"]


# evaluation


def test_error_and_correlation_are_those_of_the_expected_times(sets: Path, tmp_path: Path) -> None:
    args = parsed("--model", "tiny_narrow", "--dataset-path", sets / "w2000", "--batch-size", 4)
    splits, net = open_genomes(sets / "w2000"), network().eval()
    world = World(torch.device("cpu"), 0, 1, 0)
    pairs = GenomeSet(splits.test)
    measured = HeldOutTimes(args, world, net, pairs, tmp_path, splits.identity()).run(
        True, lambda: False, lambda: None
    )
    assert measured is not None
    batch = pairs.batch(np.arange(len(pairs)))
    with torch.no_grad():
        logits = net(batch["x"], batch["tokens"][:, :-1]).double()
    expected = (logits[..., FIRST:].softmax(-1) @ torch.from_numpy(GRID)).flatten().numpy()
    true = GRID[batch["tokens"][:, 1:].flatten().numpy() - FIRST]
    assert measured.values["mse"] == pytest.approx(np.mean((expected - true) ** 2), rel=1e-5)
    assert measured.values["pearson_r"] == pytest.approx(np.corrcoef(expected, true)[0, 1], rel=1e-4)
    with torch.no_grad():
        loss = float(NextTime(net)(Batch(batch.tensors, batch.count)).mean)
    assert measured.values["val_loss"] == pytest.approx(loss, rel=1e-5)


# checkpoints of the public code, and names


@pytest.mark.parametrize("adapter", [None, SMALL], ids=["network", "adapter"])
def test_a_checkpoint_of_the_public_code_is_loaded_by_its_name(
    adapter: AdapterSettings | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXT_CHECKPOINT_CACHE", str(tmp_path))
    net = network(adapter=adapter).eval()
    path = tmp_path / "narrow+adapter" / "narrow_adapter_epoch=1-step=7.ckpt"
    write_public(path, its_names(net), mask_singletons=True, n_head=4)
    loaded = load_model("narrow+adapter")
    assert not loaded.training
    x = inputs(net.settings.input_samples)
    assert torch.equal(loaded(x, tokens()), net(x, tokens()))


def test_a_preset_without_masking_drops_the_public_mask_token(tmp_path: Path) -> None:
    net = network("tiny_w200_wmissing", adapter=SMALL)
    weights = {**its_names(net), "model.mask_token": torch.zeros(())}
    path = write_public(tmp_path / "some.ckpt", weights, mask_singletons=False)
    assert load_model(path).settings.mask_singletons is False


def test_nothing_in_a_foreign_checkpoint_is_executed(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    weights = {**its_names(network()), "model.extra": Hostile()}
    path = write_public(tmp_path / "hostile.ckpt", weights)
    with pytest.raises(UserError, match=r"loaded safely: .*execute .*pathlib\.Path"):
        load_model(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "stated",
    [
        {"settings": {"n_head": 0}},
        {"settings": {"n_head": -4}},
        {"settings": {"n_head": 3}},
        {"settings": {"n_head": "many"}},
        {"genomes": {"sequence_length": 10**12, "window_size": 1}},
        {"genomes": {"sequence_length": 100, "window_size": 0}},
    ],
)
def test_a_checkpoint_of_impossible_sizes_is_refused(stated: dict[str, object]) -> None:
    state = {"model": network().state_dict(), "args": {"model": "tiny"}, **stated}
    with pytest.raises(UserError, match=r"bad\.pt: what it says of itself is damaged: \w+Error"):
        network_of(Path("bad.pt"), state)


def test_lightning_checkpoints_of_other_networks_are_refused(tmp_path: Path) -> None:
    path = write_public(tmp_path / "other.ckpt", {"model.layer.weight": torch.zeros(2)})
    with pytest.raises(UserError, match="not of a network of coalescence times"):
        load_model(path)


def test_an_unknown_name_is_looked_for_in_the_cache_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXT_CHECKPOINT_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"nor is it in {tmp_path}"):
        load_model("no_such_network")


# what a training begins with


def begun(net: object, path: Path) -> None:
    initial.load(net, path)  # type: ignore[arg-type]


@pytest.mark.parametrize("heads", [0, 8, "many"])
def test_weights_for_another_number_of_heads_do_not_fit(tmp_path: Path, heads: object) -> None:
    path = write_public(tmp_path / "some.ckpt", its_names(network()), n_head=heads)
    with pytest.raises(UserError, match=f"it has {heads!r} heads, and this model 4"):
        begun(network(), path)


def test_an_adapter_begins_above_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    trained, net = network(seed=2), network(seed=3, adapter=SMALL)
    own = net.adapter.proj.weight.detach().clone()  # type: ignore[union-attr, operator, union-attr]
    begun(net, write_public(tmp_path / "backbone.ckpt", its_names(trained)))
    assert torch.equal(net.lm_head.weight, trained.lm_head.weight)
    assert torch.equal(net.adapter.proj.weight, own)  # type: ignore[union-attr]


def test_a_second_stage_begins_with_adapter_and_network_of_the_first(tmp_path: Path) -> None:
    first, net = network(seed=2, adapter=SMALL), network("tiny_narrow", seed=3, adapter=SMALL)
    net.resumes_adapter = True
    path = tmp_path / "ckpt.pt"
    save_checkpoint(path, {"model": first.state_dict()})
    begun(net, path)
    for name, value in first.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)


@pytest.mark.parametrize(
    ("of_file", "of_run", "resumes", "line"),
    [
        (SMALL, None, False, "give it as --resume-adapter, with --adapter"),
        (SMALL, SMALL, False, "it holds an adapter already: give it as --resume-adapter"),
        (None, SMALL, True, "it holds no adapter: give it as --checkpoint"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    of_file: AdapterSettings | None,
    of_run: AdapterSettings | None,
    resumes: bool,
    line: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "ckpt.pt"
    save_checkpoint(path, {"model": network(adapter=of_file).state_dict()})
    net = network(adapter=of_run)
    net.resumes_adapter = resumes
    with pytest.raises(UserError, match=line):
        begun(net, path)


def test_a_file_that_lacks_weights_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    weights = network().state_dict()
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_checkpoint(tmp_path / "ckpt.pt", {"model": weights})
    with pytest.raises(UserError, match=r"transformer\.h\.N\.mlp\.c_fc\.weight is missing in the file"):
        begun(network(adapter=SMALL), tmp_path / "ckpt.pt")


def test_presets_have_names_of_their_own() -> None:
    assert len(PUBLISHED) == 5 and not PUBLISHED.keys() & TINY.keys()
