"""Files that are whole or not there: a process killed while writing leaves the file of before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

#: Version of the checkpoint's layout.
FORMAT = 1


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file through a temporary one in the same directory, then rename.

    Parameters
    ----------
    path
        The file to make or replace.
    write
        Called with the open temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same directory, so that the rename stays within one file system and is atomic.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; outputs have the rights that any other new file would have.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain types atomically."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, onto the CPU; nothing but tensors and plain types is unpickled.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If the file is no checkpoint, or one of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {str(path)!r} to resume from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, … for a damaged file
        raise ValueError(f"{str(path)!r} is not a readable checkpoint ({error}): delete it to start anew") from error
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(f"{str(path)!r} is not a checkpoint of farfield")
    if state["format"] > FORMAT:
        raise ValueError(
            f"{str(path)!r} has checkpoint format {state['format']}, but this farfield reads up to {FORMAT}: update it"
        )
    return state
