"""Whole models as their hosts pickle them, old ones too: where classes moved to, and in the place of ``les``.

Loading such a file runs the code that is in it: callers ask for trust first.
"""

from __future__ import annotations

import importlib
import pickle
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from farfield.hosts.registry import adapter, host_of
from farfield.model_file import ModelFileError
from farfield.potentials.augmented import AugmentedPotential

#: Where classes are that pickles look for elsewhere: checkpoints published in 2025 were made with a fork of mace-torch.
_MOVED = {("mace.modules.models", "MACELES"): ("mace.modules.extensions", "MACELES")}

#: Holds the classes that take the state of those of ``les``; named, not imported, as a pickle names them.
_LES = "farfield.compat.les.pickles"


class _Unpickler(pickle.Unpickler):
    """Finds classes that have moved, and others in the place of those of ``les``, without touching ``sys.modules``."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "les":
            return importlib.import_module(_LES).stand_in(module, name)
        return super().find_class(*_MOVED.get((module, name), (module, name)))


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


def _pickle_module() -> types.ModuleType:
    """Return what ``torch.load`` takes in the place of `pickle`."""
    module = types.ModuleType("farfield_pickle")
    vars(module).update({"Unpickler": _Unpickler, "load": _load, "UnpicklingError": pickle.UnpicklingError})
    return module


def load_module(path: str | Path) -> nn.Module:
    """Unpickle a whole model of a host, which runs the code that is in the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If it holds no whole model.
    ImportError
        If mace-torch, or what else the pickle needs, is not installed.
    """
    from farfield.hosts.mace_models import importing

    try:
        with importing(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_pickle_module())
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:  # a pickle can fail in any way
        raise ModelFileError(f"{str(path)!r} cannot be unpickled ({type(error).__name__}: {error})") from error
    if not isinstance(found, nn.Module) or isinstance(found, torch.jit.ScriptModule):
        raise ModelFileError(
            f"{str(path)!r} holds a {type(found).__name__} but must hold a whole model, as mace-torch writes NAME.model"
        )
    return found


def load_potential(path: str | Path) -> AugmentedPotential:
    """Read a host's whole model, a ``MACELES`` with its long range; runs the code that is in the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If it holds no whole model of a host that there is an adapter for, or one that cannot be rebuilt.
    ImportError
        If the host is not installed.
    """
    model = load_module(path)
    try:
        if type(model).__name__ == "MACELES":
            from farfield.hosts.maceles import potential_of

            return potential_of(model)
        backbone = adapter(host_of(model)).from_host(model)
    except ValueError as error:
        raise ModelFileError(f"{str(path)!r}: {error}") from error
    return AugmentedPotential(backbone, reference_energies=backbone.reference_energies)
