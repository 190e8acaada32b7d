"""Times to the most recent common ancestor of haplotype pairs, window by window along a genome, from a
checkpoint of the recipe coalescence.

    python infer.py exps/.../broad --input sample.trees --output times
    python infer.py broad --input chr20.vcf.gz --pairs 0-1,2-3 --mutation_rate 1.29e-8 --format parquet
    python infer.py w200_wmissing --input chr20.vcf.gz --mask inaccessible.bed

The checkpoint is an experiment's folder or name, a file, or the name of one in the cache of checkpoints. Any
length of sequence is cut into blocks of the model's windows. Writes times.csv (or .parquet), times.json and
times.png to the output folder; the true times of a tree sequence are drawn and measured beside. Run it again
after an interruption: it goes on where it was. docs/coalescence-inference.md
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import distributed
from config import guarded
from config.parse import parse
from config.programs import stop
from config.schema import PLACE, Flag, switch
from errors import UserError
from optim.restore import CHECKPOINT

if TYPE_CHECKING:
    import numpy as np

    from data.genomes.haplotypes import Haplotypes
    from optim.coalescence.inference import Sequences
    from report.times import Times

PROG = "infer.py"
FLAGS = {
    "what is read": (
        replace(
            CHECKPOINT, help=f"{CHECKPOINT.help}, and in $CXT_CHECKPOINT_CACHE; --checkpoint may be left out"
        ),
        Flag("input", str, None, "tree sequence (.trees), or phased genotypes (.vcf, .vcf.gz)"),
        Flag(
            "mask", str, None, "BED of what --mask_holds says; for models that were trained with missing data"
        ),
        Flag(
            "mask_holds",
            str,
            "inaccessible",
            "what the intervals of --mask are: inaccessible, the gaps; accessible, all but the gaps",
            choices=("inaccessible", "accessible"),
        ),
        Flag("contig", str, None, "contig of the VCF (None: the only one)"),
        Flag(
            "sequence_length",
            int,
            None,
            "bp of the contig (None: the VCF's header says)",
            low=1,
            high=1 << 34,
        ),
        Flag(
            "ancestral",
            str,
            "ref",
            "ancestral allele in a VCF: ref, REF; aa, AA of INFO, and sites without it are left out",
            choices=("ref", "aa"),
        ),
        switch("drop_missing", "leave out sites at which a genotype is missing, which are refused otherwise"),
        Flag("window_size", int, None, "bp of a window (None: that of the model's training data)", low=1),
    ),
    "what is drawn": (
        Flag(
            "pairs",
            str,
            None,
            "pairs of haplotypes, numbered from 0: 0-1,4-7 or all (None: 0-1, 2-3 and so on: those of each"
            " diploid)",
        ),
        Flag("replicates", int, 15, "draws of each pair", low=1),
        Flag("seed", int, 1234, "row g of all rows (replicate by replicate) draws by seed + g", low=0),
        Flag("top_k", int, 50, "draw among the likeliest K times of a window; 1: the likeliest", low=1),
        Flag(
            "mutation_rate",
            float,
            None,
            "mutations per bp and generation, by which times are corrected (None: they are not)",
            low=0,
        ),
        Flag(
            "correction",
            str,
            "sampled",
            "by --mutation_rate: sampled, a factor drawn for each replicate; deterministic, one of each pair",
            choices=("sampled", "deterministic"),
        ),
    ),
    "output": (
        Flag("output", str, "times", "folder to write to", scope=PLACE),
        Flag("format", str, "csv", "of the table", choices=("csv", "parquet"), scope=PLACE),
        switch("draws", "a column for each replicate, too", scope=PLACE),
        Flag("rows", int, 240, "rows that are decoded together: memory", low=1),
        Flag("device", str, "auto", "auto (cuda if there, else cpu), cpu, cuda or cuda:N", scope=PLACE),
    ),
}
OF_FILES = ("checkpoint", "input", "mask")
SETTINGS_OF_DRAWS = (
    *("mask_holds", "contig", "sequence_length", "ancestral", "drop_missing"),
    *("pairs", "replicates", "seed", "top_k", "rows"),
)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def command_line(argv: Sequence[str] | None) -> dict[str, Any]:
    """All flags; the first word may be the checkpoint. Exits 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words = ["--checkpoint", *words]
    given, wrong = parse(
        words, prog=PROG, description=__doc__ or "", groups=FLAGS, usage=f"{PROG} CHECKPOINT --input FILE ..."
    )
    flags = {flag.name: flag.default for group in FLAGS.values() for flag in group} | given
    problems: list[str] = [*wrong]
    problems += [f"--{name} is needed" for name in OF_FILES[:2] if flags[name] is None and not wrong]
    if flags["mutation_rate"] == 0:
        problems.append("--mutation_rate 0: without mutations there are no differences to correct by")
    if "correction" in given and flags["mutation_rate"] is None:
        problems.append("--correction needs --mutation_rate")
    if "mask_holds" in given and flags["mask"] is None:
        problems.append("--mask_holds needs --mask")
    problems += [
        f"--{name} {flags[name]}: no such file"
        for name in OF_FILES[1:]
        if flags[name] is not None and not Path(flags[name]).is_file()
    ]
    if problems:
        stop(PROG, problems)
    return flags


