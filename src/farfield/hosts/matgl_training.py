"""The far field inside of matgl's own training: ``Potential(model=LongRangeModel(network, …))``.

A ``Potential`` multiplies what its model gives by ``data_std``, and hands it neither that nor the cell.
`LongRangeModel` gets both by a hook that is put on a potential as soon as the model becomes part of it; the strain, in
which matgl takes the stress, comes with the lattice of each edge.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from farfield.atoms.batch import AtomicBatch, Neighbors
from farfield.hosts.matgl import MatGLBackbone, importing, parts_of
from farfield.potentials.augmented import AugmentedPotential
from farfield.potentials.long_range import LongRange

with importing():
    import matgl
    from matgl.apps.pes import Potential
    from matgl.utils.io import IOMixIn


class LongRangeModel(nn.Module, IOMixIn):
    """A network of MatGL with its far field, as the ``model`` of matgl's ``Potential`` and of what trains one.

    The energy of the potential is ``data_std`` times that of the network, plus ``data_mean``, plus the long-range
    energy in eV as it is; matgl takes forces and stress of the sum. Lengths must be in Å.

    Graphs are those of matgl's converters. One with the lattice that matgl gives to molecules, the unit matrix, is
    open along all axes and any other periodic along all, unless it has a ``pbc`` of shape (1, 3). A ``total_charge`` of
    shape (1,) is a graph's total charge (e).

    Parameters
    ----------
    network
        TensorNet, M3GNet, CHGNet or SO3Net, whose weights are copied (see `farfield.hosts.matgl.MatGLBackbone` for what
        is refused, and what is left out); or arguments of that adapter, for fresh weights.
    charge
        Total charge of a system (e) whose graph has no ``total_charge``, where the far field makes use of it.
    **long_range
        Arguments of `farfield.LongRange`: ``dipoles=True``, ``total_charge="constraint"``, ….

    Attributes
    ----------
    element_types, cutoff
        Symbols of the elements in the network's order, and the range of its edges (Å), with which graphs are made.

    Raises
    ------
    ValueError
        If the network is of another kind or within a ``Potential``, or lacks features or neighbours for what is wanted.
    """

    __version__ = 1  # of what matgl's `save` writes

    def __init__(
        self, network: nn.Module | Mapping[str, Any], *, charge: float | None = None, **long_range: Any
    ) -> None:
        super().__init__()
        _watch()
        if isinstance(network, Potential):
            raise ValueError(
                "`network` is a Potential: give its `model`, and data_mean, data_std and element_refs to what trains it"
            )
        like = next(network.parameters()) if isinstance(network, nn.Module) else torch.zeros((), dtype=matgl.float_th)
        backbone: Any = MatGLBackbone
        self.backbone = backbone(**network) if isinstance(network, Mapping) else backbone.from_host(network)
        widths = (self.backbone.n_scalars, self.backbone.n_vectors, self.backbone.n_tensors)
        self.long_range = LongRange(*widths, **long_range)
        self.cutoff = self.backbone.cutoff
        self.element_types = tuple(self.backbone.host.element_types)
        self.charge = charge
        if self.long_range.reach > self.cutoff:
            raise ValueError(
                f"bonds of the far field reach {self.long_range.reach:g} Å but edges of the network only "
                f"{self.cutoff:g} Å"
            )
        self.to(device=like.device, dtype=like.dtype)
        # what matgl's `save` writes, and hands to the class again
        self._init_args = {"network": self.backbone.config(), "charge": charge, **long_range}

    def forward(self, g: Any, state_attr: Any = None, l_g: Any = None) -> Float[Tensor, " systems"]:
        """Energies in units of the potential's ``data_std``; states and line graphs that matgl hands over are not used.

        Raises
        ------
        RuntimeError
            If the model is called by itself: the unit is that of the `Potential` which it is part of.
        ValueError
            If a periodic system has no edge to take the strained lattice from, or a total charge is missing.
        """
        if getattr(g, "energy_unit", None) is None:
            raise RuntimeError("the far field needs a matgl Potential around it: Potential(model=LongRangeModel(…))")
        if g.pos.requires_grad:  # matgl's metrics take forces by `view`
            g.pos.register_hook(Tensor.contiguous)
        batch = self._batch(g, g.pos, g.unstrained_cell, _strained(g))
        features = self.backbone(batch)
        return features.energy + (self.long_range(batch, features).energy / g.energy_unit).to(features.energy.dtype)

    @torch.no_grad()
    def calibrate(self, g: Any, lat: Float[Tensor, "*systems 3 3"]) -> None:
        """Scale the features to order one before training, by graphs and lattices as matgl's loaders give them.

        The network's energy stays what it is.
        """
        like = next(self.parameters())
        system, systems = _systems(g)
        cell = lat.reshape(systems, 3, 3).to(like)
        positions = torch.einsum("ac,acx->ax", g.frac_coords.to(like), cell[system.to(like.device)])
        self.backbone.calibrate(self._batch(g, positions, cell, cell))

    def _batch(self, g: Any, positions: Tensor, unstrained: Tensor, cell: Tensor) -> AtomicBatch:
        system, systems = _systems(g)
        pbc, charge = getattr(g, "pbc", None), getattr(g, "total_charge", None)
        if pbc is None:
            pbc = _periodic(unstrained)[:, None].expand(systems, 3)
        if charge is None and self.charge is not None:
            charge = positions.new_full((systems,), self.charge)
        numbers = torch.tensor(self.backbone.elements, device=positions.device)
        i, j = g.edge_index.to(positions.device)
        shifts = g.pbc_offset.to(positions.device).round().long()
        return AtomicBatch(
            positions=positions,
            numbers=numbers[g.node_type.to(positions.device)],
            cell=cell,
            pbc=pbc.reshape(systems, 3).to(positions.device).bool(),
            system=system.to(positions.device),
            total_charge=None if charge is None else charge.reshape(systems).to(positions),
            neighbors=Neighbors.of_pairs(i, j, shifts, self.cutoff, is_sorted=False),
        )


def _systems(g: Any) -> tuple[Int[Tensor, " atoms"], int]:
    """System of each atom, and how many there are; a graph by itself says neither."""
    system = getattr(g, "batch", None)
    if system is None:
        return torch.zeros_like(g.node_type), 1
    return system, g.num_graphs


def _periodic(cell: Float[Tensor, "systems 3 3"]) -> Tensor:
    """Whether a lattice is another than the one that matgl gives to molecules."""
    return (cell != torch.eye(3, dtype=cell.dtype, device=cell.device)).flatten(1).any(1)


def _strained(g: Any) -> Float[Tensor, "systems 3 3"]:
    """Lattice of each system with matgl's strain, from one of its edges; without edges, of open systems, as it is."""
    system, systems = _systems(g)
    count = g.edge_index.shape[1]
    steps = torch.arange(count + systems, device=g.pos.device)
    first = steps[count:].scatter_reduce(0, system[g.edge_index[0]], steps[:count], "amin")
    if bool(((first >= count) & _periodic(g.unstrained_cell)).any()):
        raise ValueError("a periodic system has no edges, and matgl hands its strain over with these: leave it out")
    return torch.cat([g.lattice, g.unstrained_cell])[first]


