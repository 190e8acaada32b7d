"""Mounts that are not like a local disk: files that stay when they are removed, folders without fsync, no
modes, no locks.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from data.tokenize import main
from errors import UserError
from files import locked, remove_folder, sha256_of, write_atomically
from models.export import export
from tests.helpers import tiny_model


def open_here() -> set[str]:
    """Files that this process has open or mapped."""
    files = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            files.add(os.readlink(link))
        except FileNotFoundError:  # that of the listing itself
            continue
    return files | {
        line.split(maxsplit=5)[-1].strip()
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "/" in line
    }


@pytest.fixture(params=[".nfs", ".fuse_hidden"])
def network_mount(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where a removed file that is open stays under another name until it is closed, as on NFS
    and FUSE.
    """
    real = os.unlink
    hidden: list[Path] = []

    def unlink(path: Any, *, dir_fd: int | None = None) -> None:
        target = (
            Path(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
            if dir_fd is not None
            else Path(path).absolute()
        )
        if tmp_path not in target.parents or str(target) not in open_here():
            real(path, dir_fd=dir_fd)
        elif target.name.startswith(request.param):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))
        else:
            hidden.append(target.with_name(f"{request.param}{len(hidden):04}"))
            target.rename(hidden[-1])

    def forget_closed() -> None:
        for path in hidden:
            if path.exists() and str(path) not in open_here():
                real(path)

    real_rmdir = os.rmdir

    def rmdir(path: Any, *, dir_fd: int | None = None) -> None:
        forget_closed()
        real_rmdir(path, dir_fd=dir_fd)

    for name, double in {"unlink": unlink, "rmdir": rmdir}.items():
        monkeypatch.setattr(os, name, double)
    return tmp_path


def prepare(folder: Path) -> int:
    (folder / "text.jsonl").write_text("".join(f'{{"text": "document {number}"}}\n' for number in range(9)))
    return main(["--name", str(folder / "out"), "--input", str(folder / "text.jsonl"), "--workers", "1"])


@pytest.mark.slow
def test_a_dataset_is_prepared_where_open_files_cannot_be_removed(
    network_mount: Path, bpe_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(network_mount) == 0, capsys.readouterr().err
    assert sorted(path.name for path in (network_mount / "out").iterdir()) == [
        "meta.json",
        "train.bin",
        "val.bin",
    ]


def test_a_folder_that_keeps_an_open_file_is_emptied_and_that_is_no_error(network_mount: Path) -> None:
    folder = network_mount / "folder"
    (folder / "below").mkdir(parents=True)
    for name in ("a", "below/b", "z"):
        (folder / name).touch()
    with open(folder / "a"), open(folder / "below/b"):
        remove_folder(folder)
        assert all(
            path.is_dir() or path.name.startswith((".nfs", ".fuse_hidden")) for path in folder.rglob("*")
        )
        remove_folder(folder)
    remove_folder(folder)
    assert not folder.exists()


def test_a_folder_that_cannot_be_removed_for_another_reason_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()

    def unlink(path: Any, **more: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(PermissionError):
        remove_folder(tmp_path / "folder")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("kind", [stat.S_ISDIR, stat.S_ISREG])
def test_a_file_is_written_where_there_is_no_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: Any
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if kind(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "file", "content")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_sync_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(tmp_path / "file", "content")


def test_a_model_is_exported_where_modes_cannot_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copymode(*unused: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(shutil, "copymode", copymode)
    model = tiny_model("lncot")
    export(model.settings, model.state_dict(), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_lock_is_refused_while_another_holds_it_and_free_afterwards(tmp_path: Path) -> None:
    place = tmp_path / "lock"
    with locked(place, "busy"), pytest.raises(UserError, match="busy"), locked(place, "busy"):
        pass
    with locked(place, "busy"):
        pass


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock", "busy"):
        raise ZeroDivisionError
    with locked(tmp_path / "lock", "busy"):
        pass


def test_where_there_are_no_locks_the_work_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path / "lock", "busy"):
        pass


def test_the_checksum_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "file") == expected
