"""The far field inside of nequip's own models: ``pair_potential`` in a configuration of ``nequip-train``.

NequIP and Allegro make a ``pair_potential`` last, when features of earlier layers are overwritten, and do not show it
the layers. `LongRangeEnergy` finds them when it is put into the model, and hooks them (`HostFeatures`).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers
from nequip.nn import GraphModuleMixin
from nequip.scripts._package_utils import register_libraries_as_external_for_packaging
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.modules.module import register_module_module_registration_hook

from farfield.atoms.batch import AtomicBatch, Neighbors
from farfield.hosts.base import traceless_from_l2
from farfield.hosts.nequip_features import HostFeatures
from farfield.hosts.registry import adapter, host_of
from farfield.potentials.augmented import AugmentedPotential
from farfield.potentials.features import Features
from farfield.potentials.long_range import LongRange

_ENERGY, _PBC, _CHARGE = "atomic_energy", "pbc", "charge"


class LongRangeEnergy(GraphModuleMixin, nn.Module):
    """Long-range energy of latent multipoles, as a ``pair_potential`` of NequIP or Allegro.

    nequip's own module takes forces and stress of the sum of both energies. Energies must be in eV, lengths in Å. An
    atom's share of the long-range energy is that of its system divided by the number of atoms: only the sum has a
    meaning. The model works in Python alone, with ``compile_mode: eager``.

    Parameters
    ----------
    type_names, irreps_in
        Given by nequip. Types must be element symbols.
    charge
        Total charge of a system (e) whose data give no ``charge``, where the far field makes use of it.
    **long_range
        Arguments of `farfield.LongRange`: ``dipoles: true``, ``total_charge: constraint``, ….

    Raises
    ------
    ValueError
        If types are no element symbols, or the model has no features for what is wanted, or not all neighbours for it.
    """

    long_range: LongRange
    features: HostFeatures
    numbers: Tensor

    def __init__(
        self, type_names: Sequence[str], irreps_in: Mapping[str, Any], *, charge: float | None = None, **long_range: Any
    ) -> None:
        super().__init__()
        _watch()
        unknown = [name for name in type_names if name not in atomic_numbers]
        if unknown:
            raise ValueError(f"`type_names` {unknown} are no element symbols, and farfield knows atoms by element")
        GraphModuleMixin._init_irreps(self, irreps_in=irreps_in, irreps_out={_ENERGY: irreps_in[_ENERGY]})
        self.charge = charge
        # hydra hands over lists of its own
        plain = OmegaConf.to_container
        self._arguments = {k: plain(v) if OmegaConf.is_config(v) else v for k, v in long_range.items()}
        self.register_buffer("numbers", torch.tensor([atomic_numbers[name] for name in type_names]), persistent=False)

    def join(self, model: Any) -> None:
        """Become part of an energy model: put hooks on its layers, and make heads for what they give."""
        if hasattr(self, "long_range"):
            return
        parts = dict(model.named_children())
        self.features = HostFeatures(parts)
        widths = (self.features.n_scalars, self.features.n_vectors, self.features.n_tensors)
        self.long_range = LongRange(*widths, **self._arguments)
        self.cutoff = float(parts["edge_norm"].r_max)
        if self.long_range.reach and parts["edge_norm"]._per_edge_type:
            raise ValueError(
                "bonds of the far field need all neighbours within `r_max`: leave out `per_edge_type_cutoff`"
            )
        # nequip hands its models only what they say they read
        for field in (_PBC, _CHARGE):
            model.irreps_in.setdefault(field, None)

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the long-range energy to that of the atoms in nequip's dictionary.

        Raises
        ------
        RuntimeError
            If the model is being compiled, which would freeze the k-vectors of its first cell.
        ValueError
            If positions or periodicity are not given, or the total charge that the far field needs.
        """
        if get_proxy_mode() is not None:
            raise RuntimeError("the far field cannot be traced: train with `compile_mode: eager`, and do not compile")
        scalars, vectors, tensors = self.features(data)
        batch = self._batch(data, scalars.dtype)
        features = Features(
            energy=scalars.new_zeros(batch.n_systems),
            scalars=scalars,
            vectors=vectors if self.features.n_vectors else None,
            tensors=traceless_from_l2(tensors) if self.features.n_tensors else None,
        )
        energy = self.long_range(batch, features).energy.double()
        shares = (energy / batch.counts)[batch.system]
        data[_ENERGY] = data[_ENERGY] + shares[:, None]
        return data

    def _batch(self, data: dict[str, Tensor], dtype: torch.dtype) -> AtomicBatch:
        if "pos" not in data or (_PBC not in data and "cell" in data):
            raise ValueError("the far field needs positions, and with a cell `pbc`: this way of running gives none")
        positions = data["pos"]
        system = data.get("batch")
        if system is None:
            system = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
        systems = len(data["num_atoms"]) if "num_atoms" in data else 1
        cell, pbc, charge = data.get("cell"), data.get(_PBC), data.get(_CHARGE)
        if cell is None:
            cell = positions.new_zeros(systems, 3, 3)
        if pbc is None:
            pbc = torch.zeros(systems, 3, dtype=torch.bool, device=positions.device)
        if charge is None and self.charge is not None:
            charge = positions.new_full((systems,), self.charge)
        batch = AtomicBatch(
            positions=positions,
            numbers=self.numbers[data["atom_types"].view(-1)],
            cell=cell.reshape(systems, 3, 3),
            pbc=pbc.reshape(systems, 3),
            system=system,
            total_charge=None if charge is None else charge.reshape(systems),
            neighbors=self._neighbors(data) if self.long_range.reach else None,
        )
        return batch.to(dtype=dtype)

    def _neighbors(self, data: dict[str, Tensor]) -> Neighbors:
        i, j = data["edge_index"]
        shifts = data["edge_cell_shift"] if "edge_cell_shift" in data else i.new_zeros(len(i), 3)
        return Neighbors.of_pairs(i, j, shifts.round().long(), self.cutoff, is_sorted=False)


