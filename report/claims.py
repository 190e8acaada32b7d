"""The paper's claims, re-tested by a sweep of its models over several seeds.

    python -m report claims SWEEP.json --output DIR     # claims.md, claims.html, claims.json and figures

Reads what each cell's experiment folder holds: summary.json, segments.jsonl, eval_summary_ckpt.json
(eval.py), and of adaptive models ppl_per_mac.json, router_weights*.npz and routing.json. text.json beside the
sweep's file, or in DIR, says what the text is; machine.txt and command.txt in DIR, where and how it all ran;
SWEEP.txt beside the sweep's file, how its rates were chosen.
Exit code 2 where the file is no sweep; a cell that has no evaluation is named on the page.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config.flags import FLAGS
from config.recipe import DEFAULT_RECIPE
from config.sweep import Sweep, as_text
from errors import UserError
from files import read_json, write_atomically, write_json
from report import claims_figures as figures
from report import claims_tables as tables
from report.claims_cells import Setting, Trained, read_cells, seconds_by_the_clock, settings_of
from report.claims_found import Absent, Finding, Findings, counts, findings, in_words, least_steps, smallest
from report.claims_list import CLAIMS
from report.pages import Block, Heading, Items, Page, Table, Text, html, markdown
from report.sweep_cells import sweep_of
from report.verdicts import AGAINST, CONFIRMED, UNDECIDED

STEM = "claims"
TEXT = "text.json"
NOTED = ("machine", "command")  # in text.json, or .txt files of lines beside the page
OF_WINDOWS = ("shared_windows", "windows", "window_tokens")  # of the overlap in text.json
READING = """\
A difference is the loss of the second model minus that of the first, in nats a token, between trainings of \
the same seed: where it is positive the first is better. The interval is Student's, of the mean over seeds; \
± is half of it. **confirmed**: the interval is on the claim's side of zero. **not confirmed**: it is on \
the other side, so the data say the opposite. **undecided**: it holds zero, or there are fewer than two \
seeds, or they do not vary. **not in this sweep**: a model of the claim was not trained. Of models that are \
claimed to be alike, the interval must be inside the margin (confirmed) or outside it (not confirmed). *k \
of n*: seeds that agree with the claim. The p of such a claim is that of a difference as large as the \
margin. The paper's difference is the logarithm of the ratio of its two perplexities, with the standard \
error over its three seeds; its loss is of another text, tokens and size, so that the sign can be compared \
and not the amount."""
MULTIPLICITY = """\
Intervals and verdicts are of each claim alone: {tested} claims were tested, and neither is corrected for \
their number. At 95%, one in twenty intervals of models that do not differ misses zero. The column *p, \
Holm* is corrected for all claims with a p (Holm, 1979): {kept} of the {decided} decided verdicts have \
one below 0.05."""
CURVES = """\
At equal cost: the mean difference of two curves over the range of costs that both have, with straight \
lines between the measured budgets, in each seed. The router's curve of Figure 4 is by capacity, as in the \
paper: it chooses by scores of the whole sequence, and so sees later tokens."""
SIZE = """\
**What this size can show.** The models here have up to {parameters:,} parameters and were trained for \
{steps} steps of {tokens:,} tokens by {optimisers}; the paper's have 768 units, 12 to 48 layers and \
40,000 steps of 32,768 tokens by AdamW. A verdict is about these models, this text and this budget. A \
confirmed claim says that the effect is there at this size too and that this installation trains and \
measures these models as it should; it does not re-measure the paper's perplexities. A claim that is not \
confirmed is contradicted by these data, at this size; whether the paper's size would contradict it too, \
this page cannot say. One that is undecided is neither: effects of a hundredth of a nat need longer \
training, more seeds or larger models. After few steps a model that learns faster at first is ahead, \
whatever it would reach. Seeds here vary weights and order of the text together; the validation text is \
the same for all, so that another text could give other differences."""


def text_facts(folders: Sequence[Path]) -> dict[str, Any]:
    """text.json, of the first folder that has one; empty where none has. Raises UserError."""
    for folder in folders:
        found = read_json(folder / TEXT)
        if found is not None:
            return found
    return {}


