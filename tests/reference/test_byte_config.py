"""Config files and checkpoints of the byte-level training loop against the reference numbers of the public
code, where that is right.
"""

import json

import pytest
import torch

import config
from config.mixture import parse_mixture
from config.recipe import recipes
from errors import UserError
from models import make_model_from_args
from models.byte_format import periodic_name
from optim.byte_file import content_of, whole, write
from optim.checkpoint import load_checkpoint
from optim.optimizers import make_optimizer
from optim.resumable import check_resumable
from tests.reference.byte_loop import each_of

RECIPE = recipes()["bytes"]


# config files


def resolved(args):
    """Both sections as they stand in the flags."""
    sections = {}
    for section in ("model", "train"):
        sections[section] = {key: getattr(args, RECIPE.flag_named(key)) for key in RECIPE.sections[section]}
    sections["train"]["p_train"] = parse_mixture(sections["train"]["p_train"])
    return sections


def unknown_keys(lines):
    """Section (top: beside the sections) -> keys that refused command lines name."""
    found = {"top": [], "model": [], "train": []}
    for line in lines:
        _, _, told = line.partition("unknown key ")
        _, key, rest = told.split("'", 2)
        section = rest.split("'")[1] if rest.startswith(" in section ") else "top"
        found[section].append(key)
    return {section: sorted(keys) for section, keys in found.items()}


@each_of("config")
def test_config_files(case, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(case["input"]))
    given, problems = config.parse(["--config", str(path)], prog="main.py", description="", recipe="bytes")
    right = case["right"]
    if "error" in right:
        wanted = {section: sorted(keys) for section, keys in right["unknown_keys"].items()}
        assert unknown_keys(problems) == wanted
        return
    assert not problems
    assert resolved(config.add_defaults({"recipe": "bytes", **given})) == right


# checkpoints

SMALL = {"recipe": "bytes", "n_layer": 1, "n_embd": 8, "n_head": 2, "mlp_width": 16, "sequence_length": 4}


def checkpoint(step, optimizer=True, best=None):
    """Content of a file of a small network that has taken one step, and its flags."""
    args = config.add_defaults(SMALL)
    network = make_model_from_args(args)
    own = make_optimizer(network, args)
    network(torch.arange(8).view(2, 4), targets=torch.arange(8).view(2, 4))["loss"].backward()
    own.step()
    state = {"model": network.state_dict(), "itr": step, "best": {"quantity": "val_loss@wiki", "value": best}}
    if optimizer:
        state["optimizer"] = own.state_dict()
    return content_of(state, args), args


@each_of("checkpoint_dict")
def test_checkpoint_files(case, tmp_path):
    given, right = case["input"], case["right"]
    path = tmp_path / periodic_name(given["step"])
    assert path.name == right["periodic_name"]
    content, _ = checkpoint(given["step"], given["optimizer"], given["best_val_loss"])
    write(content, path)
    loaded = torch.load(path, weights_only=True)
    assert sorted(loaded) == sorted(right["keys_in_file"])
    returned = whole(loaded, path)
    assert sorted(returned) == sorted(right["keys_returned_by_load"])
    none = [name for name, value in returned.items() if value is None]
    assert sorted(none) == sorted(right["none_after_load"])
    assert (returned["step"], returned["best_val_loss"]) == (given["step"], given["best_val_loss"])


@each_of("resume_past_end")
def test_checkpoint_beyond_the_last_step_is_left_as_it_is(case, tmp_path):
    """Training is refused before it begins: no update is taken, and nothing gets another step."""
    given, right = case["input"], case["right"]
    content, args = checkpoint(given["checkpoint_step"])
    path = tmp_path / periodic_name(given["checkpoint_step"])
    write(content, path)
    args.iterations = given["total_steps"]
    assert right["updates"] == 0
    with pytest.raises(UserError, match=f"is of step {given['checkpoint_step']}, and --iterations"):
        check_resumable(path, load_checkpoint(path), args, None)
    assert load_checkpoint(path)["itr"] == right["latest_step"]
