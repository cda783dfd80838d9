"""Training: the typed configuration, losses, the Lightning module and the loop around it.

``farfield train CONFIG.yaml`` fits a potential to energies and forces (and stress); charges and dipoles are never
trained on unless asked for. Runs can be killed at any moment and resume at their last checkpoint.
"""

from __future__ import annotations

import importlib

__all__ = ["ConfigError", "TrainingConfig", "TrainingResult", "read_config", "train", "train_from_yaml"]

_HOME = {
    "ConfigError": "farfield.training.config",
    "TrainingConfig": "farfield.training.config",
    "TrainingResult": "farfield.training.run",
    "read_config": "farfield.training.reading",
    "train": "farfield.training.run",
    "train_from_yaml": "farfield.training.run",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for: Lightning takes seconds to import."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Its names are {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)
