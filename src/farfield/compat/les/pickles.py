"""What pickles of the original ``les`` name: classes that take such a pickle's state, and how it is read.

A checkpoint of a whole module names the classes of all its parts. Those of ``les.*`` are put here in the place of the
original's: `Les` itself takes the settings that stand in the state; the others only hold it, but for `Atomwise`.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: How far numbers of one state that say the same may differ.
_SAME = 1e-6


class Part(nn.Module):
    """A part of a pickle that only holds what was in it."""

    def values(self) -> Iterator[tuple[str, Any]]:
        """Go through attributes, buffers, parameters by name."""
        state = vars(self)
        for name, value in state.items():
            if not name.startswith("_") and name != "training":
                yield name, value
        for group in ("_buffers", "_parameters"):
            yield from (state.get(group) or {}).items()


class Ewald(Part):
    """``les.module.ewald.Ewald``."""


class BEC(Part):
    """``les.module.bec.BEC``."""


class FixedCharges(Part):
    """``les.module.fixedcharges.FixedCharges``: holds a table of charges."""


class AtomicAlpha(Part):
    """``les.module.atomicalpha.AtomicAlpha``: holds a table of polarizabilities."""


class Atomwise(Part):
    """``les.module.atomwise.Atomwise``: charges from features, where a pickle holds its network."""

    def forward(self, desc: Tensor) -> Tensor:
        """Return ``output_scaling_factor`` × (the network of ``desc`` and, where there is one, a linear map beside it).

        Raises
        ------
        ValueError
            If the network was never built, or there are parts whose use is not known here.
        """
        known = dict(vars(self))
        parts = {name: part for name, part in self._modules.items() if part is not None}
        network = parts.pop("outnet", known.get("outnet"))
        beside = parts.pop("linear_nn", known.get("linear_nn"))
        strange = [name for name, part in parts.items() if any(True for _ in part.parameters())]
        if not isinstance(network, nn.Module) or strange:
            raise ValueError(
                "the pickle's Atomwise "
                + (f"has parts {strange} whose use is not known here" if strange else "was never built: it has no")
                + " `outnet`: give `latent_charges`"
            )
        out = network(desc)
        if isinstance(beside, nn.Module):
            out = out + beside(desc)
        return float(known["output_scaling_factor"]) * out


#: Classes of the original by where they were.
_CLASSES: dict[str, type[nn.Module]] = {
    "les.module.ewald.Ewald": Ewald,
    "les.module.bec.BEC": BEC,
    "les.module.atomwise.Atomwise": Atomwise,
    "les.module.fixedcharges.FixedCharges": FixedCharges,
    "les.module.atomicalpha.AtomicAlpha": AtomicAlpha,
}


def stand_in(module: str, name: str) -> type[nn.Module]:
    """Class in the place of one of ``les``, also of one that is not known here (it then only holds what was in it).

    Parameters
    ----------
    module, name
        Module and name of the class as a pickle has them, ``"les.module.ewald"`` and ``"Ewald"``.
    """
    if name == "Les":
        from farfield.compat.les import Les

        return Les
    return _CLASSES.get(f"{module}.{name}", Part)


def modules() -> dict[str, types.ModuleType]:
    """Modules below ``les`` that hold these classes, by name, to be put into ``sys.modules``."""
    from farfield.compat.les import Les

    made: dict[str, types.ModuleType] = {}
    for address, cls in {"les.les.Les": Les, **_CLASSES}.items():
        path, _, name = address.rpartition(".")
        while "." in path:  # les.module and les.module.ewald, but not les, which is this package
            made.setdefault(path, types.ModuleType(path))
            if path == address.rpartition(".")[0]:
                setattr(made[path], name, cls)
            path = path.rpartition(".")[0]
    return made


def options_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `farfield.compat.les.Les` from the state of a pickled ``les.les.Les``; the sum is the published one.

    What the parts of the module say goes before what the module says, since the parts do the work.

    Raises
    ------
    ValueError
        If something is missing, contradicts itself, or needs a table that the pickle does not hold.
    """
    parts: Mapping[str, Any] = {**state, **state.get("_modules", {})}
    ewald, born = parts.get("ewald"), parts.get("bec")
    sigma, dl = float(_read("sigma", ewald, state)), float(_read("dl", ewald, state))
    for name, expected in (("sigma_sq_half", 0.5 * sigma**2), ("k_sq_max", (2.0 * math.pi / dl) ** 2)):
        found = _read(name, ewald, default=expected)
        if not math.isclose(float(found), expected, rel_tol=_SAME):
            raise ValueError(
                f"the pickle's Ewald has {name} {float(found)} but {expected} would follow from sigma {sigma} and dl "
                f"{dl}: it is not known which of them its energies come from"
            )
    options: dict[str, Any] = {
        "truncation": "published",
        "sigma": sigma,
        "dl": dl,
        "norm_factor": float(_read("norm_factor", ewald)),
        "remove_self_interaction": bool(_read("remove_self_interaction", ewald, state)),
        "remove_mean": bool(_read("remove_mean", born, state, default=True)),
        "epsilon_factor": float(_read("epsilon_factor", born, state, default=1.0)),
        "use_atomic_alpha": bool(state.get("use_atomic_alpha", False)),
    }
    if state.get("use_fixed_atomic_charges", False):
        holders = [part for part in parts.values() if isinstance(part, FixedCharges)]
        if len(holders) != 1:
            raise ValueError("the pickle uses fixed atomic charges but holds no table of them")
        options |= {
            "use_fixed_atomic_charges": True,
            "fixed_atomic_charges_scaling_factor": float(_read("fixed_atomic_charges_scaling_factor", state)),
            "fixed_atomic_charges": _table(holders[0]),
        }
    return options


_MISSING = object()


def _read(name: str, *holders: Any, default: Any = _MISSING) -> Any:
    """Value of an attribute from the first holder that has it: a module, or the state of one."""
    for holder in holders:
        state = holder if isinstance(holder, Mapping) else vars(holder) if holder is not None else {}
        for group in (state, state.get("_buffers") or {}, state.get("_parameters") or {}):
            if name in group:
                return group[name]
    if default is _MISSING:
        raise ValueError(f"the pickle's Les has no `{name}`: it cannot be known what its energies are")
    return default


def _table(part: Part) -> dict[int, float]:
    """Charges by atomic number: a dictionary by number or symbol, or a list whose place 0 is empty."""
    found = []
    for _, value in part.values():
        if isinstance(value, Mapping) and value:
            found.append({_number(key): float(charge) for key, charge in value.items()})
        elif isinstance(value, Tensor | list | tuple) and len(torch.as_tensor(value).shape) == 1 and len(value) > 1:
            numbers = torch.as_tensor(value).tolist()
            if numbers[0] != 0.0 or len(numbers) < 87:
                raise ValueError(
                    f"the pickle's FixedCharges holds {len(numbers)} numbers that do not look like a table by atomic "
                    "number, from 0 on: it is not known which belongs to which element"
                )
            found.append(dict(enumerate(numbers[1:], start=1)))
    if len(found) != 1:
        raise ValueError(f"the pickle's FixedCharges holds {len(found)} tables, but must hold one")
    return found[0]


def _number(key: Any) -> int:
    if isinstance(key, str) and not key.isdigit():
        from ase.data import atomic_numbers

        return atomic_numbers[key]
    return int(key)


def install_modules() -> None:
    """Put the classes where pickles look for them."""
    sys.modules.update(modules())