@dataclass(frozen=True)
class Opened:
    """What is read. files: SHA-256 of each."""

    haplotypes: Haplotypes
    trees: Any  # a tskit.TreeSequence, None for a VCF
    inaccessible: np.ndarray
    notes: list[str]
    files: dict[str, str]


def read_input(flags: dict[str, Any], n_samples: int, reads_missing: bool) -> Opened:
    """Raises UserError."""
    import numpy as np

    from data.genomes.bed import complement, read_bed
    from data.genomes.trees import is_tree_sequence, read_trees
    from data.genomes.vcf import VcfOptions, read_vcf
    from files import sha256_of

    path, trees = Path(flags["input"]), None
    if is_tree_sequence(path):
        of_vcf = [name for name in ("contig", "sequence_length") if flags[name] is not None]
        if of_vcf or flags["ancestral"] != "ref":
            raise UserError(f"--{(*of_vcf, 'ancestral')[0]} is about a VCF, and {path} is a tree sequence")
        haplotypes, trees = read_trees(path, n_samples, flags["drop_missing"])
    else:
        options = VcfOptions(
            flags["contig"], flags["sequence_length"], flags["ancestral"], flags["drop_missing"]
        )
        haplotypes = read_vcf(path, n_samples, options)
    notes, gaps = list(haplotypes.notes), [haplotypes.gaps]
    if flags["mask"] is not None:
        intervals = read_bed(Path(flags["mask"]), haplotypes.contig, haplotypes.length)
        if flags["mask_holds"] == "accessible":
            intervals = complement(intervals, haplotypes.length)
        gaps.append(intervals)
    if reads_missing:
        gaps.append(haplotypes.missing)
    elif flags["mask"] is not None or haplotypes.gaps.size:
        where = "--mask" if flags["mask"] is not None else f"{path}, a stretch without trees"
        raise UserError(
            f"{where}: this model was not trained with missing data, and would take gaps for regions without"
            " mutations; take a model such as w200_wmissing"
        )
    if reads_missing and not any(map(len, gaps)):
        notes.append("no gaps (--mask): everything is taken to be accessible, which this model is told")
    files = {name: sha256_of(Path(flags[name])) for name in OF_FILES[1:] if flags[name] is not None}
    return Opened(haplotypes, trees, np.concatenate(gaps), notes, files)


def times_of(
    sequences: Sequences, tokens: Any, vocab_size: int, flags: dict[str, Any], opened: Opened
) -> Times:
    """Corrected and joined, with the truth beside where it is known; adds to the notes."""
    import numpy as np

    from data.genomes.trees import true_times
    from optim.coalescence.inference import Correction
    from optim.coalescence.parts import on_disk
    from optim.coalescence.posterior import Posterior, mean_time, posterior
    from report.times import Times

    rate, replicates = flags["mutation_rate"], len(tokens)
    correction = None if rate is None else Correction(rate, flags["correction"])
    shape = len(sequences.pairs), sequences.n_total
    found, mean_times = Posterior(*(np.empty(shape) for _ in range(4))), np.empty(shape)
    draws = on_disk((replicates, *shape), Path(flags["output"])) if flags["draws"] else None
    for part in sequences.times_of(tokens, vocab_size, correction):
        for name, values in vars(posterior(part.ln_times)).items():
            getattr(found, name)[:, part.windows] = values
        mean_times[:, part.windows] = mean_time(part.ln_times)
        if draws is not None:
            draws[..., part.windows] = part.ln_times
    truth = None
    if opened.trees is not None:
        truth, notes = true_times(opened.trees, sequences.pairs, sequences.window)
        opened.notes.extend(notes)
    edges = np.append(np.arange(sequences.n_total) * float(sequences.window), sequences.haplotypes.length)
    return Times(sequences.pairs, edges, sequences.accessible(), found, mean_times, replicates, truth, draws)


