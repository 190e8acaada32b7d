"""A checkpoint as a folder that transformers loads, without this repository.

    python -m models.export exps/stdlib/cotformer_full_depth_lnmid_depthemb/NAME exported/
    python -m models.export exps/.../ckpt_40000.pt exported/ --dtype bfloat16
    python -m models.export exps/.../NAME --authors theirs/ckpt.pt       # a checkpoint for the authors' code
    python -m models.export exps/.../NAME --format bytes --output step.pt    # for the public byte GPT's loop
    python -m models.export exps/.../NAME exported/ --format library    # the whole checkpoint, as safetensors

    AutoModelForCausalLM.from_pretrained("exported/", trust_remote_code=True)

The folder holds the weights (safetensors), config.json, a model card, the tokenizer where it is known which,
and the files of the model itself, copied from here. Adapters (--adapt) are merged into the weights in every
form.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from errors import UserError
from models.byte_format import BYTE_GPT

ROOT = Path(__file__).resolve().parent.parent
INTERFACE = Path("models/hugging_face.py")
WEIGHTS = "model.safetensors"
PROG = "models.export"
LIBRARY = "library"  # the training library's folder
PREFIX = "model."  # the name of the Transformer in the interface
DTYPES = ("float32", "bfloat16")
OF_MERGED = (
    "itr",
    "data",
    "vocabulary",
)  # parts of a checkpoint that its weights have with merged adapters too


def local_imports(source: str) -> dict[str, Path]:
    """Modules of this repository that a source file imports, and their files.

    They must be imported by `from X import Y`.
    """
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            path = Path(*node.module.split(".")).with_suffix(".py")
            if (ROOT / path).is_file():
                found[node.module] = path
    return found


def model_code() -> dict[str, str]:
    """Name -> text of the interface and of everything it needs, side by side, importing each other
    relatively.
    """
    waiting, code = [INTERFACE], dict[str, str]()
    taken = dict[str, Path]()
    while waiting:
        path = waiting.pop()
        assert taken.setdefault(path.name, path) == path, (
            f"two files named {path.name} cannot stand side by side"
        )
        if path.name in code:
            continue
        text = (ROOT / path).read_text(encoding="utf-8")
        modules = local_imports(text)
        for module, target in modules.items():
            text = re.sub(
                rf"^(\s*)from {re.escape(module)} import",
                rf"\1from .{target.stem} import",
                text,
                flags=re.MULTILINE,
            )
        assert not local_imports(text), f"{path} imports its neighbours in a way that cannot be rewritten"
        code[path.name] = text
        waiting += modules.values()
    return code


def config_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a model with these settings (the fields of ModelSettings).

    The stated dtype is that of computation, float32, however the weights are stored: half precision
    throughout is not what these models were trained in (autocast), and stays a choice of who loads them.
    """
    stem = INTERFACE.stem
    return {
        "architectures": ["CoTFormerForCausalLM"],
        "model_type": "cotformer",
        "auto_map": {
            "AutoConfig": f"{stem}.CoTFormerConfig",
            "AutoModelForCausalLM": f"{stem}.CoTFormerForCausalLM",
        },
        "dtype": "float32",
        "tie_word_embeddings": settings["block"] == "published",
        **settings,
    }


def generation_config(end_of_text: int | None) -> dict[str, Any]:
    """Greedy, with kept keys and values, until the end of the document where a token is known for it."""
    end = {} if end_of_text is None else {"eos_token_id": end_of_text, "pad_token_id": end_of_text}
    return {"do_sample": False, "use_cache": True, **end}