@functools.cache
def _watch() -> None:
    """From now on have each potential tell its `LongRangeModel` what it does not by itself."""

    def joined(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        if not isinstance(parent, Potential):
            return
        if isinstance(getattr(child, "_orig_mod", None), LongRangeModel):
            raise ValueError("`compile_model` is set but the far field cannot be compiled: leave it out")
        if isinstance(child, LongRangeModel):
            parent.register_forward_pre_hook(_tell, with_kwargs=True)

    register_module_module_registration_hook(joined)


def _tell(potential: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
    """Put unit and lattice on a copy of the graph that a potential is called with; a hook."""
    if potential.calc_charge or potential.calc_magmom:
        raise ValueError("a model with a far field gives matgl no charges and magnetic moments of atoms: unset these")
    given = inspect.signature(potential.forward).bind(*args, **kwargs).arguments
    if given["lat"] is None:
        return (), given  # matgl says what it thinks of that
    std = potential.data_std
    g = copy.copy(given["g"])
    g.energy_unit = std
    g.unstrained_cell = given["lat"].reshape(_systems(g)[1], 3, 3).to(std)
    return (), {**given, "g": g}


def potential_of(model: nn.Module) -> AugmentedPotential:
    """Make a potential of farfield, with all outputs, out of one that matgl has trained with a `LongRangeModel`.

    Parameters
    ----------
    model
        The ``Potential``, or the Lightning module that it is part of, which stays as it is. Its ``data_mean`` and
        ``data_std`` become part of the short range, its ``element_refs`` the reference energies.

    Raises
    ------
    ValueError
        If there is no `LongRangeModel` in it, or a repulsion.
    """
    potential: Any = model if isinstance(model, Potential) else getattr(model, "model", None)
    if not isinstance(potential, Potential) or not isinstance(potential.model, LongRangeModel):
        raise ValueError("`model` has no farfield.hosts.matgl_training.LongRangeModel as its `model`: use augment")
    inner, scale, shift, references = parts_of(potential)
    backbone = copy.deepcopy(inner.backbone)
    backbone.energy_scale.fill_(scale)
    backbone.energy_shift.fill_(shift)
    backbone.pretrained = True
    if references is not None:
        backbone.reference_energies = dict(zip(backbone.elements, references, strict=True))
    far = copy.deepcopy(inner.long_range)
    return AugmentedPotential(backbone, far, reference_energies=backbone.reference_energies)
