"""The short-range backbones that there are, by name: those of this package, and others by entry points."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

#: Where the backbones of this package are; as entry points in ``pyproject.toml``, too. This table also serves a source
#: tree that is not installed, and installations from before one of them was there.
OURS = {
    "cace": "farfield.potentials.cace:CACE",
    "chgnet": "farfield.hosts.chgnet:CHGNetBackbone",
    "mace": "farfield.hosts.mace:MACEBackbone",
    "maceles": "farfield.hosts.maceles:MACELESBackbone",
    "nequip": "farfield.hosts.nequip:NequIPBackbone",
    "allegro": "farfield.hosts.allegro:AllegroBackbone",
    "matgl": "farfield.hosts.matgl:MatGLBackbone",
}


def _addresses() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group="farfield.backbones")} | OURS


def backbone_class(kind: str) -> type[Any]:
    """Class of a backbone by its name: one of this package, or an entry point of the group ``farfield.backbones``.

    Parameters
    ----------
    kind
        The name, or the address ``module:class`` of one that has a name.

    Raises
    ------
    ValueError
        If no installed package registers the name.
    """
    known = _addresses()
    address = known.get(kind, kind)
    if address not in known.values():
        raise ValueError(f"Unknown backbone {kind!r}. Must be one of {sorted(known)}")
    module, _, name = address.partition(":")
    return getattr(importlib.import_module(module), name)


def kind_of(cls: type[Any]) -> str:
    """Name of a backbone's class; its address, ``module:class``, where no package registers it."""
    address = f"{cls.__module__}:{cls.__qualname__}"
    return {value: name for name, value in _addresses().items()}.get(address, address)