def write(times: Times, flags: dict[str, Any], opened: Opened, facts: dict[str, Any]) -> None:
    """Table, picture, and times.json, which is written last."""
    from files import write_json
    from report.times import WRITERS, accuracy, draw

    folder = Path(flags["output"])
    names = [f"{a}-{b}" for a, b in times.pairs.tolist()]
    measured = accuracy(times, names)
    table = folder / f"times.{flags['format']}"
    WRITERS[flags["format"]](times, table)
    checkpoint = Path(facts["checkpoint"])
    draw(
        times,
        folder / "times.png",
        f"{Path(flags['input']).name}, {checkpoint.parent.name}/{checkpoint.name}",
    )
    settings = {name: value for name, value in flags.items() if name != "checkpoint"}
    write_json(
        folder / "times.json",
        {**facts, "pairs": names, "accuracy": measured, "notes": opened.notes, "settings": settings},
    )
    if measured is not None:
        print(
            f"against the truth  MSE of ln TMRCA {measured['mse']:.4f}, r {measured['r']:.3f},"
            f" {100 * measured['inside_interval']:.1f}% inside mean +- 2 sd"
        )
    print(f"written            {table}, {folder / 'times.png'}, {folder / 'times.json'}")


def run(flags: dict[str, Any]) -> int:
    """Raises UserError."""
    from files import sha256_of
    from optim.coalescence.inference import Drawing, Sequences, draws, open_model, pairs_of
    from optim.coalescence.parts import Parts, Progress
    from optim.restore import output_folder

    with distributed.start(None, flags["device"]) as world:
        if world.size > 1:
            raise UserError(f"{PROG} runs as one process: start it without torchrun")
        model = open_model(flags["checkpoint"], world.device)
        settings = model.network.settings
        pairs = pairs_of(flags["pairs"], settings.input_samples)
        folder = output_folder(flags["output"], model.path, prints=False)
        assert folder is not None
        opened = read_input(flags, settings.input_samples, model.reads_missing)
        window = flags["window_size"] or model.window_size
        sequences = Sequences(
            opened.haplotypes, pairs, window, settings.n_windows, opened.inaccessible, model.reads_missing
        )
        if sequences.reaches_beyond and not model.reads_missing:
            opened.notes.append(
                f"the sequence has {sequences.n_total} windows of {window} bp and the model reads"
                f" {settings.n_windows}: those beyond its end are empty, which the model was not trained on"
            )
        files = {"checkpoint": sha256_of(model.path), **opened.files}
        parts = Parts(folder, {name: flags[name] for name in SETTINGS_OF_DRAWS} | {"window": window, **files})
        drawing = Drawing(flags["replicates"], flags["seed"], flags["top_k"], flags["rows"])
        total = len(sequences) * drawing.replicates * settings.n_windows
        say(
            f"{len(pairs)} pairs, {len(sequences.blocks)} blocks of {settings.n_windows} windows of {window}"
            f" bp, {drawing.replicates} replicates: {total:,} tokens"
        )
        begin, advanced = time.monotonic(), Progress(total).advanced
        tokens = draws(
            model.network, len(sequences), sequences.features, drawing, world.device, parts, advanced
        )
        seconds = time.monotonic() - begin
        times = times_of(sequences, tokens, settings.vocab_size, flags, opened)
        for note in opened.notes:
            say(f"note: {note}")
        facts = {"checkpoint": str(model.path), "window": window, "seconds": seconds, "files": files}
        write(times, flags, opened, facts)
        parts.remove()
    return 0


def main(argv: list[str] | None = None) -> int:
    flags = command_line(argv)
    # what all programs say of a folder that cannot be written to, in the words of this one
    code = guarded(PROG, lambda: run(flags), lambda line: line.replace("--output_dir", "--output"))
    if code == 130:
        say(f"{PROG}: interrupted; what is drawn so far is kept, and the same command goes on")
    return code


if __name__ == "__main__":
    distributed.run_and_end(main)
