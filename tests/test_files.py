"""Files appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from farfield.files import replacing, write_text


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_reader_meets_the_old_file_until_the_new_one_is_done(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # another file system would make a copy of it
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "folder" / "file", "Å")
    assert (tmp_path / "folder" / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "folder" / "file").read_bytes() == "Å".encode()