def stored_weights(settings: Any, weights: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Tensors by their names in the file: each tied one once, buffers (angles) always in float32.

    Raises UserError.
    """
    import torch

    from models.transformer import Transformer
    from models.weights import load_weights

    model = Transformer(settings)
    load_weights(model, weights)
    with torch.no_grad():
        stored = {name: value.to(getattr(torch, dtype)) for name, value in model.named_parameters()}
        stored |= dict(model.named_buffers())
    return {PREFIX + name: value.detach().contiguous() for name, value in stored.items()}


def authors_weights(settings: Any, weights: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict that the authors' model of these settings has, name by name, as their main.py loads it.
    Raises UserError.

    Beside ours it has causal masks in the rows that keep them, and a router after the last pass, which
    nothing reads: that of `weights` where they are the authors', else zeros.
    """
    import torch

    from models.layers import Block
    from models.transformer import Transformer
    from models.weights import WRAPPERS, load_weights

    variant, length = settings.variant, settings.sequence_length
    if settings.attention_window_length is not None:
        raise UserError(
            "the authors' code refuses --attention_window_length under torch 2: there is no checkpoint of"
            " theirs for this model"
        )
    beyond = [name for name in settings.beyond_the_paper() if name != "scaled_init"]
    if beyond:
        raise UserError(f"the authors' code has no --{', --'.join(beyond)}: it could not load this model")
    model = Transformer(settings)
    load_weights(model, weights)
    state: dict[str, Any] = dict(model.state_dict())
    if variant.routes:
        last = f"transformer.mod.{settings.n_repeat - 1}.mod_router.weight"
        state[last] = {WRAPPERS.sub("", name): value for name, value in weights.items()}.get(
            last, torch.zeros(1, settings.n_embd)
        )
    if variant.exits_each_pass or (variant.attends == "all" and not variant.adaptive):
        mask = torch.ones(length, length).tril().view(1, 1, length, length)
        state |= {
            f"{name}.attn.bias": mask for name, module in model.named_modules() if isinstance(module, Block)
        }
    return state


def check_target(folder: Path) -> None:
    """Raises UserError where the folder holds something, or cannot be one."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give a new folder")


def export(
    settings: Any,
    weights: Mapping[str, Any],
    folder: Path,
    dtype: str = "float32",
    card: str = "",
    tokenizer: Mapping[str, Any] = MappingProxyType({}),
    end_of_text: int | None = None,
) -> None:
    """Write a model to a folder that is new or empty: all of it or nothing.

    settings: ModelSettings. weights: state dict of a Transformer, ours or the authors'. card: README.md of
    the folder.
    tokenizer: name -> JSON of its files. end_of_text: the token that ends a document, where one is known.
    Raises UserError for weights of another model.
    """
    from dataclasses import asdict

    from files import fill_folder, write_atomically, write_json
    from optim.library_folder import save_tensors

    check_target(folder)
    stored = stored_weights(settings, weights, dtype)

    def fill(place: Path) -> None:
        for name, text in model_code().items():
            write_atomically(place / name, text)
        write_json(place / "config.json", config_of(asdict(settings)))
        save_tensors(stored, place / WEIGHTS, folder / WEIGHTS)
        with suppress(OSError):  # a mount without modes
            # safetensors lets only the owner read
            shutil.copymode(place / "config.json", place / WEIGHTS)
        write_json(place / "generation_config.json", generation_config(end_of_text))
        for name, content in tokenizer.items():
            write_json(place / name, content)
        write_atomically(place / "README.md", card)

    fill_folder(folder, fill)


DESCRIPTION = (
    "python -m models.export CHECKPOINT FOLDER: write a folder that transformers loads. With --authors FILE"
    " instead of FOLDER: a checkpoint that the authors' code loads. With --format bytes --output FILE: one"
    " that the public byte GPT's training loop loads and resumes. With --format library: the whole checkpoint"
    " as a folder of safetensors and JSON, which every program here reads."
)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line. Raises UserError."""
    from config import Arguments  # late, as below

    parser = Arguments(
        prog=PROG,
        description=DESCRIPTION,
    )
    parser.add_argument(
        "checkpoint",
        help=(
            "experiment folder (its newest valid checkpoint is taken) or checkpoint file, ours or the"
            " authors'"
        ),
    )
    parser.add_argument("folder", type=Path, nargs="?", help="where to write; must be new or empty")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="dtype of the stored weights [float32]"
    )
    parser.add_argument(
        "--tokenizer",
        help="tokenizer, where neither checkpoint nor dataset names one: gpt2, bytes, or a tokenizer.json",
    )
    parser.add_argument(
        "--authors",
        type=Path,
        metavar="FILE",
        help="write the weights as the authors' code stores them, under their names",
    )
    parser.add_argument(
        "--format",
        choices=(BYTE_GPT, LIBRARY),
        help="write another form: bytes needs --output, library a folder",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="with --format bytes: the file to write, or a folder, where it is named by its step",
    )
    given = parser.parsed(argv)
    if (given.format == BYTE_GPT) != (given.output is not None):
        parser.error("--format bytes and --output FILE go together")
    if given.format == LIBRARY and given.folder is None:
        parser.error(
            "--format library writes a folder: python -m models.export --format library CHECKPOINT FOLDER"
        )
    if (given.folder, given.authors, given.output).count(None) != 2:
        parser.error(
            "the following arguments are required: folder, or instead of it --authors FILE, or --format bytes"
            " --output FILE"
        )
    if given.format == LIBRARY and (given.dtype != "float32" or given.tokenizer):
        parser.error("--dtype and --tokenizer are of folders for transformers: a checkpoint stays as it is")
    if given.folder is None and (given.dtype != "float32" or given.tokenizer):
        parser.error("--dtype and --tokenizer are of folders: a file holds float32 weights alone")
    return given


# As a program, this file stands above the rooms, which know nothing of each other: the functions below import
# config, data and optim.


