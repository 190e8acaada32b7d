"""Corpora that need no download: texts that the interpreter and the installed packages bring along.

stdlib         Python's own library, in GPT-2 tokens
lib_code       the same as bytes, without the pages of `help()`
lib_docs       those pages, descriptions of the installed packages, docstrings of some of them
lib_licenses   license texts of the interpreter and of the installed packages

The last three are made to be mixed: none holds a text twice, and no two hold the same text. Their order and
split are the same wherever the environment is.
"""

from __future__ import annotations

import ast
import email
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from errors import UserError

INSTALLED = {"site-packages", "dist-packages", "__pycache__"}  # beside the library's own modules
HELP_PAGES = "pydoc_data"
DOCUMENTED = ("huggingface_hub", "matplotlib", "numpy", "pyarrow")  # packages whose docstrings are prose
SHORTEST_DOCSTRING = 200  # characters; shorter ones say little more than a name
LICENSE = re.compile(r"licen[sc]e|copying|notice|third.?party", re.IGNORECASE)  # how a file's name begins
COPYRIGHT = re.compile(r"^\W*copyright\b.*$", re.IGNORECASE | re.MULTILINE)

Named = tuple[str, str]  # where a document comes from, and its text


def _read(path: Path) -> str | None:
    """A file's text; None where it is not UTF-8 or cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _packages() -> list[Path]:
    """The folders of installed packages."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(Path(paths[kind]) for kind in ("purelib", "platlib")))


def _distinct(named: Iterable[Named], key: Callable[[str], str] = str) -> Iterator[Named]:
    """Each text once, by its key, with a blank line after it: tokens of bytes have no other separator."""
    seen = set()
    for name, text in named:
        text = text.strip()
        known = key(text)
        if known and known not in seen:
            seen.add(known)
            yield name, text + "\n\n"


def stdlib_documents() -> Iterator[Named]:
    """Relative path and text of each module of Python's own library, in order of path; undecodable files
    are left out.
    """
    root = _library()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if INSTALLED & set(relative.parts):
            continue
        text = _read(path)
        if text and text.strip():
            yield relative.as_posix(), text


def code_documents() -> Iterator[Named]:
    """The modules of Python's own library."""
    modules = stdlib_documents()
    return _distinct((name, text) for name, text in modules if not name.startswith(HELP_PAGES))


def docs_documents() -> Iterator[Named]:
    """Pages of `help()`, then descriptions of installed packages, then docstrings, those of a module in one
    document.
    """
    return _distinct((*_help_pages(), *_descriptions(), *_docstrings()))


def _help_pages() -> Iterator[Named]:
    from pydoc_data.topics import topics  # late: it is large

    yield from sorted(topics.items())


def _descriptions() -> Iterator[Named]:
    """What the packages' pages in an index show: the README of most."""
    for folder in _packages():
        for path in sorted(folder.glob("*.dist-info/METADATA")):
            text = _read(path)
            if text:
                yield path.parent.name, str(email.message_from_string(text).get_payload())


def _docstrings() -> Iterator[Named]:
    seen: set[str] = set()  # classes repeat what they inherit
    for folder in _packages():
        for path in sorted(path for package in DOCUMENTED for path in (folder / package).rglob("*.py")):
            texts = [text for text in _docstrings_of(path) if text not in seen]
            seen.update(texts)
            yield path.relative_to(folder).as_posix(), "\n\n".join(dict.fromkeys(texts))


def _docstrings_of(path: Path) -> Iterator[str]:
    """The long ones of a module, of its functions and classes."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python is about to refuse
            module = ast.parse(_read(path) or "")
    except (SyntaxError, ValueError):  # of a newer Python; a null byte
        return
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if len(text) >= SHORTEST_DOCSTRING:
                yield text


def license_documents() -> Iterator[Named]:
    """License texts. Those that differ in copyright lines, spaces and case alone are one."""
    return _distinct(_licenses(), lambda text: " ".join(COPYRIGHT.sub("", text).lower().split()))


def _licenses() -> Iterator[Named]:
    own = sorted(_library().glob("LICENSE*"))
    yield from ((path.name, _read(path) or "") for path in own)
    for folder in _packages():
        for path in sorted(folder.glob("*.dist-info/**/*")):
            if LICENSE.match(path.name) and path.is_file():
                yield path.relative_to(folder).as_posix(), _read(path) or ""


@dataclass(frozen=True)
class BuiltIn:
    """documents: name and text of each, in order. tokenizer: as data.tokenize names it. val_share: share of
    the documents for validation.
    """

    documents: Callable[[], Iterator[Named]]
    tokenizer: str
    val_share: float


APART = "-apart"  # ends the name of a corpus without validation text that is in its training text
BUILT_IN = {
    "stdlib": BuiltIn(stdlib_documents, "gpt2", 0.01),
    "lib_code": BuiltIn(code_documents, "bytes", 0.01),
    "lib_docs": BuiltIn(docs_documents, "bytes", 0.05),
    "lib_licenses": BuiltIn(license_documents, "bytes", 0.1),
}


def whole_of(dataset: str) -> str | None:
    """NAME of the dataset NAME-apart, which data/apart.py makes; None for any other."""
    name = dataset.removesuffix(APART)
    return name if dataset.endswith(APART) and name in BUILT_IN else None


def packed(name: str, folder: Path) -> Path:
    """A built-in corpus in the form of a raw one, made where it is not there. Raises UserError."""
    from data.corpus import pack

    archive = folder / "raw" / f"{name}.jsonl.zst.tar"
    try:
        if not archive.exists():
            pack(BUILT_IN[name].documents(), archive)
    except OSError as error:
        raise UserError(f"cannot prepare {folder}: {error.strerror or error}") from None
    return archive
