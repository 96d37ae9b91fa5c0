"""Atomic writes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from batchray.support.files import atomic_write, sync_directory


def test_the_new_content_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    with atomic_write(path, encoding="utf-8") as file:
        file.write("new ✓")
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "new ✓"
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_failed_block_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"half" * (1 // 0))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_failed_rename_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "taken") as file:
        file.write(b"content")
    assert os.listdir(tmp_path) == ["taken"]


def test_a_file_has_the_given_permissions_even_while_it_is_written(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "keys.json", permissions=0o600):
        (temporary,) = tmp_path.iterdir()
        assert temporary.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("has_many_writers", [False, True])
def test_a_temporary_file_left_by_a_crashed_writer_is_overwritten(tmp_path: Path, has_many_writers: bool) -> None:
    left = f"state.{os.getpid()}.{threading.get_ident()}.part" if has_many_writers else "state.part"
    (tmp_path / left).write_text("left behind by a crash, and longer")
    with atomic_write(tmp_path / "state", has_many_writers=has_many_writers) as file:
        file.write(b"new")
    assert (tmp_path / "state").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["state"]


def test_a_missing_directory_cannot_be_synced(tmp_path: Path) -> None:
    sync_directory(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_directory(tmp_path / "missing")