def run(given: argparse.Namespace) -> int:
    """Export what the command line asks for. Raises UserError."""
    import config
    from models.settings import ModelSettings
    from optim.opening import open_checkpoint
    from optim.restore import find_checkpoint, trained_settings

    file = given.authors or given.output
    if given.folder is not None:
        check_target(given.folder)
    elif os.path.lexists(file) and not (given.output and file.is_dir()):
        raise UserError(f"{file} is there already; give a new file")
    path = find_checkpoint(given.checkpoint, "checkpoint")
    state = without_adapters(path, open_checkpoint(path))
    if given.format == LIBRARY:
        export_library(path, state, given.folder)
        print(
            f"step {state.get('itr') or 0} of {path} is in {given.folder}, as the training library keeps it"
        )
        return 0
    args = config.add_defaults(trained_settings(path, state))
    problems = config.check(args)
    if problems:
        raise UserError(
            "\n".join(f"the settings of {path} cannot be used: {problem}" for problem in problems)
        )
    settings = ModelSettings.from_args(args)
    if given.authors is not None:
        export_for_authors(settings, state, args, given.authors)
        print(
            f"{settings.model} of {path} is in {given.authors}, with the authors' names; their eval.py"
            " reads summary.json beside it"
        )
        return 0
    if given.output is not None:
        target = export_byte_file(state, args, given.output)
        print(f"{settings.model} of {path} is in {target}, as the byte GPT's training loop saves it")
        return 0
    tokenizer_line = export_folder(settings, path, state, args, given)
    print(
        f"{settings.model} of {path} is in {given.folder}: transformers loads it with trust_remote_code=True"
    )
    print(tokenizer_line)
    return 0


def without_adapters(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's weights, their adapters merged, with its settings and what else is not for resuming; or
    the checkpoint itself, where it has none. Raises UserError.
    """
    from models.adapters import is_adapters, plain_weights
    from optim.restore import trained_settings

    if not any(map(is_adapters, state["model"])):
        return state
    args = trained_settings(path, state)
    weights = plain_weights(state["model"], args)
    print("note: adapters are merged into the weights; nothing can resume their training", file=sys.stderr)
    kept = {name: state[name] for name in OF_MERGED if name in state}
    return {**kept, "model": weights, "args": {**args, "adapt": None}}


def export_library(path: Path, state: dict[str, Any], folder: Path) -> None:
    """Write the training library's folder: a whole checkpoint of ours, or weights and settings of another.

    Raises UserError.
    """
    from files import fill_folder
    from optim import library_folder
    from optim.restore import trained_settings
    from optim.resumable import FORMAT

    if state.get("format") != FORMAT:
        kept = {"model": state["model"], "itr": state.get("itr") or 0, "args": trained_settings(path, state)}
        state = {**kept, **{name: state[name] for name in ("vocabulary",) if name in state}}
    fill_folder(folder, lambda place: library_folder.write(state, place, folder))


def export_for_authors(
    settings: Any, state: Mapping[str, Any], args: argparse.Namespace, target: Path
) -> None:
    """Write a checkpoint that the authors' code loads. Raises UserError where it could not."""
    from optim.checkpoint import save_checkpoint

    target.parent.mkdir(parents=True, exist_ok=True)
    weights = authors_weights(settings, state["model"])
    save_checkpoint(target, {"model": weights, "itr": state.get("itr"), "args": vars(args)})


def export_byte_file(state: Mapping[str, Any], args: argparse.Namespace, target: Path) -> Path:
    """Write a checkpoint that the byte GPT's training loop loads; returns its path. Raises UserError."""
    from models.byte_format import periodic_name
    from optim.byte_file import content_of, write

    content = content_of(state, args)
    if target.is_dir():
        target = target / periodic_name(content["step"])
        if os.path.lexists(target):
            raise UserError(f"{target} is there already; give a new file")
    write(content, target)
    if "optimizer_state" not in content:
        print(
            "note: without an optimiser's state: its loop has one AdamW over all parameters", file=sys.stderr
        )
    return target


def export_folder(
    settings: Any, path: Path, state: dict[str, Any], args: argparse.Namespace, given: argparse.Namespace
) -> str:
    """Write a folder for transformers. Returns a line on its tokenizer. Raises UserError."""
    from data.tokenizer import named
    from data.tokenizer_files import tokenizer_files
    from data.vocabulary import vocabulary_of
    from optim.card import facts_of, model_card

    known = vocabulary_of(state, args, named(given.tokenizer) if given.tokenizer else None)
    tokenizer, line = tokenizer_files(known, settings.sequence_length)
    card = model_card(settings, given.dtype, facts_of(path, state, args), line)
    export(settings, state["model"], given.folder, given.dtype, card, tokenizer, known.end_of_text)
    return line


def main(argv: list[str] | None = None) -> int:
    import config

    return config.guarded(PROG, lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
