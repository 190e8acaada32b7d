"""models/export.py: what the folder holds, and that transformers makes the same model of it without this
repository.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import config
import models.export as exporting
from data.bpe import gpt2
from data.tokenizer_files import tokenizer_files
from data.vocabulary import OF_BPE, Vocabulary
from errors import UserError
from models.export import authors_weights, export, model_code
from models.settings import ModelSettings
from models.variants import VARIANTS
from models.weights import load_weights
from optim import library_folder
from optim.checkpoint import load_checkpoint
from optim.restore import trained_settings
from tests.helpers import PEER, tiny_model, tokens
from tests.programs import ROOT, run

CHARACTERS = " abc"
# vocabulary, and --vocab_size
TEXTS = {"bpe": (OF_BPE, "50257"), "characters": (Vocabulary("char", None, CHARACTERS), "4")}
FACTORS = ("--eval_length_factor", "0.6", "0.3")
LNCOT = "cotformer_full_depth_lnmid_depthemb"
ADM = "adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final"
# model and flags: the nine, the two routed ones at a reduced budget, and settings that change what is stored
# or computed
CASES: dict[str, tuple[str, ...]] = {
    **{name: (name, "--depth_embedding", "linear_learned") for name in VARIANTS},
    "adm_budget": ("adm", "--depth_embedding", "linear_learned", *FACTORS),
    "but_mod_budget": ("but_mod", *FACTORS),
    "with_bias": ("lncot", "--bias", "--depth_embedding", "learned"),
    "without_positions": ("cot", "--positional_encoder", "none"),
    "window": ("cot", "--attention_window_length", "5"),
    "modern": ("base", "--block", "modern", "--window_pattern", "SL", "--n_kv_head", "2"),
    "modern_adm": ("adm", "--block", "modern", "--window_pattern", "SL", "--depth_index", "pass"),
    "ponder_gate": ("pondernet", "--depth_random_method", "sb_act"),
}


def make(case: str) -> Any:
    return tiny_model(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_every_weight_is_stored_once(tmp_path: Path, case: str) -> None:
    model = make(case)
    export(model.settings, model.state_dict(), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    tied = set() if "modern" in case else {"lm_head.weight", "to_logits.1.weight"}
    assert {name.removeprefix("model.") for name in stored} == set(model.state_dict()) - tied
    for name, value in stored.items():
        assert torch.equal(value, model.state_dict()[name.removeprefix("model.")]), name


def test_config_states_every_setting(tmp_path: Path) -> None:
    model = make("adm_budget")
    export(model.settings, model.state_dict(), tmp_path / "out")
    stated = json.loads((tmp_path / "out" / "config.json").read_text())
    assert json.loads(json.dumps(asdict(model.settings))).items() <= stated.items()
    assert stated["tie_word_embeddings"] is True and stated["architectures"] == ["CoTFormerForCausalLM"]
    assert {value.split(".")[0] for value in stated["auto_map"].values()} == {"hugging_face"}


def test_bfloat16_is_of_the_weights_and_not_of_the_angles(tmp_path: Path) -> None:
    model = make("with_bias")
    export(model.settings, model.state_dict(), tmp_path / "out", "bfloat16")
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        assert value.dtype == (torch.float32 if name.endswith("freqs") else torch.bfloat16), name


def test_the_copied_code_needs_nothing_of_the_repository() -> None:
    code = model_code()
    assert {"hugging_face.py", "transformer.py", "settings.py", "errors.py"} <= code.keys()
    for name, text in code.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in code, name
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                tops = (
                    [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else [alias.name for alias in node.names]
                )
                assert not {top.split(".")[0] for top in tops} & {
                    "models",
                    "errors",
                    "config",
                    "optim",
                    "data",
                    "files",
                }, name


@pytest.mark.parametrize("what", ["a folder with a file", "a file"])
def test_nothing_is_overwritten(tmp_path: Path, what: str) -> None:
    target = tmp_path / "out"
    if what == "a file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    model = make("base")
    with pytest.raises(UserError, match="is not"):
        export(model.settings, model.state_dict(), target)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [
        "out" if what == "a file" else "mine"
    ]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    model = make("base")
    export(model.settings, model.state_dict(), tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise OSError("disk full")

    model = make("base")
    with pytest.raises(UserError, match="another model"):
        export(model.settings, make("cotformer_full_depth").state_dict(), tmp_path / "out")
    monkeypatch.setattr(library_folder, "save_tensors", fail)
    with pytest.raises(OSError, match="disk full"):
        export(model.settings, model.state_dict(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# the authors' form


@pytest.mark.parametrize("path", sorted(PEER.glob("exps/*/*/*/ckpt.pt")), ids=lambda path: path.parent.name)
def test_an_authors_checkpoint_comes_back_as_it_was(path: Path) -> None:
    weights = load_checkpoint(path)["model"]
    settings = ModelSettings.from_args(config.add_defaults(trained_settings(path, {})))
    back = authors_weights(settings, weights)
    assert back.keys() == weights.keys()
    assert all(
        torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in weights.items()
    )


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("window", "modern", "modern_adm")])
def test_our_weights_come_back_from_the_authors_form(case: str) -> None:
    model, other = make(case), make(case)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    load_weights(other, authors_weights(model.settings, model.state_dict()))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_program_writes_the_authors_form(tmp_path: Path) -> None:
    source, target = next(PEER.glob("exps/*/*/official_cot_res/ckpt.pt")), tmp_path / "theirs" / "ckpt.pt"
    words = [sys.executable, "-m", "models.export", str(source), "--authors", str(target)]
    outcome = run(words)
    assert outcome.returncode == 0, outcome.stderr
    written, weights = load_checkpoint(target), load_checkpoint(source)["model"]
    assert written["itr"] == 150 and all(
        torch.equal(written["model"][name], value) for name, value in weights.items()
    )
    before = target.read_bytes()
    outcome = run(words)
    assert outcome.returncode == 2 and "is there already" in outcome.stderr and target.read_bytes() == before


def test_a_window_has_no_form_of_the_authors() -> None:
    with pytest.raises(UserError, match="refuses --attention_window_length"):
        authors_weights(make("window").settings, make("window").state_dict())


# the program


@pytest.mark.slow
def test_program_exports_an_authors_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "run"
    source.mkdir()
    for path in next(PEER.glob("exps/*/*/official_adm")).iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "eval_summary_ckpt.json").write_text('{"val_perplexity": 15.27}')
    outcome = run([sys.executable, "-m", "models.export", str(source), str(tmp_path / "out")])
    assert outcome.returncode == 0, outcome.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    assert ADM in card and "steps: 150" in card and "15.27" in card and "1 -> 2 x 3 -> 1 layers" in card
    words = "No tokenizer is in this folder: neither the checkpoint nor its dataset says"
    assert words in card and words in outcome.stdout  # 512 tokens are not GPT-2's


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "out"], "no such file or folder"),
        ([str(PEER), "out"], "no ckpt.pt"),
        ([str(PEER)], "required: folder"),
        ([str(PEER), str(PEER)], "is not empty"),
        ([str(PEER), "out", "--dtype", "int8"], "invalid choice: 'int8'"),
        ([str(PEER / "datasets/openwebtext2/val.bin"), "out"], "not a valid checkpoint"),
        ([str(PEER), "out", "--authors", "file"], "instead of it"),
    ],
)
def test_program_refuses_bad_input_in_a_line(words: list[str], said: str) -> None:
    outcome = run([sys.executable, "-m", "models.export", *words])
    assert outcome.returncode == 2 and said in outcome.stderr and len(outcome.stderr.splitlines()) == 1, (
        outcome.stderr
    )
    assert not (ROOT / "out").exists()


# with transformers

ELSEWHERE = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, pipeline

idx = torch.load("idx.pt")
found = {}
for folder in sorted(Path("exported").iterdir()):
    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, \
output_loading_info=True)
    assert not any(info.values()), (folder, info)
    torch.manual_seed(3)
    out = model(idx, attention_mask=torch.ones_like(idx), labels=idx)
    torch.manual_seed(3)
    said = model.generate(idx[:, :5], max_new_tokens=14)
    found[folder.name] = {"logits": out.logits.detach(), "loss": out.loss.detach(), "said": said}
for folder in sorted(Path("texts").iterdir()):
    write = pipeline("text-generation", model=str(folder), trust_remote_code=True)
    found[folder.name] = write("a cab", max_new_tokens=4, return_full_text=False)[0]["generated_text"]
model.save_pretrained("again")
again = AutoModelForCausalLM.from_pretrained("again", trust_remote_code=True)
assert torch.equal(again(idx).logits, model(idx).logits)
half = AutoModelForCausalLM.from_pretrained(Path("exported/with_bias"), trust_remote_code=True, \
dtype=torch.bfloat16)
assert half.model.transformer["wpe"].freqs.dtype == torch.float32 and half(idx).logits.dtype == torch.bfloat16
assert not [name for name in sys.modules if name.split(".")[0] in ("models", "optim", "config")]
torch.save(found, "found.pt")
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What transformers makes of all exports, in a process that cannot see this repository."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("elsewhere")
    torch.save(tokens(2, 16), folder / "idx.pt")
    for case in CASES:
        model = make(case)
        export(model.settings, model.state_dict(), folder / "exported" / case)
    for name, (known, size) in TEXTS.items():
        model = tiny_model("lncot", "--vocab_size", size)
        export(
            model.settings,
            model.state_dict(),
            folder / "texts" / name,
            tokenizer=tokenizer_files(known, 16)[0],
            end_of_text=known.end_of_text,
        )
    (folder / "look.py").write_text(ELSEWHERE)
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
    }
    outcome = subprocess.run(
        [sys.executable, "-I", "look.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return torch.load(folder / "found.pt")


def greedy(model: Any, idx: torch.Tensor, new: int) -> torch.Tensor:
    for _ in range(new):
        logits = model(idx[:, -model.settings.sequence_length :], get_logits=True)["logits"]
        idx = torch.cat((idx, logits[:, -1:].argmax(-1)), dim=1)
    return idx


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_transformers_loads_the_same_model(found: dict[str, Any], case: str) -> None:
    model, idx = make(case), tokens(2, 16)
    torch.manual_seed(3)  # pondernet draws
    logits = model(idx, get_logits=True)["logits"]
    assert (found[case]["logits"] - logits).abs().max() <= 1e-6
    assert found[case]["loss"].item() == pytest.approx(
        F.cross_entropy(logits[:, :-1].flatten(0, 1), idx[:, 1:].flatten()).item(), abs=1e-6
    )
    torch.manual_seed(3)
    assert torch.equal(found[case]["said"], greedy(model, idx[:, :5], 14))  # past the longest sequence, 16


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
@torch.no_grad()
def test_a_pipeline_writes_text_without_internet(found: dict[str, Any], name: str) -> None:
    known, size = TEXTS[name]
    encoding = gpt2()
    prompt = encoding.encode("a cab") if known == OF_BPE else list(map(CHARACTERS.index, "a cab"))
    said = greedy(tiny_model("lncot", "--vocab_size", size), torch.tensor([prompt]), 4)[
        0, len(prompt) :
    ].tolist()
    assert found[name] == (
        encoding.decode(said) if known == OF_BPE else "".join(CHARACTERS[token] for token in said)
    )


@pytest.mark.parametrize(("end", "stated"), [(None, None), (50256, 50256), (7, 7)])
def test_the_end_of_a_document_is_the_known_one(tmp_path: Path, end: int | None, stated: int | None) -> None:
    """However large the vocabulary is: 50,257 tokens and more may be another tokenizer's."""
    model = tiny_model("base", "--vocab_size", "60000", "--n_embd", "8")
    export(model.settings, model.state_dict(), tmp_path / "out", end_of_text=end)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()).get("eos_token_id") == stated


