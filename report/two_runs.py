"""What differs between two trainings: flags, weights, validation loss, jobs. Or between two evaluations.

    python -m report compare A B        # folders or names of experiments, or eval_summary_*.json files

For a run that ends badly beside one that did not: the first section says what was asked for, the others what
became of it. Whatever cannot be read is a line of its section.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import config
from config.identity import BATCH, cut_matters, effective_batch, names_of
from config.schema import EVALUATION, IDENTITY, PLACE, SCHEDULE
from data.bins import data_differences
from errors import UserError
from files import read_json
from optim.evaluations import UNNAMED, Evaluated, Row, by_kind, evaluations, measured, of_sources
from optim.names import EVALUATIONS, FINAL, METRICS, numbered
from optim.peek import step_in
from optim.reader import Record, read_rows
from report.pairs import section as in_pairs

SCOPES = {
    IDENTITY: "what is trained",
    SCHEDULE: "its schedule",
    EVALUATION: "how it is evaluated",
    PLACE: "where and how it runs",
}
MOST_STEPS = 10  # of the validation losses that are shown
MOST_NAMES = 5  # of tensors that are shown, and of steps that were passed over


def sections(a: Path, b: Path) -> Iterator[list[str]]:
    """Lines of each section, the quick ones first.

    Raises UserError where A or B is neither an experiment nor an evaluation.
    """
    both = {is_evaluation(path) for path in (a, b)}
    yield [f"A: {a}", f"B: {b}"]
    for section in SECTIONS if both == {False} else OF_EVALUATIONS if both == {True} else OF_BOTH:
        found = section(a, b)
        if found:
            yield found


def is_evaluation(path: Path) -> bool:
    """Whether a path is that of an evaluation's summary, not of an experiment.

    Raises UserError for another file.
    """
    if path.is_dir():
        return False
    if path.suffix != ".json":
        raise UserError(f"{path} is neither the folder of an experiment nor an evaluation's summary (.json)")
    return True


# flags


def record_of(path: Path) -> Row:
    """What a training or an evaluation recorded of itself: `args`, and `data` where it did.

    Raises UserError.
    """
    if is_evaluation(path):
        summary = read_json(path) or {}
        return {"args": summary.get("args"), "data": {"val": summary.get("data")}}
    record = Record(path)
    return {"args": record.flags, "data": (record.summary or {}).get("data")}


def flags_of(path: Path, recorded: Mapping[str, Any]) -> Namespace:
    """All flags. Raises UserError where they are not recorded."""
    if not isinstance(recorded.get("args"), dict):
        raise UserError(f"{path}: neither a checkpoint nor a summary there has its flags")
    try:
        return config.add_defaults(config.recorded(recorded["args"]))
    except ValueError as error:
        raise UserError(f"{path}: args.{error}") from None


def flags(a: Path, b: Path) -> list[str]:
    """Flags that differ, by what they change."""
    lines = ["flags that differ (A | B)"]
    try:
        recorded = [record_of(path) for path in (a, b)]
        mine, theirs = (vars(flags_of(path, each)) for path, each in zip((a, b), recorded, strict=True))
    except UserError as error:
        return [*lines, f"  {error}"]
    for scope, what in SCOPES.items():
        names = dict.fromkeys((*names_of(scope, args=mine), *names_of(scope, args=theirs)))
        differing = [name for name in names if mine.get(name) != theirs.get(name)]
        lines += [f"  {what}:"] * bool(differing) + [
            f"    --{name}: {mine.get(name)} | {theirs.get(name)}" for name in differing
        ]
    cut = any(mine[name] != theirs[name] for name in BATCH)
    if cut and effective_batch(mine) == effective_batch(theirs) and not cut_matters(mine):
        lines.append("  the batch is cut otherwise, which this model's training does not depend on")
    data = [each["data"] if isinstance(each.get("data"), Mapping) else None for each in recorded]
    words = (
        ("the checkpoint's", "B's"),
        ("these", "A's"),
        ("the checkpoint has", "B has"),
        ("this run", "A"),
    )
    for line in data_differences(*data):
        for theirs_word, ours_word in words:
            line = line.replace(theirs_word, ours_word)
        lines.append(f"  {line}")
    return lines if len(lines) > 1 else [f"{lines[0]}: none"]


# weights


def checkpoints_of(folder: Path) -> dict[int, Path]:
    """Checkpoints by the step that they hold, the newest first; those without one are left out."""
    found = {
        step: path for path in (*numbered(folder), folder / FINAL) if (step := step_in(path)) is not None
    }
    return dict(sorted(found.items(), reverse=True))


def weights(a: Path, b: Path) -> list[str]:
    """Names, shapes and distance of the weights at each step of which both have a checkpoint; without one,
    of the newest of each.
    """
    lines = ["weights"]
    for name, folder in (("A", a), ("B", b)):
        unread = [
            path.name
            for path in (*numbered(folder), folder / FINAL)
            if path.exists() and step_in(path) is None
        ]
        lines += [f"  {name}: {each} is damaged, or does not tell its step" for each in unread]
    mine, theirs = checkpoints_of(a), checkpoints_of(b)
    lines += [
        f"  {name}: no checkpoint in {folder}"
        for name, found, folder in (("A", mine, a), ("B", theirs, b))
        if not found
    ]
    if not mine or not theirs:
        return lines
    pairs = [(f"step {step:,}", mine[step], theirs[step]) for step in mine if step in theirs]
    if not pairs:
        lines.append("  no step in common: the newest of each")
        pairs = [(f"steps {max(mine):,} | {max(theirs):,}", mine[max(mine)], theirs[max(theirs)])]
    for steps, first, second in pairs:
        lines.append(f"  {steps}: {first.name} | {second.name}")
        lines += [f"    {line}" for line in distance(first, second)]
    return lines


def state_of(path: Path) -> dict[str, Any]:
    """The weights in a checkpoint, under the names of the bare network. Raises UserError."""
    from models.weights import WRAPPERS
    from optim.checkpoint import load_checkpoint

    return {WRAPPERS.sub("", name): tensor for name, tensor in load_checkpoint(path)["model"].items()}


def only(which: str, names: Collection[str]) -> list[str]:
    """A line on the tensors that one of the two has alone."""
    more = len(names) - MOST_NAMES
    shown = ", ".join(sorted(names)[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
    return [f"only {which} has {shown}"] if names else []


def distance(first: Path, second: Path) -> list[str]:
    """How two checkpoints differ; norms are of all tensors that both have in one shape."""
    import torch

    try:
        mine, theirs = state_of(first), state_of(second)
    except UserError as error:
        return [str(error)]
    lines = [*only("A", mine.keys() - theirs.keys()), *only("B", theirs.keys() - mine.keys())]
    norms: dict[str, tuple[float, float]] = {}  # of the difference, and of A's tensor
    for name in [name for name in mine if name in theirs]:
        one, other = mine[name], theirs[name]
        if (
            not isinstance(one, torch.Tensor)
            or not isinstance(other, torch.Tensor)
            or one.shape != other.shape
        ):
            lines.append(f"{name}: {tuple(getattr(one, 'shape', ()))} | {tuple(getattr(other, 'shape', ()))}")
            continue
        for which, tensor in (("A", one), ("B", other)):
            if not bool(torch.isfinite(tensor).all()):
                lines.append(
                    f"{name}: {int((~torch.isfinite(tensor)).sum()):,} numbers of {which} are not finite"
                )
        one, other = one.double(), other.double()
        norms[name] = float((one - other).norm()), float(one.norm())
    if not norms:
        return [*lines, "no tensor in common"]
    apart, whole = (sum(norm**2 for norm in column) ** 0.5 for column in zip(*norms.values(), strict=True))
    if apart == 0:
        return [*lines, f"all {len(norms)} tensors that both have are equal"]
    lines.append(
        f"|A - B| / |A| = {apart / (whole or 1):.3g} over {len(norms)} tensors,"
        f" {sum(norm == 0 for norm, _ in norms.values())} of them equal"
    )
    largest = sorted(norms, key=lambda name: norms[name][0] / (norms[name][1] or 1), reverse=True)[
        :MOST_NAMES
    ]
    return [
        *lines,
        "largest: "
        + ", ".join(
            f"{name} {norms[name][0] / (norms[name][1] or 1):.3g}" for name in largest if norms[name][0]
        ),
    ]


# losses


def losses(a: Path, b: Path) -> list[str]:
    """Validation losses at steps that both have evaluated, of each evaluation under its name, and the last
    values of one that measures no loss.
    """
    problems: list[str] = []
    mine, theirs = (evaluations(by_kind(read_rows(folder / METRICS, problems))) for folder in (a, b))
    lines = ["validation loss, nats per token", *(f"  {problem}" for problem in problems)]
    if not any([*mine, *theirs]):
        nothing = Evaluated("")
        return lines + losses_of(a, b, mine.get("", nothing), theirs.get("", nothing))
    for name in mine:
        if name in theirs:
            lines.append(f"  {name or UNNAMED}")
            lines += [f"  {line}" for line in losses_of(a, b, mine[name], theirs[name])]
    for which, own, others in (("A", mine, theirs), ("B", theirs, mine)):
        lines += [
            f"  {line}" for line in only(which, [name or UNNAMED for name in own if name not in others])
        ]
    return lines


def last_values(mine: Evaluated, theirs: Evaluated) -> list[str]:
    """Numbers of an evaluation that measures no loss, at the last step that both have."""
    found: list[dict[Any, Row]] = []
    for one in (mine, theirs):
        found.append({row.get("step"): row for row in one.during})
    common = found[0].keys() & found[1].keys()
    if not common:
        return [f"  no step in common: A has {len(found[0])} evaluations, B {len(found[1])}"]
    step = max(common)
    first, second = (each[step] for each in found)
    values = measured(first).items()
    return [f"  step {step:,}: {key} {value:.6g} | {second.get(key)}" for key, value in values]


def losses_of(a: Path, b: Path, first: Evaluated, second: Evaluated) -> list[str]:
    """Losses of an evaluation by step: of milestones, else spread evenly, and where they are furthest
    apart.
    """
    mine, theirs = (one.by_step("val_loss") for one in (first, second))
    if not mine and not theirs and first.during:
        return last_values(first, second)
    common = sorted(mine.keys() & theirs.keys())
    if not common:
        return [f"  no step in common: A has {len(mine)} evaluations, B {len(theirs)}"]
    apart = {step: theirs[step]["val_loss"] - mine[step]["val_loss"] for step in common}
    furthest = max(common, key=lambda step: abs(apart[step]))
    if apart[furthest] == 0:
        return [f"  equal at all {len(common)} steps in common, {common[0]:,} to {common[-1]:,}"]
    lines = [f"  {'step':>8}  {'A':>8}  {'B':>8}  {'B - A':>8}"]
    for step in sorted({*milestones(a, b, common), furthest}):
        lines.append(
            f"  {step:>8,}  {mine[step]['val_loss']:8.4f}  {theirs[step]['val_loss']:8.4f} "
            f" {apart[step]:+8.4f}"
            + (f"  the largest difference of {len(common)} steps" if step == furthest else "")
        )
    before = next(index for index, step in enumerate(common) if apart[step])
    lines.append(
        f"  equal up to step {common[before - 1]:,}"
        if before
        else "  different from the first step in common"
    )
    tokens = {row.get("n_tokens") for found in (mine, theirs) for row in found.values()}
    return lines + [
        "  not all on the same number of validation tokens: differences are also those of the texts"
    ] * (len(tokens) > 1)


def milestones(a: Path, b: Path, common: Sequence[int]) -> list[int]:
    """Steps in common of which both have a checkpoint, and others spread evenly between them."""
    saved = [step for step in checkpoints_of(a).keys() & checkpoints_of(b).keys() if step in common]
    spread = [common[round(index * (len(common) - 1) / (MOST_STEPS - 1))] for index in range(MOST_STEPS)]
    return [*saved, *spread]


# jobs


def jobs(a: Path, b: Path) -> list[str]:
    """Jobs, why they ended, and skipped steps."""
    return [
        "jobs",
        *(f"  {line}" for name, folder in (("A", a), ("B", b)) for line in job_lines(name, folder)),
    ]


def job_lines(name: str, folder: Path) -> list[str]:
    problems: list[str] = []
    record = Record(folder, problems)
    rows = record.segments
    skipped = [
        row.get("step") for row in read_rows(folder / METRICS, problems) if row.get("kind") == "skipped"
    ]
    lines = [f"{name}: {len(rows)} job{'s' * (len(rows) != 1)}"]
    for index, row in enumerate(rows):
        revision = str(row.get("revision") or "")[:10] or "unknown"
        lines.append(
            f"   {index}: steps {row.get('start_step')} to {row.get('end_step')},"
            f" {row.get('world_size', '?')} processes, revision {revision}"
            + f"{' with changes' if row.get('dirty') else ''}: {row.get('reason')}"
        )
    shown = ", ".join(map(str, skipped[:MOST_NAMES])) + (", ..." if len(skipped) > MOST_NAMES else "")
    lines.append(f"   steps passed over: {len(skipped)}" + (f" ({shown})" if skipped else ""))
    rollbacks = (record.summary or {}).get("rollbacks")
    return (
        lines
        + [f"   taken back to steps {rollbacks}"] * bool(rollbacks)
        + [f"   {problem}" for problem in problems]
    )


# evaluations


def perplexities(a: Path, b: Path) -> list[str]:
    """The two results; another section compares their windows."""
    lines = ["evaluation"]
    for name, path in (("A", a), ("B", b)):
        try:
            recorded = read_json(path) or {}
            lines.append(
                f"  {name}: perplexity {recorded['val_perplexity']:.3f}, loss {recorded['val_loss']:.4f},"
                f" step {recorded.get('itr')}, {recorded.get('n_tokens')} tokens,"
                f" {recorded.get('checkpoint')}"
            )
            for source, value in of_sources(recorded, "val_perplexity").items():
                lines.append(f"     {source}: perplexity {value:.3f}")
        except (UserError, KeyError, TypeError, ValueError) as error:
            lines.append(
                f"  {name}: {error if isinstance(error, UserError) else f'{path} tells no perplexity'}"
            )
    return lines


def windows(a: Path, b: Path) -> list[str]:
    """Two evaluations in pairs, window by window; of two experiments those of the same name in both."""
    names = sorted(path.name for path in a.glob(EVALUATIONS[0]) if (b / path.name).is_file())
    pairs = [(a, b)] if is_evaluation(a) else [(a / name, b / name) for name in names]
    lines = []
    for first, second in pairs:
        try:
            lines += [f"{first.name}:"] * (first != a) + in_pairs(first, second)
        except UserError as error:
            lines += ["in pairs", f"  {error}"]
    return lines


def unlike(a: Path, b: Path) -> list[str]:
    return ["an experiment and an evaluation have no more in common: give two of a kind"]


Section = Callable[[Path, Path], list[str]]
SECTIONS: tuple[Section, ...] = (flags, losses, windows, jobs, weights)
OF_EVALUATIONS: tuple[Section, ...] = (flags, perplexities, windows)
OF_BOTH: tuple[Section, ...] = (flags, unlike)