@functools.cache
def _watch() -> None:
    """From now on tell each `LongRangeEnergy` which model it is put into."""

    def joined(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        if isinstance(child, LongRangeEnergy) and "edge_norm" in dict(parent.named_children()):
            child.join(parent)

    register_module_module_registration_hook(joined)
    # packages of nequip-package name farfield instead of taking its source in
    register_libraries_as_external_for_packaging(extern_modules=["farfield"])


def potential_of(
    model: nn.Module | str | Path, *, name: str = "nequip", trust: bool = False, head: str | None = None
) -> AugmentedPotential:
    """Make a potential of farfield out of a model that nequip has trained with a `LongRangeEnergy`.

    Parameters
    ----------
    model
        The model, which stays as it is, or the checkpoint that ``nequip-train`` has written.
    name
        Host of a checkpoint: ``"nequip"`` or ``"allegro"``.
    trust
        Load the checkpoint though it is a pickle, which may run any code.
    head
        Which model to take of a checkpoint that has several.

    Raises
    ------
    ValueError
        If the model has no `LongRangeEnergy`, or its short range cannot be taken over (see `farfield.augment`).
    """
    found = model if isinstance(model, nn.Module) else adapter(name).load(model, trust=trust, head=head)
    inner: Any = getattr(found, "model", found)
    short = copy.deepcopy(getattr(inner, "func", inner))
    pair = getattr(short, "pair_potential", None)
    if not isinstance(pair, LongRangeEnergy):
        raise ValueError("`model` has no farfield.hosts.nequip_pair.LongRangeEnergy as `pair_potential`: use augment")
    del short.pair_potential
    backbone = adapter(host_of(found)).from_host(short)
    return AugmentedPotential(backbone, pair.long_range, reference_energies=backbone.reference_energies)