def _counted(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _overlap(facts: Mapping[str, Any]) -> str:
    found = facts.get("overlap")
    if not isinstance(found, dict):
        return "not checked" if found is None else str(found)
    # documents are not counted where tokens do not say where one ends
    rest, words = {name: value for name, value in found.items() if value is not None}, []
    if rest.keys() >= set(OF_WINDOWS):
        shared, windows, length = (_counted(rest.pop(name)) for name in OF_WINDOWS)
        words.append(f"{shared} of {windows} windows of {length} tokens")
    if isinstance(rest.get("share"), float):
        words.append(f"{rest.pop('share'):.3%}")
    return ", ".join([*words, *(f"{name.replace('_', ' ')} {_counted(rest[name])}" for name in rest)])


def _split(facts: Mapping[str, Any]) -> str:
    parts = []
    for split in ("train", "val"):
        tokens, documents = facts.get(f"{split}_tokens"), facts.get(f"{split}_documents")
        if tokens is not None:
            of = f" of {_counted(documents)} documents" if documents is not None else ""
            parts.append(f"{split} {_counted(tokens)} tokens{of}")
    return "; ".join(parts) or f"not stated ({TEXT} is missing)"


def token_words(trainings: Sequence[Trained]) -> str:
    """What a token is, by the evaluations themselves."""
    vocabularies = {one.args.vocab_size for one in trainings if one.args is not None}
    sizes = []
    for one in trainings:
        if one.evaluation is not None and one.bits:
            sizes.append(one.evaluation.loss / (one.bits * 0.6931471805599453))
    vocabulary = f"vocabulary of {', '.join(f'{size:,}' for size in sorted(vocabularies))}"
    if not sizes:
        return f"{vocabulary}; bytes a token are not known"
    size = sum(sizes) / len(sizes)
    what = (
        " (a token is a byte: perplexities are those of bytes, not of words)" if abs(size - 1) < 1e-3 else ""
    )
    return f"{vocabulary}, {size:.2f} bytes a token{what}"


def machine() -> str:
    """Of this process."""
    name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def short(revision: str) -> str:
    """The first letters of a git revision, and whether the clone had changes."""
    hexadecimal, plus, more = revision.partition("+")
    return hexadecimal[:12] + plus + more


def without_root(text: str) -> str:
    """Paths in this clone are named from its root."""
    return text.replace(f"{Path(__file__).resolve().parents[1]}/", "")


def head(sweep: Sweep, trainings: Sequence[Trained], facts: Mapping[str, Any], place: str) -> Table:
    """What was run, where, on what."""
    revisions = list(dict.fromkeys(short(text) for one in trainings for text in one.revisions))
    seconds, by_clock = sum(one.seconds for one in trainings), seconds_by_the_clock(trainings)
    finished = sum(one.state == "finished" for one in trainings)
    evaluated = sum(one.evaluation is not None for one in trainings)
    datasets = dict.fromkeys(one.args.dataset for one in trainings if one.args is not None)
    rows = [
        ["command", without_root(str(facts.get("command") or f"python -m report claims {place}"))],
        ["sweep", f"{sweep.name}: {len(trainings)} cells, {finished} finished, {evaluated} evaluated"],
        ["seeds", ", ".join(map(str, sweep.seeds)) or "none in the file"],
        ["revision of the trainings", ", ".join(revisions) or "not recorded"],
        ["machine", str(facts.get("machine") or f"not stated; the page was made on {machine()}")],
        ["seconds of training, each one's added up", f"{seconds:,.0f}"],
        ["seconds by the clock while something trained", f"{by_clock:,.0f}" if by_clock else "not recorded"],
        ["text", Path(str(facts.get("dataset") or ", ".join(datasets))).name],
        ["tokens", token_words(trainings)],
        ["split", _split(facts)],
        ["validation text in the training text", _overlap(facts)],
    ]
    return Table(("", ""), rows)


def headlines(found: Findings) -> list[str]:
    """A line for each claim that the sweep is to decide."""
    lines = []
    for claim in (claim for claim in CLAIMS if claim.headline):
        own = [one for one in found.tested if one.claim == claim]
        decided = [one for one in own if one.verdict.word != UNDECIDED]
        if not own:
            lines.append(f"{claim.text}: not in this sweep.")
        elif not decided:
            lines.append(f"{claim.text}: this sweep cannot decide it ({_places(own)}).")
        else:
            lines.append(f"{claim.text}: {_places(own)}.")
    return lines


def _places(found: Sequence[Finding]) -> str:
    parts = []
    for one in found:
        verdict = one.verdict
        value = f", difference {tables.plus_minus(verdict)}" if verdict.seeds else ""
        of = f" ({one.setting.label})" if one.setting.label else ""
        seeds = f"{verdict.agree} of {verdict.seeds}"
        parts.append(f"{one.first} and {one.second}{of}: {verdict.word}, {seeds}{value}")
    return "; ".join(parts)


def size_words(trainings: Sequence[Trained]) -> str:
    args = [one.args for one in trainings if one.args is not None]
    steps = sorted({one.iterations for one in args})
    tokens = max((one.batch_size * one.acc_steps * one.sequence_length for one in args), default=0)
    parameters = max((one.parameters or 0 for one in trainings), default=0)
    return SIZE.format(
        parameters=parameters,
        steps=" or ".join(f"{n:,}" for n in steps),
        tokens=tokens,
        optimisers=" or ".join(sorted({one.opt for one in args})),
    )


def setting_rows(settings: Sequence[Setting]) -> Table:
    """The flags that are not of the model, which all models of a setting share."""
    header = ["flag", *(setting.label or "all models" for setting in settings)]
    rows = []
    for name in settings[0].values if settings else ():
        values = [setting.values.get(name) for setting in settings]
        default = FLAGS[name].default if name in FLAGS else None
        if any(value != default for value in values):
            rows.append([name, *map(as_text, values)])
    return Table(header, rows)


def build(sweep: Sweep, facts: Mapping[str, Any], place: str) -> tuple[Page, dict[str, Any]]:
    """The page, and the same as data."""
    if sweep.recipe != DEFAULT_RECIPE:
        raise UserError(f"{sweep.path}: recipe {sweep.recipe} trains no models of the paper's")
    trainings = read_cells(sweep)
    settings = settings_of(trainings)
    found = findings(settings)
    page = Page(f"The paper's claims, re-tested: {sweep.name}")
    page.add(head(sweep, trainings, facts, place), Heading("In short"), Text(counts(found)))
    page.add(Items(headlines(found)))
    against = [one for one in found.tested if one.verdict.word == AGAINST]
    if against:
        page.add(
            Text("Decided **against** the claim, by these data:"), Items([_against(one) for one in against])
        )
    page.add(Heading("Claims and verdicts"), *tables.verdict_blocks(found.tested, settings), Text(READING))
    page.add(Text(_multiplicity(found)), Text(CURVES), tables.short_names())
    data = _add_tables(page, settings, found)
    page.add(Heading("Not in this sweep"), _absent(found.absent))
    page.add(Heading("Missing"), _missing(trainings))
    page.add(Heading("What this can and cannot show"), Text(size_words(trainings)))
    page.add(Heading("Settings"), Text(_chosen(settings)), setting_rows(settings))
    rates = facts.get("rates") or f"not stated ({sweep.path.with_suffix('.txt').name} is missing)"
    page.add(Items([f"How the rates were chosen: {rates}"]))
    return page, {**as_json(sweep, trainings, settings, found, facts, page), "figures": data}


def _against(one: Finding) -> str:
    return f"{one.claim.text} ({one.claim.where}): {_places([one])}."


def _absent(absent: Sequence[Absent]) -> Block:
    return tables.absent_block(absent) if absent else Text("Nothing: the sweep has a model for each claim.")


def _missing(trainings: Sequence[Trained]) -> Block:
    lines = tables.missing_items(trainings)
    return Items(lines) if lines else Text("Nothing: every cell is finished and evaluated.")


def _multiplicity(found: Findings) -> str:
    decided = [one for one in found.tested if one.verdict.word in (CONFIRMED, AGAINST)]
    kept = sum(one.corrected is not None and one.corrected < 0.05 for one in decided)
    return MULTIPLICITY.format(tested=len(found.tested), kept=kept, decided=len(decided))


def _chosen(settings: Sequence[Setting]) -> str:
    if len(settings) == 1:
        return "All models share these flags (those with other values than the defaults)."
    return (
        f"{len(settings)} settings; the models of each share these flags (those with other values than the"
        " defaults). A claim pairs models of one setting only."
    )


def _add_tables(page: Page, settings: Sequence[Setting], found: Findings) -> dict[str, Any]:
    """Tables and figures of each setting, then the extensions. Returns the figures' data by name."""
    n, least = smallest(settings) or 1, least_steps(settings, "lncot", "adm")
    data: dict[str, Any] = {}
    for number, setting in enumerate(settings, start=1):
        of, suffix = (f": {setting.label}", f"_{number}") if setting.label else ("", "")
        page.add(Heading(f"Tables in the paper's form{of}"))
        page.add(
            Text("Perplexity on the validation text: mean over seeds (standard error over seeds), seeds.")
        )
        page.add(Heading("Table 1", 3), *tables.table_1(setting, n))
        page.add(Heading("Table 2", 3), *tables.table_2(setting))
        page.add(Heading("Table 4", 3), *tables.table_4(setting))
        page.add(Heading("Section 5", 3), *tables.section_5(setting, least))
        page.add(Heading("All models", 3), tables.models_table(setting))
        page.add(Heading(f"Figures{of}"))
        for name, make in (
            ("fig2", figures.figure_2),
            ("fig4", figures.figure_4),
            ("fig5", figures.figure_5),
        ):
            blocks, data[f"{name}{suffix}"] = make(setting, f"{name}{suffix}")
            page.add(*blocks)
    page.add(Heading("Extensions"), *_extensions(settings, found))
    return data


def _extensions(settings: Sequence[Setting], found: Findings) -> list[Block]:
    """Other blocks and optimisers, which are settings of their own above; and causal routing."""
    others = [setting for setting in settings if setting.is_extension]
    blocks: list[Block] = [Heading("Modern blocks and Muon", 3)]
    if len(others) == len(settings):
        trained = "; ".join(f"blocks {one.values['block']}, optimiser {one.values['opt']}" for one in others)
        text = f"All models of this sweep are trained otherwise than the paper's ({trained}), and so are all"
        blocks.append(Text(f"{text} claims above. Published blocks with AdamW are not in this sweep."))
    elif others:
        labels = "; ".join(setting.label for setting in others)
        blocks.append(Text(f"The same claims are tested above in the settings: {labels}."))
    else:
        blocks.append(Text("Not in this sweep: all models have published blocks and AdamW."))
    blocks.append(Heading("Causal threshold routing beside capacity routing", 3))
    rows = tables.extension_rows(found.tested)
    if rows:
        columns = [name if name != "where" else "setting" for name in tables.CLAIM_COLUMNS]
        blocks.append(Table(columns, rows))
    else:
        blocks.append(Text("Not in this sweep: it has no adaptive LN-CoTFormer."))
    for setting in settings:
        blocks += tables.routing_blocks(setting)
    return blocks


# data


def _finding(one: Finding) -> dict[str, Any]:
    verdict = one.verdict
    return {
        "claim": one.claim.text,
        "where": one.claim.where,
        "setting": one.setting.label,
        "first": one.first,
        "second": one.second,
        "verdict": verdict.word,
        "why": verdict.why,
        "differences": {str(seed): value for seed, value in verdict.differences.items()},
        "agree": verdict.agree,
        "seeds": verdict.seeds,
        "mean": verdict.mean,
        "ci95": None if verdict.low is None else [verdict.low, verdict.high],
        "p": verdict.p,
        "p_holm": one.corrected,
        "margin": one.margin,
        "paper": one.paper and {"difference": one.paper[0], "sem": one.paper[1]},
        "remark": one.remark,
        "missing": one.missing,
    }


def _training(one: Trained) -> dict[str, Any]:
    evaluation = one.evaluation
    return {
        "cell": one.cell.number,
        "label": one.cell.label,
        "model": "" if one.args is None else in_words(one.kind),
        "seed": one.cell.seed,
        "state": one.state,
        "problem": one.problem,
        "notes": one.notes,
        "loss": evaluation and evaluation.loss,
        "perplexity": evaluation and evaluation.perplexity,
        "evaluated_tokens": evaluation and evaluation.n_tokens,
        "bits_per_byte": one.bits,
        "parameters": one.parameters,
        "seconds": one.seconds,
        "seconds_per_step": one.step_seconds,
        "revisions": list(one.revisions),
        "routing": one.routing,
    }


def as_json(
    sweep: Sweep,
    trainings: Sequence[Trained],
    settings: Sequence[Setting],
    found: Findings,
    facts: Mapping[str, Any],
    page: Page,
) -> dict[str, Any]:
    absent = []
    for one in found.absent:
        absent.append(
            {"claim": one.claim.text, "where": one.claim.where, "models": one.models, "why": one.why}
        )
    return {
        "sweep": sweep.name,
        "text": dict(facts),
        "head": [list(row) for row in page.blocks[0].rows] if isinstance(page.blocks[0], Table) else [],
        "tested": [_finding(one) for one in found.tested],
        "absent": absent,
        "trainings": [_training(one) for one in trainings],
        "settings": [{"label": one.label, "values": dict(one.values)} for one in settings],
    }


def write(path: Path, output: Path, results: Path | None = None) -> None:
    """Writes the page and its pictures, and prints the Markdown. results: root of the experiments. Raises
    UserError.
    """
    sweep = sweep_of(path, results)
    for note in sweep.notes:
        print(f"note: {note}", file=sys.stderr)
    facts = text_facts([output, path.parent])
    notes = {name: output / f"{name}.txt" for name in NOTED} | {"rates": path.with_suffix(".txt")}
    for name, file in notes.items():
        if file.is_file():
            lines = file.read_text(errors="replace").split("\n")
            facts = {name: "; ".join(" ".join(line.split()) for line in lines if line.strip()), **facts}
    page, data = build(sweep, facts, str(path))
    output.mkdir(parents=True, exist_ok=True)
    for picture in page.pictures:
        write_atomically(output / f"{picture.name}.png", picture.image)
    text = markdown(page)
    write_json(output / f"{STEM}.json", data)
    write_atomically(output / f"{STEM}.html", html(page))
    write_atomically(output / f"{STEM}.md", text)
    print(text)
