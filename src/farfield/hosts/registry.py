"""Which potentials of other packages have an adapter, what it takes to use one, and what each gives."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Any

from torch import nn

from farfield.potentials.backbones import backbone_class


@dataclass(frozen=True)
class HostInfo:
    """What is known of a host.

    Attributes
    ----------
    name
        What configurations call it, and the extra that installs it: ``pip install 'farfield[NAME]'``.
    package
        Name under which it is installed.
    module
        Name under which Python imports it.
    tested
        Version that the tests run with.
    gives
        Features for the far field, and what else there is. Empty for a host without an adapter.
    obstacle
        Why there is no adapter, where there is none.
    within
        Module of another host whose classes its models are made of, too.
    """

    name: str
    package: str
    module: str
    tested: str
    gives: tuple[str, ...] = ()
    obstacle: str = ""
    within: str = ""

    @property
    def installed(self) -> str | None:
        """Version that is installed here; None where there is none."""
        if importlib.util.find_spec(self.module) is None:
            return None
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return "unknown"

    @property
    def install_line(self) -> str:
        """What to type to get it."""
        return f"pip install 'farfield[{self.name}]'"


#: All hosts by name; one that is built within another comes before it.
HOSTS = {
    info.name: info
    for info in (
        HostInfo("mace", "mace-torch", "mace", "0.3.16", ("scalars", "vectors", "tensors", "stress")),
        HostInfo("chgnet", "chgnet", "chgnet", "0.4.2", ("scalars", "stress", "pretrained weights")),
        HostInfo("matgl", "matgl", "matgl", "4.1.2", ("scalars", "vectors", "tensors", "stress")),
        HostInfo(
            "allegro",
            "nequip-allegro",
            "allegro",
            "0.8.3",
            ("scalars", "vectors", "tensors", "stress"),
            within="nequip",
        ),
        HostInfo("nequip", "nequip", "nequip", "0.19.0", ("scalars", "vectors", "tensors", "stress")),
        HostInfo(
            "schnetpack",
            "schnetpack",
            "schnetpack",
            "2.1.1",
            obstacle="version 2.1.1 demands a sympy older than torch 2.13 does, so that the two cannot be imported "
            "together",
        ),
        HostInfo(
            "sevenn",
            "sevenn",
            "sevenn",
            "0.13.0",
            obstacle="models that come with version 0.13.0 tell a molecule from its mirror image (features of SO(3), "
            "not of O(3)), and a model does not carry the settings that rebuild it",
        ),
    )
}


def host_info(name: str) -> HostInfo:
    """Return what is known of a host that has an adapter.

    Raises
    ------
    ValueError
        If the name is not known, or there is no adapter; says why.
    """
    able = [known for known, info in HOSTS.items() if info.gives]
    if name not in HOSTS:
        raise ValueError(
            f"Unknown host {name!r}. Must be one of {able}; for a model of your own see the recipe in the documentation"
        )
    if not HOSTS[name].gives:
        raise ValueError(f"the host {name!r} has no adapter: {HOSTS[name].obstacle}. There are adapters for {able}")
    return HOSTS[name]


def require(name: str) -> None:
    """Make sure that a host can be imported.

    Raises
    ------
    ImportError
        If it is not installed; says what to type.
    """
    info = host_info(name)
    if info.installed is None:
        raise ImportError(f"the host {name!r} needs the package {info.package}, which is not here: {info.install_line}")


def adapter(name: str) -> type[Any]:
    """Return the adapter's class of a host that is installed.

    Raises
    ------
    ValueError
        If the name is not known, or there is no adapter.
    ImportError
        If the host is not installed; says what to type.
    """
    require(name)
    return backbone_class(name)


def _package_of(cls: type) -> str:
    """Top-level package of a class, also of one that a file of torch.package brought along."""
    names = cls.__module__.split(".")
    return names[1] if names[0].startswith("<torch_package_") and len(names) > 1 else names[0]


def host_of(model: nn.Module) -> str:
    """Name the host that a model belongs to, by the package of its class or of one that it inherits from.

    Raises
    ------
    ValueError
        If there is no adapter for it.
    """
    packages = {_package_of(cls) for cls in type(model).__mro__}
    parts = {_package_of(type(part)) for part in model.modules()}
    for info in HOSTS.values():
        if info.module in packages or (info.within in packages and info.module in parts):
            return host_info(info.name).name
    cls = type(model)
    raise ValueError(
        f"there is no adapter for {cls.__module__}.{cls.__qualname__}: give a model of one of "
        f"{[name for name, info in HOSTS.items() if info.gives]}, or an nn.Module that follows "
        "farfield.potentials.features.Backbone"
    )
