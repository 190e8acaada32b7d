"""round_weights of an exported folder, as transformers loads it without this repository: the logits of
`generate.py --weights`, whole rows and token by token; nothing unless it is asked for; refusals.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.export import export
from models.quantised import quantise
from optim.generation import Session
from tests.helpers import tiny_model, tokens

pytest.importorskip("transformers")

KINDS = ("bfloat16", "int8")
# models and their flags
CASES = {
    "lncot": ("lncot", "--depth_embedding", "linear_learned"),
    "modern": ("base", "--block", "modern", "--n_kv_head", "2"),
}
NEW = 8
CLOSE = 0.05  # of a logit; of larger networks docs/evaluate.md states what it is
ELSEWHERE = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM

idx, found = torch.load("idx.pt"), {}
for folder in sorted(Path("exported").iterdir()):
    for kind in ("as loaded", "bfloat16", "int8"):
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        if kind != "as loaded":
            model.round_weights(kind)
        said = model.generate(idx[:, :5], max_new_tokens=8, output_logits=True, return_dict_in_generate=True)
        logits = model(idx).logits.detach()
        found[folder.name, kind] = {"whole": logits, "said": said.sequences, "steps": torch.cat(said.logits)}
assert not [name for name in sys.modules if name.split(".")[0] in ("models", "optim", "config")]
torch.save(found, "found.pt")
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What transformers makes of the folders, in a process that cannot see this repository."""
    place = tmp_path_factory.mktemp("elsewhere")
    torch.save(tokens(1, 16), place / "idx.pt")
    for name, case in CASES.items():
        model = tiny_model(*case)
        export(model.settings, model.state_dict(), place / "exported" / name)
    (place / "look.py").write_text(ELSEWHERE)
    own = {"HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    outcome = subprocess.run(
        [sys.executable, "-I", "look.py"],
        cwd=place,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return torch.load(place / "found.pt")


def rounded(name: str, kind: str) -> Any:
    model = tiny_model(*CASES[name])
    quantise(model, kind)
    return model


@torch.no_grad()
def whole(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(tokens(1, 16), get_logits=True)["logits"]
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_not_rounded_unless_it_is_asked_to_be(found: Any, name: str) -> None:
    assert torch.equal(found[name, "as loaded"]["whole"], whole(tiny_model(*CASES[name])))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_whole_rows_have_the_logits_of_our_rounded_network(found: Any, name: str, kind: str) -> None:
    assert torch.equal(found[name, kind]["whole"], whole(rounded(name, kind)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_rounded_logits_stay_close_to_those_of_float32(found: Any, name: str, kind: str) -> None:
    exact = whole(tiny_model(*CASES[name]))
    away = (found[name, kind]["whole"] - exact).abs().max()
    assert 0 < away < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_new_tokens_have_the_logits_of_generate_py(found: Any, name: str, kind: str) -> None:
    session = Session(rounded(name, kind), 1, torch.device("cpu"))
    logits = [session.extend([tokens(1, 16)[0, :5].tolist()])]
    for _ in range(NEW - 1):
        logits.append(session.extend([[int(logits[-1].argmax())]]))
    assert torch.equal(found[name, kind]["steps"], torch.cat(logits))
    assert found[name, kind]["said"][0, 5:].tolist() == torch.cat(logits).argmax(-1).tolist()


def wrapped() -> Any:
    from dataclasses import asdict

    from models.export import config_of
    from models.hugging_face import CoTFormerConfig, CoTFormerForCausalLM

    model = tiny_model(*CASES["lncot"])
    outer = CoTFormerForCausalLM(CoTFormerConfig(**config_of(asdict(model.settings))))
    outer.model.load_state_dict(model.state_dict())
    return outer.eval()


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (lambda model, place: model.round_weights("int4"), "float32, bfloat16, int8, not in 'int4'"),
        (
            lambda model, place: model.to("meta").round_weights("int8"),
            "are for CPUs, and this model is on meta",
        ),
        (lambda model, place: model.train().round_weights("int8"), r"call eval\(\) first"),
        (lambda model, place: rounded_folder(model).round_weights("bfloat16"), "rounded already"),
        (lambda model, place: rounded_folder(model).train(), "load the folder again to train"),
        (lambda model, place: rounded_folder(model).save_pretrained(place), "are not stored"),
        (lambda model, place: rounded_folder(model)(tokens(1, 4).to("meta")), "these tokens are on meta"),
    ],
)
def test_what_would_be_wrong_is_refused(
    attempt: Callable[[Any, Path], Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        attempt(wrapped(), tmp_path / "out")
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def rounded_folder(model: Any) -> Any:
    model.round_weights("int8")
    return model
