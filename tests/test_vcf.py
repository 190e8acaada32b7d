"""Haplotypes from VCF files and tree sequences, and intervals from BED files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from data.genomes.bed import complement, read_bed
from data.genomes.vcf import VcfOptions, decoded, read_vcf
from errors import UserError

HEADER = "##fileformat=VCFv4.2\n##contig=<ID=1,length=1000>\n##contig=<ID=2,length=500>\n"
NAMES = ("a", "b", "c")


def record(position, *genotypes, contig="1", ref="A", alt="C", passed="PASS", info=".", form="GT"):
    return "\t".join([contig, str(position), ".", ref, alt, ".", passed, info, form, *genotypes])


PLAIN = (record(5, "0|1", "1|1", "0|0"), record(10, "1|0", "0|0", "0|1"))


def vcf(folder: Path, *records: str, header: str = HEADER) -> Path:
    names = "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *NAMES])
    path = folder / "x.vcf"
    path.write_text("\n".join([header + names, *records]) + "\n")
    return path


def test_positions_and_alleles_of_the_first_haplotypes(tmp_path: Path) -> None:
    found = read_vcf(vcf(tmp_path, *PLAIN), 4)
    assert found.positions.tolist() == [4, 9]
    assert found.alleles.tolist() == [[0, 1, 1, 1], [1, 0, 0, 0]]
    assert (found.length, found.contig) == (1000, "1")


def test_a_file_of_several_gzip_members_is_read_as_a_whole(tmp_path: Path) -> None:
    text = vcf(tmp_path, *PLAIN).read_bytes()
    path = tmp_path / "x.vcf.gz"
    path.write_bytes(
        gzip.compress(text[:150], mtime=0) + gzip.compress(text[150:], mtime=0) + gzip.compress(b"", mtime=0)
    )
    assert read_vcf(path, 6).alleles.tolist() == [[0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 1]]


def test_alleles_of_simulations_may_be_0_and_1(tmp_path: Path) -> None:
    found = read_vcf(vcf(tmp_path, record(10, "0|1", "1|1", "0|0", ref="0", alt="1")), 4)
    assert found.alleles.tolist() == [[0, 1, 1, 1]]


def test_haploid_samples(tmp_path: Path) -> None:
    found = read_vcf(vcf(tmp_path, record(5, "0", "1", "1")), 3)
    assert found.alleles.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    ("text", "alleles"),
    [
        ("0|1", (0, 1)),
        ("1/1", (1, 1)),  # a homozygote has no phase
        ("1", (1,)),
        ("0/1", (-2, -2)),
        (".|1", (-1, 1)),
        ("./.", (-1, -1)),
        ("0|x", (0, -3)),
        ("0|999", (0, -3)),
        ("", (-3,)),
    ],
)
def test_alleles_of_a_genotype(text, alleles) -> None:
    assert decoded(text) == alleles


def test_the_genotype_is_found_by_the_format(tmp_path: Path) -> None:
    found = read_vcf(vcf(tmp_path, record(5, "3:0|1", "4:1|0", "5:1|1", form="DP:GT")), 6)
    assert found.alleles.tolist() == [[0, 1, 1, 0, 1, 1]]


def test_what_is_no_snp_is_left_out_and_counted(tmp_path: Path) -> None:
    records = [
        record(1, "0|1", "0|0", "0|0", ref="AT"),
        record(2, "0|1", "0|0", "0|0", alt="<DEL>"),
        record(3, "0|0", "0|0", "0|0", alt="."),
        record(4, "0|1", "0|0", "0|0", passed="q10"),
    ]
    found = read_vcf(vcf(tmp_path, *records, *PLAIN), 6)
    assert found.positions.tolist() == [4, 9]
    assert "2 records that are no SNPs are left out" in found.notes
    assert "1 records that FILTER marks are left out" in found.notes


def test_two_records_of_a_position_are_one_site_of_three_alleles(tmp_path: Path) -> None:
    records = [record(5, "0|1", "0|0", "0|0"), record(5, "0|0", "1|0", "0|0", alt="G")]
    assert read_vcf(vcf(tmp_path, *records), 6).alleles.tolist() == [[0, 1, 2, 0, 0, 0]]


def test_the_ancestral_allele_of_info_is_allele_0(tmp_path: Path) -> None:
    records = [
        record(5, "0|1", "1|1", "0|0", info="DP=1;AA=c"),
        record(6, "0|1", "1|1", "0|0", info="AA=A"),
        record(7, "0|1", "1|1", "0|0", info="AA=N"),
    ]
    found = read_vcf(vcf(tmp_path, *records), 6, VcfOptions(ancestral="aa"))
    assert found.alleles.tolist() == [[1, 0, 0, 0, 1, 1], [0, 1, 1, 1, 0, 0]]
    assert "1 records whose ancestral allele (AA) is not known are left out" in found.notes


def test_one_of_several_contigs_is_chosen(tmp_path: Path) -> None:
    path = vcf(tmp_path, *PLAIN, record(7, "0|1", "1|1", "0|0", contig="2"))
    found = read_vcf(path, 6, VcfOptions(contig="2"))
    assert found.positions.tolist() == [6] and found.length == 500


def test_sites_with_missing_genotypes_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    path = vcf(tmp_path, record(3, "0|1", ".|.", "0|0"), *PLAIN)
    found = read_vcf(path, 6, VcfOptions(drop_missing=True))
    assert found.positions.tolist() == [4, 9] and found.missing.tolist() == [[2, 3]]


def test_a_missing_genotype_of_a_haplotype_that_is_not_read_does_not_matter(tmp_path: Path) -> None:
    assert read_vcf(vcf(tmp_path, record(3, "0|1", "0|0", ".|.")), 4).positions.size == 1


def test_a_length_that_the_header_lacks_is_that_of_the_last_site(tmp_path: Path) -> None:
    found = read_vcf(vcf(tmp_path, *PLAIN, header="##fileformat=VCFv4.2\n"), 6)
    assert found.length == 10 and "no length of 1" in found.notes[0]


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ([record(5, "0/1", "1|1", "0|0")], "line 5: sample a, genotype 0/1: not phased"),
        ([record(5, "0|1", ".", "0|0")], "line 5: sample b, genotype .: missing; --drop_missing"),
        ([record(5, "0|1", "1", "0|0")], "sample b, genotype 1: ploidy 1 after 2"),
        ([record(5, "0|1", "1|?", "0|0")], "sample b, genotype 1|?: no genotype"),
        ([*PLAIN, record(3, "0|1", "1|1", "0|0", contig="2")], "a second contig, 2, after 1"),
        ([*reversed(PLAIN)], "position 5 after 10: the file is not sorted"),
        ([record("x", "0|1", "1|1", "0|0")], "POS 'x' is no position"),
        ([record(0, "0|1", "1|1", "0|0")], "POS '0' is no position"),
        ([record("9" * 5000, "0|1", "1|1", "0|0")], "is no position"),
        ([record(5, "0|1", "1|" + "1" * 5000, "0|0")], "no genotype"),
        ([record(5, "0|1")], "10 columns are too few"),
        (["nonsense"], "1 columns are too few"),
        ([record(5, "1", "1", "0", form="DP")], "no GT in FORMAT"),
        ([record(1001, "0|1", "1|1", "0|0")], "a site at 1,001 is beyond the sequence's length, 1,000"),
        ([], "has no SNPs"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, records, line) -> None:
    with pytest.raises(UserError) as error:
        read_vcf(vcf(tmp_path, *records), 6)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_too_few_haplotypes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reads 10 haplotypes and the file has 6"):
        read_vcf(vcf(tmp_path, *PLAIN), 10)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (gzip.compress(b"##x\n" * 5000, mtime=0)[:-20], "is damaged after line"),
        (b"BCF\x02\x02\xff\xfe", "is no text"),
        (b"", "no line #CHROM"),
        (b"1\t5\n", "a record before the line #CHROM"),
        (b"#CHROM\tPOS\n", "names no samples"),
    ],
)
def test_a_file_that_is_no_vcf_is_one_line(tmp_path: Path, content, line) -> None:
    path = tmp_path / "x.vcf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=line):
        read_vcf(path, 6)


def test_a_line_without_an_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.genomes.vcf.LONGEST_LINE", 1000)
    path = tmp_path / "x.vcf.gz"
    path.write_bytes(gzip.compress(b"##" + bytes(100_000), mtime=0))
    with pytest.raises(UserError, match="line 1: longer than 1,000 characters"):
        read_vcf(path, 6)


def bed(folder: Path, text: str) -> Path:
    path = folder / "x.bed"
    path.write_text(text)
    return path


def test_intervals_of_a_contig_are_sorted_joined_and_cut(tmp_path: Path) -> None:
    path = bed(tmp_path, "track x\n1 50 60\n2 0 9\n1\t10\t20\textra\n1 15 30\n1 90 200\n1 40 40\n")
    assert read_bed(path, "1", 100).tolist() == [[10, 30], [50, 60], [90, 100]]


def test_the_complement_of_intervals() -> None:
    inside = np.array([[0.0, 10.0], [30.0, 40.0]])
    assert complement(inside, 100).tolist() == [[10, 30], [40, 100]]
    assert complement(np.zeros((0, 2)), 7).tolist() == [[0, 7]]


@pytest.mark.parametrize(
    ("text", "contig", "line"),
    [
        ("1 5\n", "1", "line 1: no interval"),
        ("1 9 5\n", "1", "line 1: no interval"),
        ("1 x 5\n", "1", "line 1: no interval"),
        ("1 \u00b2 5\n", "1", "line 1: no interval"),
        ("1 1 " + "9" * 5000, "1", "line 1: no interval"),
        ("chr1 1 5\n", "1", "has no interval of 1, but of chr1"),
        ("1 1 5\n2 1 5\n", "", "intervals of 2 contigs"),
    ],
)
def test_a_bed_file_that_does_not_fit_is_one_line(tmp_path: Path, text, contig, line) -> None:
    with pytest.raises(UserError, match=line):
        read_bed(bed(tmp_path, text), contig, 100)
