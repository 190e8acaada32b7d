"""Command lines of the programs that have flags of their own, and what ends such a program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

import status
from config import Arguments
from data import download, inspect, tokenize
from data.genomes import preprocess
from errors import UserError
from iridis import chain, graph, preflight, targets
from models import export
from tests.command_lines import code_of
from tests.programs import ROOT

PROGRAMS: dict[str, tuple[Callable[[list[str]], int], list[str], str]] = {
    "data.tokenize": (tokenize.main, ["--tokeniser", "bytes"], "--tokeniser (did you mean --tokenizer?)"),
    "data.inspect": (inspect.main, ["a", "--sed", "1"], "--sed (did you mean --seed?)"),
    "data.genomes.preprocess": (
        preprocess.main,
        ["--base_dir", "a", "--num_pair", "1"],
        "--num_pair (did you mean --num_pairs?)",
    ),
    "data.download": (download.main, ["--chekc"], "--chekc (did you mean --check?)"),
    "models.export": (export.main, ["a", "b", "--autors", "c"], "--autors (did you mean --authors?)"),
    "status.py": (status.main, ["--htm"], "--htm (did you mean --html?)"),
}


@pytest.mark.parametrize("prog", PROGRAMS)
def test_an_unknown_flag_is_one_line_with_the_nearest(capsys: pytest.CaptureFixture[str], prog: str) -> None:
    main, words, said = PROGRAMS[prog]
    assert code_of(main, words) == 2
    assert capsys.readouterr().err == f"{prog}: error: unknown flag {said}\n"


@pytest.mark.parametrize("run", [chain.main, targets.run, graph.run, preflight.main])
def test_an_unknown_flag_of_a_job_is_one_line(run: Callable[[list[str]], int]) -> None:
    words = {chain.main: ["a", "--code", "0"], targets.run: ["a"]}.get(run, [])
    with pytest.raises(UserError, match=r"\Aunknown flag --zzz\Z"):
        run([*words, "--zzz", "3"])


def test_a_word_too_many_is_named() -> None:
    with pytest.raises(UserError, match=r"\Aunexpected argument 'b'\Z"):
        Arguments(prog="x").parsed(["b"])


@pytest.mark.parametrize("lines", [1, 100_000], ids=["that is kept until the end", "that is long"])
def test_output_that_nobody_reads_ends_a_program_quietly(lines: int) -> None:
    code = f"import sys, config; sys.exit(config.guarded('x', lambda: print('line\\n' * {lines}) or 0))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as program:
        assert program.stdout and program.stderr
        program.stdout.close()
        assert (program.stderr.read(), program.wait()) == (b"", 0)
