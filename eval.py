"""Perplexity of a checkpoint over the validation split.

    python eval.py --checkpoint exps/stdlib/cotformer_full_depth_lnmid_depthemb/NAME      # the newest one in the folder
    python eval.py --checkpoint exps/.../ckpt_40000.pt --eval_seq_length 128 --eval_length_factor 0.8 0.5 0.3 0.1

The settings are those that the checkpoint was trained with; any flag given overrides one. Also reads checkpoints of
the authors' implementation. Writes eval_summary_<checkpoint's name>.json.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import config
import distributed
from config.flags import FLAGS, Flag
from errors import UserError

OWN_FLAGS = {"evaluation of a checkpoint": (
    Flag("checkpoint", str, None, "experiment folder (its newest valid checkpoint is taken) or a checkpoint file"),
    Flag("output_dir", str, None, "where to write the summary (None: beside the checkpoint)"),
)}
# of the training run, and no business of an evaluation elsewhere
NOT_INHERITED = {"config", "device", "distributed_backend", "data_dir", "data_in_ram", "dataset", "results_base_folder", "stop_file"}


def find_checkpoint(name: str | None) -> Path:
    """The file that --checkpoint means. Raises UserError."""
    from optim.checkpoint import newest_valid

    if name is None:
        raise UserError("--checkpoint is needed: an experiment folder or a checkpoint file")
    path = Path(name)
    if path.is_dir():
        newest, notes = newest_valid(path)
        for note in notes:
            print(f"warning: {note}")
        if newest is None:
            raise UserError(f"--checkpoint {path}: no ckpt.pt or ckpt_N.pt in this folder")
        return newest
    if not path.is_file():
        raise UserError(f"--checkpoint {path}: no such file or folder")
    return path


def trained_settings(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Flags of the training run: from the checkpoint, else from summary.json beside it (the authors' checkpoints)."""
    from files import read_json
    from optim.experiment import SUMMARY

    args = state.get("args") or (read_json(path.parent / SUMMARY) or {}).get("args")
    if not isinstance(args, dict):
        raise UserError(f"{path} holds no settings and there is no {SUMMARY} with them beside it; give the model's flags by --config")
    settings = {}
    for name, value in args.items():
        if name in FLAGS and not (value is None and FLAGS[name].default is not None):
            try:
                settings[name] = config.convert(FLAGS[name], value)
            except ValueError as error:
                raise UserError(f"the settings of {path} cannot be used: {name} {error}") from None
    return settings


def resolve(path: Path, state: dict[str, Any], given: dict[str, Any]) -> Namespace:
    """All flags for this evaluation: defaults, then the training run's, then those given here. Exits 2 on bad ones."""
    trained = trained_settings(path, state)
    inherited = {name: value for name, value in trained.items() if name not in NOT_INHERITED}
    if "dataset" in trained:
        inherited["dataset"] = trained["dataset"]
        if "data_dir" in trained and given.get("dataset") is None:
            inherited["data_dir"] = trained["data_dir"]
    args = config.add_defaults({**inherited, **{k: v for k, v in given.items() if k in FLAGS}})
    problems = config.check(args)
    if problems:
        config.stop("eval.py", problems)
    if args.eval_seq_length is not None:
        args.sequence_length = args.eval_seq_length
    return args


def intervals(window_losses: Any, loss: float) -> dict[str, Any]:
    """Spread of the mean loss over windows (one model): standard deviation, error of the mean, 95% intervals."""
    from optim.evaluate import perplexity

    n = window_losses.numel()
    std = float(window_losses.std()) if n > 1 else 0.0
    sem = std / math.sqrt(n)
    low, high = loss - 1.96 * sem, loss + 1.96 * sem
    return {"val_loss_std": std, "val_loss_sem": sem, "val_loss_ci95": [low, high],
            "val_perplexity_ci95": [perplexity(low), perplexity(high)]}


def run(args: Namespace, path: Path, state: dict[str, Any], output_dir: Path, world: Any) -> None:
    """Evaluate and write the summary."""
    import torch
    from tqdm import tqdm

    from data import open_splits
    from data.setup import ensure_prepared
    from files import write_json
    from models import make_model_from_args
    from models.weights import load_weights
    from optim.evaluate import evaluate, perplexity
    from optim.setup import autocaster, set_precision

    set_precision(args.deterministic)
    world.from_main(lambda: ensure_prepared(args.dataset, args.data_dir))
    splits = open_splits(args.dataset, args.data_dir, args.sequence_length, args.vocab_size)
    model = make_model_from_args(args)
    load_weights(model, state["model"])
    model.to(world.device).eval()
    tokens = args.eval_sample_size or splits.val.n_windows * args.sequence_length
    batches = min(math.ceil(tokens / (args.batch_size * args.sequence_length)), math.ceil(splits.val.n_windows / args.batch_size))
    begin = time.monotonic()
    with tqdm(total=batches, unit="batch", desc="evaluating", disable=not (world.is_main and sys.stderr.isatty())) as bar:
        result = evaluate(model, splits.val, args.batch_size, world, autocaster(args.dtype, world.device), batches,
                          progress=lambda: bar.update(world.size) and None)
    assert result is not None, "nothing asked this evaluation to stop"
    seconds = time.monotonic() - begin
    if not world.is_main:
        return
    loss = result["val_loss"]
    summary = {
        "val_loss": loss, "val_perplexity": perplexity(loss), "val_acc": result["val_acc"], "average_depth": result["average_depth"],
        "n_batches": result["n_batches"], "n_tokens": result["n_tokens"], **intervals(result["window_losses"], loss),
        "val_loss_batch_mean": result["val_loss_batch_mean"], "val_acc_batch_mean": result["val_acc_batch_mean"],
        "tokens_per_second": result["n_tokens"] / seconds, "itr": state.get("itr"), "checkpoint": str(path), "args": vars(args),
        "parameters": sum(p.numel() for p in model.parameters()), "torch": torch.__version__,
    }
    target = output_dir / f"eval_summary_{path.stem}.json"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(target, summary)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None
    low, high = summary["val_perplexity_ci95"]
    print(f"checkpoint         {path}\nvalidation loss    {loss:.7f} nats a token\n"
          f"perplexity         {summary['val_perplexity']:.4f}  (95% interval over windows {low:.4f} to {high:.4f})\n"
          f"accuracy           {summary['val_acc']:.7f}\naverage depth      {summary['average_depth']:.4f} layers\n"
          f"tokens             {summary['n_tokens']:,} in {summary['n_batches']} batches, {summary['tokens_per_second']:,.0f} tokens/s\n"
          f"summary            {target}")


def main(argv: list[str] | None = None) -> int:
    given, problems = config.parse(argv, prog="eval.py", description="Perplexity of a checkpoint.", extra=OWN_FLAGS)
    if problems:
        config.stop("eval.py", problems)

    def work() -> int:
        from optim.checkpoint import load_checkpoint

        path = find_checkpoint(given.get("checkpoint"))
        state = load_checkpoint(path)
        args = resolve(path, state, given)
        world = distributed.start(args.distributed_backend, args.device)
        try:
            run(args, path, state, Path(given.get("output_dir") or path.parent), world)
        finally:
            world.close()
        return 0

    return config.guarded("eval.py", work)


if __name__ == "__main__":
    sys.exit(main())
