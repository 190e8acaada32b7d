"""Phased genotypes from a VCF file, read line by line: plain text, gzip or bgzip.

    read_vcf(Path("chr20.vcf.gz"), n_haplotypes=50) -> Haplotypes

SNPs alone are taken; what is left out is counted and said. Unphased heterozygotes, missing genotypes and
several contigs are refused, each by one line, unless options say what to do with them.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data.genomes.haplotypes import Haplotypes, bases_at
from data.streams import DAMAGE
from errors import UserError

FIXED = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT")
BASES = frozenset("ACGTacgt01")  # 0 and 1: in files that tskit makes of simulations
MISSING, UNPHASED, BAD = -1, -2, -3
GZIP_MAGIC = b"\x1f\x8b"
MOST_NAMES = 5
LARGEST_ALLELE = 126  # of int8
LONGEST_LINE = 1 << 28  # characters: a compressed file of a kilobyte may hold a line of a megabyte
LARGEST_POSITION = 1 << 34  # bp: no chromosome is as long


def whole_number(text: str, most: int) -> int | None:
    """A text of digits, None for another one and beyond `most`."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most))):
        return None
    found = int(text)
    return found if found <= most else None


@dataclass(frozen=True)
class VcfOptions:
    """contig: which one, where the file holds several. length: bp of the contig, where the header has none.
    ancestral: "ref", or "aa": INFO's AA. drop_missing: leave out sites where a genotype is missing.
    """

    contig: str | None = None
    length: int | None = None
    ancestral: str = "ref"
    drop_missing: bool = False