def wrapped(case: str) -> Any:
    pytest.importorskip("transformers")
    from models.hugging_face import CoTFormerConfig, CoTFormerForCausalLM

    model = make(case)
    whole = CoTFormerForCausalLM(CoTFormerConfig(**exporting.config_of(asdict(model.settings))))
    whole.model.load_state_dict(model.state_dict())
    return whole.eval()


# neither refuse padding nor draw
ALONE = [case for case in CASES if not case.endswith("_budget") and not case.startswith("ponder")]


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("case", ALONE)
def test_what_is_padded_is_as_if_it_were_alone(case: str, side: str) -> None:
    model, idx = wrapped(case), tokens(2, 12)
    real = {"left": slice(5, None), "right": slice(None, 7), "both": slice(2, 9)}[side]
    mask = torch.ones_like(idx)
    mask[1] = 0
    mask[1, real] = 1
    padded = idx.where(mask.bool(), 0)
    alone, whole = idx[1:, real], idx[:1]
    with torch.no_grad():
        out = model(padded, attention_mask=mask, labels=padded)
        assert (out.logits[1, real] - model(alone).logits[0]).abs().max() < 1e-5
        assert (out.logits[0] - model(whole).logits[0]).abs().max() < 1e-5
        # means over all labels but a row's first
        losses = model(alone, labels=alone).loss * 6 + model(whole, labels=whole).loss * 11
        assert out.loss.item() == pytest.approx(losses.item() / 17, abs=1e-5)


