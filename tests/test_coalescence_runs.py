"""Trainings of coalescence times as main.py runs them: killed and resumed, on two processes, in stages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from optim.checkpoint import load_checkpoint
from optim.coalescence.load import load_model
from optim.selftest import differing
from tests.coalescence import WINDOWS, command, write_sets
from tests.programs import final_state, folder, metrics, run, start, wait_for_step

pytestmark = pytest.mark.slow
STEPS = ("--iterations", 8, "--eval_freq", 4, "--eval_batches", 1, "--save_checkpoint_freq", 3)
SECOND = ("--model", "tiny_w200_wmissing", "--adapter", "--adapter-samples", 6, "--adapter-dropout", 0.2)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("genomes"))


@pytest.fixture(scope="module")
def backbone(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the training of a whole network."""
    results = tmp_path_factory.mktemp("backbone")
    done = run(command(results, sets / "w2000", "--model", "tiny", *STEPS))
    assert done.returncode == 0, done.stderr
    return results


@pytest.fixture(scope="module")
def adapter(sets: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """... of an adapter in front of it."""
    results = tmp_path_factory.mktemp("adapter")
    flags = ["--model", "tiny", "--adapter", "--adapter-samples", 6, "--checkpoint", folder(backbone)]
    done = run(command(results, sets / "n6", *flags, *STEPS))
    assert done.returncode == 0, done.stderr
    return results


def test_the_second_stage_of_an_adapter_that_is_killed_ends_with_the_same_bits(
    sets: Path, adapter: Path, tmp_path: Path
) -> None:
    flags = [*SECOND, "--resume-adapter", folder(adapter) / "ckpt.pt", *STEPS]
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    done = run(command(calm, sets / "n6_missing", *flags))
    assert done.returncode == 0, done.stderr
    words = command(killed, sets / "n6_missing", *flags)
    process = start(words)
    wait_for_step(killed, 5, process)
    process.kill()
    process.communicate(timeout=60)
    assert run(words).returncode == 0
    assert differing(final_state(calm), final_state(killed)) == []
    assert metrics(calm) == metrics(killed)


def test_frozen_weights_stay_as_they_were(backbone: Path, adapter: Path) -> None:
    first, then = (load_checkpoint(folder(results) / "ckpt.pt")["model"] for results in (backbone, adapter))
    for name in ("transformer.bt2ls.proj01.weight", "transformer.h.0.mlp.c_fc.weight", "lm_head.weight"):
        assert torch.equal(first[name], then[name])
    assert not torch.equal(first["transformer.h.2.mlp.c_fc.weight"], then["transformer.h.2.mlp.c_fc.weight"])


def test_two_processes_train_as_one(sets: Path, adapter: Path, tmp_path: Path) -> None:
    flags = [*SECOND, "--adapter-dropout", 0, "--resume-adapter", folder(adapter), *STEPS]
    rows = []
    for processes in (1, 2):
        results = tmp_path / str(processes)
        done = run(command(results, sets / "n6_missing", *flags, processes=processes))
        assert done.returncode == 0, done.stderr
        rows.append([row.get("loss", row.get("val_loss")) for row in metrics(results)])
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)


def test_a_trained_network_is_loaded_by_its_folder(adapter: Path) -> None:
    network = load_model(folder(adapter))
    assert network.settings.n_windows == WINDOWS and network.settings.input_samples == 6
    kept = load_checkpoint(folder(adapter) / "ckpt.pt")["model"]
    assert all(torch.equal(kept[name], value) for name, value in network.state_dict().items())


def test_a_finished_training_needs_its_pairs_no_more(sets: Path, tmp_path: Path) -> None:
    place = tmp_path / "pairs"
    shutil.copytree(sets / "w2000", place)
    words = command(tmp_path / "exps", place, "--epochs", 1, "--eval_freq", 0)
    assert run(words).returncode == 0
    shutil.rmtree(place)
    done = run(words)
    assert done.returncode == 0 and "is finished already" in done.stdout + done.stderr


def test_pairs_that_are_not_there_are_reported_in_one_line(tmp_path: Path) -> None:
    done = run(command(tmp_path, tmp_path / "nowhere"))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "holds no prepared genomes" in done.stderr


def test_programs_for_texts_refuse_it_in_one_line(adapter: Path) -> None:
    for program in ("generate.py", "get_router_weights.py", "get_ppl_per_mac.py"):
        done = run([command(adapter, adapter)[0], program, "--checkpoint", str(folder(adapter))])
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert "is of recipe coalescence, and this reads networks of text" in done.stderr


def test_two_trainings_are_compared_by_their_own_flags(backbone: Path, adapter: Path) -> None:
    words = ["-m", "report", "compare", str(folder(backbone)), str(folder(adapter))]
    done = run([command(adapter, adapter)[0], *words])
    assert done.returncode == 0 and "--adapter: False | True" in done.stdout