def _opened(path: Path) -> IO[str]:
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP_MAGIC
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open("rt", encoding="utf-8")


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines of a text file, also of a compressed one. Raises UserError for one that is
    neither.
    """
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), ""), start=1):
                if len(line) == LONGEST_LINE:
                    raise UserError(f"{path}, line {number}: longer than {LONGEST_LINE:,} characters")
                yield number, line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is no text after line {number} (BCF? bcftools view turns it into VCF)"
        ) from None
    except DAMAGE as error:
        raise UserError(f"{path} is damaged after line {number}: {error}") from None


def decoded(genotype: str) -> tuple[int, ...]:
    """Alleles of a GT: "0|1" -> (0, 1), "1" -> (1,). MISSING, UNPHASED or BAD in their places; an unphased
    homozygote has nothing to phase.
    """
    alleles = []
    for word in genotype.replace("/", "|").split("|"):
        value = MISSING
        if word != ".":
            number = whole_number(word, LARGEST_ALLELE)
            value = BAD if number is None else number
        alleles.append(value)
    if "/" in genotype and len(set(alleles)) > 1 and min(alleles) >= 0:
        return (UNPHASED,) * len(alleles)
    return tuple(alleles)


@dataclass
class _Reader:
    """The records of one file, one after the other."""

    path: Path
    n_haplotypes: int
    options: VcfOptions
    lengths: dict[str, int] = field(default_factory=dict)  # of the contigs, as the header has them
    names: list[str] = field(default_factory=list)  # of samples
    contig: str = ""
    ploidy: int = 0
    columns: int = 0  # of samples that are read
    positions: list[int] = field(default_factory=list)
    rows: list[NDArray[np.int8]] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    known: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of each GT so far

    def fault(self, number: int, words: str) -> UserError:
        return UserError(f"{self.path}, line {number}: {words}")

    def header(self, number: int, line: str) -> None:
        found = re.match(r"##contig=<(?:.*,)?ID=([^,>]+)", line)
        length = re.search(r"[<,]length=(\d+)[,>]", line)
        told = whole_number(length[1], LARGEST_POSITION) if length else None
        if found and told is not None:
            self.lengths[found[1]] = told
        if line.startswith("##"):
            return
        words = line.split("\t")
        if tuple(words[: len(FIXED)]) != FIXED or len(words) == len(FIXED):
            raise self.fault(number, "the line #CHROM names no samples, or is no VCF's")
        self.names = words[len(FIXED) :]

    def record(self, number: int, line: str) -> None:
        if not self.names:
            raise self.fault(number, "a record before the line #CHROM: this is no VCF file")
        fields = line.split("\t", len(FIXED) + self.columns if self.columns else -1)
        if len(fields) < len(FIXED) + (self.columns or len(self.names)):
            raise self.fault(number, f"{len(fields)} columns are too few")
        contig, text, _, ref, alt, _, passed, info, form = fields[: len(FIXED)]
        if not self.is_wanted(number, contig):
            return
        place = whole_number(text, LARGEST_POSITION)
        if not place:
            raise self.fault(number, f"POS {text!r:.40} is no position")
        position = place - 1
        if self.positions and position < self.positions[-1]:
            raise self.fault(
                number, f"position {text} after {self.positions[-1] + 1}: the file is not sorted"
            )
        reason = self.reason_against(ref, alt, passed)
        if reason:
            self.left_out[reason] += 1
            return
        keys = form.split(":")
        if "GT" not in keys:
            raise self.fault(number, "no GT in FORMAT")
        row = self.alleles(number, fields[len(FIXED) :], keys.index("GT"))
        if row.min() == MISSING:
            self.left_out["with missing genotypes"] += 1
            self.missing.append(position)
            return
        polarised = self.polarised(row, ref, alt, info)
        if polarised is not None:
            self.keep(position, polarised)

    def is_wanted(self, number: int, contig: str) -> bool:
        wanted = self.options.contig
        if wanted is not None:
            self.contig = wanted
            return contig == wanted
        if self.contig and contig != self.contig:
            raise self.fault(
                number, f"a second contig, {contig}, after {self.contig}: choose one by --contig"
            )
        self.contig = contig
        return True

    def reason_against(self, ref: str, alt: str, passed: str) -> str:
        """Why a record is left out; empty: it is a SNP."""
        if passed not in ("PASS", "."):
            return "that FILTER marks"
        if alt == ".":
            return "without an alternative allele"
        if not {ref, *alt.split(",")} <= BASES:
            return "that are no SNPs"
        return ""

    def alleles(self, number: int, samples: list[str], place: int) -> NDArray[np.int8]:
        """Of the first haplotypes of a record."""
        if not self.columns:
            self.open_columns(number, samples[0].split(":")[place : place + 1])
        row: list[int] = []
        for name, sample in zip(self.names[: self.columns], samples, strict=False):
            parts = sample.split(":", place + 1)
            genotype = parts[place] if place < len(parts) else "."
            found = self.known.get(genotype)
            if found is None:
                found = self.known[genotype] = decoded(genotype)
            if len(found) != self.ploidy or min(found) < 0:
                found = self.faulty(number, name, genotype, found)
            row += found
        return np.array(row[: self.n_haplotypes], dtype=np.int8)

    def open_columns(self, number: int, genotype: list[str]) -> None:
        """Learn the ploidy from the first genotype, and how many samples are read."""
        self.ploidy = len(decoded(genotype[0])) if genotype else 1
        self.columns = -(-self.n_haplotypes // self.ploidy)
        total = len(self.names) * self.ploidy
        if self.columns > len(self.names):
            raise UserError(
                f"{self.path}: the model reads {self.n_haplotypes} haplotypes and the file has {total}"
                f" ({len(self.names)} samples of ploidy {self.ploidy}); take a model of fewer samples"
            )

    def faulty(self, number: int, name: str, genotype: str, found: tuple[int, ...]) -> tuple[int, ...]:
        """What to make of a genotype that is not so many alleles."""
        where = f"sample {name}, genotype {genotype}"
        if set(found) == {MISSING} or (len(found) == self.ploidy and min(found) == MISSING):
            if self.options.drop_missing:
                return (MISSING,) * self.ploidy
            raise self.fault(number, f"{where}: missing; --drop_missing leaves such sites out")
        if len(found) != self.ploidy:
            raise self.fault(number, f"{where}: ploidy {len(found)} after {self.ploidy}")
        if min(found) == UNPHASED:
            raise self.fault(
                number, f"{where}: not phased; the model reads haplotypes, so phase the file first"
            )
        raise self.fault(number, f"{where}: no genotype")

    def polarised(self, row: NDArray[np.int8], ref: str, alt: str, info: str) -> NDArray[np.int8] | None:
        """Alleles with 0 for the ancestral one; None: which it is, is not known."""
        if self.options.ancestral == "ref":
            return row
        found = re.search(r"(?:^|;)AA=([ACGTacgt])(?=[;,|]|$)", info)
        bases = [base.upper() for base in (ref, *alt.split(","))]
        if found is None or found[1].upper() not in bases:
            self.left_out["whose ancestral allele (AA) is not known"] += 1
            return None
        ancestral = bases.index(found[1].upper())
        swapped = row.copy()
        swapped[row == 0], swapped[row == ancestral] = ancestral, 0
        return swapped

    def keep(self, position: int, row: NDArray[np.int8]) -> None:
        """A second record of a position makes one site of several alleles."""
        if self.positions and self.positions[-1] == position:
            self.rows[-1] = np.where(row > 0, np.int8(2), self.rows[-1])
            return
        self.positions.append(position)
        self.rows.append(row)

    def length(self) -> tuple[int, list[str]]:
        """bp of the contig, and a note where it had to be guessed."""
        last = self.positions[-1] + 1 if self.positions else 1
        found = self.options.length or self.lengths.get(self.contig)
        if found is None:
            line = f"the header has no length of {self.contig}: it is taken to end at its last site, {last:,}"
            return last, [f"{line} (--sequence_length says otherwise)"]
        if found < last:
            raise UserError(f"{self.path}: a site at {last:,} is beyond the sequence's length, {found:,}")
        return found, []

    def haplotypes(self) -> Haplotypes:
        if not self.names:
            raise UserError(f"{self.path} has no line #CHROM: it is no VCF file")
        if not self.rows:
            of = f" of contig {self.options.contig}" if self.options.contig else ""
            contigs = ", ".join([*self.lengths][:MOST_NAMES])
            named = f" (the header names {contigs})" if contigs else ""
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            raise UserError(
                f"{self.path} has no SNPs{of}{named}" + (f"; left out: {reasons}" if reasons else "")
            )
        length, notes = self.length()
        notes += [f"{count:,} records {reason} are left out" for reason, count in self.left_out.items()]
        total = len(self.names) * self.ploidy
        if total > self.n_haplotypes:
            notes.append(f"the first {self.n_haplotypes} of {total} haplotypes are read: the model's number")
        if self.options.ancestral == "ref":
            notes.append("REF is taken for the ancestral allele (--ancestral aa: INFO's AA)")
        alleles = np.stack(self.rows).astype(np.uint8)
        where = np.array(self.positions, dtype=np.float64)
        missing = bases_at(np.array(self.missing, dtype=np.float64))
        return Haplotypes(where, alleles, float(length), self.contig, missing, notes=tuple(notes))


def read_vcf(path: Path, n_haplotypes: int, options: VcfOptions = VcfOptions()) -> Haplotypes:
    """The SNPs of one contig and of the file's first haplotypes. Raises UserError."""
    reader = _Reader(path, n_haplotypes, options)
    for number, line in lines_of(path):
        if line.startswith("#"):
            reader.header(number, line)
        elif line:
            reader.record(number, line)
    return reader.haplotypes()
