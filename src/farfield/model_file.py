"""The file of a model: one safetensors file whose metadata key ``farfield`` holds JSON. No pickle anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from farfield.files import replacing

#: Version of the layout of the JSON. Raise it when an older farfield could misread the file.
FORMAT = 1


class ModelFileError(ValueError):
    """A file that is no farfield model, is damaged, or is of a newer format."""


def write_model_file(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and header to a file, which appears whole or not at all.

    Parameters
    ----------
    path
        File to write; one that is there is replaced in a single step.
    tensors
        Weights, written in their own dtype.
    header
        Plain JSON values; the format version is added.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If the header is not JSON, for instance holds NaN.
    """
    import safetensors.torch

    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name!r} into: create it first")
    try:
        text = json.dumps({"format": FORMAT, **header}, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the model's card or recipe cannot be written as JSON ({error}): use plain numbers and text"
        ) from error
    # Clones, because safetensors refuses tensors that share memory.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = safetensors.torch.save(own, metadata={"farfield": text})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_model_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and header of a model file.

    Returns
    -------
    tuple
        Tensors on the CPU by name, and the header.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is no safetensors file, holds no farfield model, is damaged, or has a newer format.
    """
    import safetensors
    import safetensors.torch

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no model file {str(path)!r}")
    if path.is_dir():
        raise ModelFileError(f"{str(path)!r} is a folder, not a model: give the .ff file itself")
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ModelFileError(
            f"{str(path)!r} is not a farfield model, or is damaged ({error}): a model is a safetensors file written by "
            "Model.save"
        ) from error
    if "farfield" not in metadata:
        raise ModelFileError(
            f"{str(path)!r} is a safetensors file but not a farfield model: its metadata have no key 'farfield', only "
            f"{sorted(metadata)}"
        )
    try:
        header = json.loads(metadata["farfield"])
        version = header["format"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelFileError(f"the header of {str(path)!r} is damaged ({error!r})") from error
    if not isinstance(version, int) or version < 1:
        raise ModelFileError(f"the header of {str(path)!r} is damaged: its format is {version!r}, but must be a number")
    if version > FORMAT:
        raise ModelFileError(
            f"{str(path)!r} has format {version}, written by farfield {header.get('farfield', '(unknown)')}, but this "
            f"farfield reads formats up to {FORMAT}: update farfield"
        )
    return tensors, header


def is_pickle(path: str | Path) -> bool:
    """Whether a file looks like one of ``torch.save``: a zip archive, or a bare pickle; safetensors begin otherwise."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(9)
    # eight bytes for the length of a header that begins with a brace
    return start[8:9] != b"{" and (start.startswith(b"PK\x03\x04") or start[:1] == b"\x80")
