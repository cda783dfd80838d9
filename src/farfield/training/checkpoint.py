"""Checkpoints: tensors and plain types, on disk whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from farfield.files import replacing

#: Version of the checkpoint's layout.
FORMAT = 1


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain types; a process killed meanwhile leaves the one of before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # An open file: given a name, torch would write that of the temporary file into its archive.
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)


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