@pytest.mark.parametrize("case", ALONE)
@torch.no_grad()
def test_prompts_padded_on_the_left_go_on_as_alone(case: str) -> None:
    model, idx = wrapped(case), tokens(2, 9)
    mask = torch.ones_like(idx)
    mask[1, :6] = 0
    # past the longest sequence, 16
    said = model.generate(idx.where(mask.bool(), 0), attention_mask=mask, max_new_tokens=12, pad_token_id=0)
    assert torch.equal(said[0], greedy(model.model, idx[:1], 12)[0])
    assert torch.equal(said[1, 6:], greedy(model.model, idx[1:, 6:], 12)[0])


@pytest.mark.parametrize("case", ALONE)
@torch.no_grad()
def test_new_tokens_alone_are_computed_in_generation(case: str) -> None:
    model, idx = wrapped(case), tokens(2, 5)
    seen: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, given, made: seen.append(given[0].shape[1])
    )
    said = model.generate(idx, max_new_tokens=6, use_cache=True)
    hook.remove()
    assert seen == [5, 1, 1, 1, 1, 1]
    assert torch.equal(said, greedy(model.model, idx, 6)) and torch.equal(
        said, model.generate(idx, max_new_tokens=6, use_cache=False)
    )


@torch.no_grad()
def test_beams_are_the_same_with_and_without_a_cache() -> None:
    model, idx = wrapped(LNCOT), tokens(2, 5)
    beams = [model.generate(idx, max_new_tokens=6, num_beams=3, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*beams)


@pytest.mark.parametrize("case", ALONE)
def test_hidden_states_are_those_of_the_blocks(case: str) -> None:
    model, idx = wrapped(case), tokens(2, 12)
    out = model(idx, output_hidden_states=True)
    begin, middle, end = model.model.settings.stack_sizes
    assert len(out.hidden_states) == 1 + begin + middle * model.model.settings.n_repeat + end
    assert torch.equal(out.logits, model(idx).logits) and torch.equal(
        out.hidden_states[0], model.get_input_embeddings()(idx)
    )
    logits, softcap = F.linear(out.hidden_states[-1], model.model.head[1]), model.model.softcap
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    assert torch.equal(logits, out.logits)


@pytest.mark.parametrize(
    ("case", "said"),
    [("adm_budget", "passes leave tokens out"), ("pondernet", "leaves after a pass of its own")],
)
def test_hidden_states_that_are_not_of_all_tokens_are_refused(case: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wrapped(case)(tokens(2, 12), output_hidden_states=True)


def test_embeddings_stand_for_tokens() -> None:
    model, idx = wrapped(LNCOT), tokens(2, 12)
    mask = torch.ones_like(idx)
    mask[1, :4] = 0
    embedded = model.get_input_embeddings()(idx)
    assert torch.equal(
        model(inputs_embeds=embedded, attention_mask=mask).logits, model(idx, attention_mask=mask).logits
    )
    for given in ({}, {"input_ids": idx, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="give input_ids or inputs_embeds"):
            model(**given)


@pytest.mark.parametrize("case", ["base", LNCOT, "but_halting_freeze_input_on_stop"])
def test_gradient_checkpointing_changes_no_gradient(case: str) -> None:
    model, idx = wrapped(case).train(), tokens(2, 12)
    gradients, runs = [], []
    for turn in range(2):
        if turn:
            model.gradient_checkpointing_enable()
        count: list[int] = []
        hook = model.model.transformer["h" if case == "base" else "h_mid"][0].ln_1.register_forward_hook(
            lambda *given, count=count: count.append(1)
        )
        gradients.append(torch.autograd.grad(model(idx, labels=idx).loss, list(model.parameters())))
        hook.remove()
        runs.append(len(count))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True)) and runs[1] > runs[0]
    model.gradient_checkpointing_disable()
    assert model.model.settings.activation_checkpointing == "none"


def test_unlabelled_tokens_do_not_count_and_the_loss_trains() -> None:
    model, idx = wrapped("cotformer_full_depth"), tokens(2, 12)
    labels = idx.clone()
    labels[1, 6:] = -100
    out = model.train()(idx, labels=labels)
    # ignores -100 by itself
    wanted = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert out.loss.item() == pytest.approx(wanted.item(), abs=1e-6)
    mine, theirs = (
        torch.autograd.grad(loss, model.get_input_embeddings().weight, retain_graph=True)[0]
        for loss in (out.loss, wanted)
    )
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_what_would_be_wrong_is_refused() -> None:
    model, idx = wrapped("base"), tokens(2, 12)
    left, right = torch.ones_like(idx), torch.ones_like(idx)
    left[0, 0] = right[0, -1] = 0
    with pytest.raises(ValueError, match=r"attention_mask is \(2, 11\), the tokens are \(2, 12\)"):
        model(idx, attention_mask=left[:, 1:])
    with pytest.raises(ValueError, match="17 tokens are more than the 16"):
        model(tokens(1, 17))
    with pytest.raises(ValueError, match="padding on the left only"):
        model.generate(idx, attention_mask=right, max_new_tokens=1)
    with pytest.raises(ValueError, match="without padding"):
        wrapped("adm_budget")(idx, attention_mask=right)
    with pytest.raises(ValueError, match="without padding"):
        wrapped("but_mod_budget").generate(idx, attention_mask=left, max_new_tokens=1)
    with pytest.raises(ValueError, match="without padding"):
        wrapped(ADM).train()(idx, attention_mask=right)  # in training everyone's budget is drawn
