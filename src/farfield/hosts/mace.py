"""MACE (mace-torch, Batatia et al., arXiv 2206.07697) as a backbone: energy, invariants of all layers, l = 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch
from farfield.hosts.base import HostBackbone, check_copy, columns_of, probe, traceless_from_l2
from farfield.hosts.mace_models import as_scale_shift, build, importing, load_weights, settings_of
from farfield.potentials.features import Features


class MACEBackbone(HostBackbone):
    """MACE as a backbone; arguments are those of ``mace.modules.models.ScaleShiftMACE`` where not said otherwise.

    Scalars are the 0e features of all layers, vectors those of kind 1o, tensors those of kind 2e, in the layers that
    have them: mace-torch keeps only scalars in the last one unless told otherwise. Made in double precision, so that
    its constants are exact; ``.to(dtype)`` follows.

    Parameters
    ----------
    elements
        Atomic numbers that the model knows.
    cutoff
        Range of the edges (Å), mace's ``r_max``.
    hidden_irreps
        Features of a layer, in e3nn's notation: ``"64x0e+64x1o+64x2e"`` has vectors and tensors.
    num_interactions, correlation, max_ell, num_bessel, num_polynomial_cutoff, MLP_irreps, radial_MLP, radial_type, \
    distance_transform, pair_repulsion, apply_cutoff, use_reduced_cg, use_so3, use_agnostic_product, \
    use_last_readout_only, keep_last_layer_irreps, edge_irreps, use_edge_irreps_first, heads
        As in mace.
    gate, interaction_first, interaction, readout
        Names of mace's gate, interaction and last readout.
    head
        Which of several heads gives the energy.

    Raises
    ------
    ImportError
        If mace-torch is not installed.
    ValueError
        If an argument is out of its range.
    """

    host: Any
    scalar_index: Tensor
    vector_index: Tensor
    tensor_index: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float,
        *,
        hidden_irreps: str = "64x0e+64x1o",
        num_interactions: int = 2,
        correlation: int | Sequence[int] = 3,
        max_ell: int = 3,
        num_bessel: int = 8,
        num_polynomial_cutoff: int = 5,
        MLP_irreps: str = "16x0e",
        gate: str = "silu",
        interaction_first: str = "RealAgnosticInteractionBlock",
        interaction: str = "RealAgnosticResidualInteractionBlock",
        readout: str = "NonLinearReadoutBlock",
        radial_MLP: Sequence[int] = (64, 64, 64),
        radial_type: str = "bessel",
        distance_transform: str = "None",
        pair_repulsion: bool = False,
        apply_cutoff: bool = True,
        use_reduced_cg: bool = True,
        use_so3: bool = False,
        use_agnostic_product: bool = False,
        use_last_readout_only: bool = False,
        keep_last_layer_irreps: bool = False,
        edge_irreps: str | None = None,
        use_edge_irreps_first: bool = False,
        heads: Sequence[str] = ("Default",),
        head: str | None = None,
    ) -> None:
        super().__init__(elements, cutoff)
        if head is None and len(heads) > 1:
            raise ValueError(f"the model has several heads: set `head` to one of {list(heads)}")
        if head is not None and head not in heads:
            raise ValueError(f"`head` is {head!r} but must be one of {list(heads)}")
        self._config |= {
            "hidden_irreps": hidden_irreps,
            "num_interactions": num_interactions,
            "correlation": correlation if isinstance(correlation, int) else list(correlation),
            "max_ell": max_ell, "num_bessel": num_bessel, "num_polynomial_cutoff": num_polynomial_cutoff,
            "MLP_irreps": MLP_irreps, "gate": gate, "interaction_first": interaction_first, "interaction": interaction,
            "readout": readout, "radial_MLP": list(radial_MLP), "radial_type": radial_type,
            "distance_transform": distance_transform, "pair_repulsion": pair_repulsion, "apply_cutoff": apply_cutoff,
            "use_reduced_cg": use_reduced_cg, "use_so3": use_so3, "use_agnostic_product": use_agnostic_product,
            "use_last_readout_only": use_last_readout_only, "keep_last_layer_irreps": keep_last_layer_irreps,
            "edge_irreps": edge_irreps, "use_edge_irreps_first": use_edge_irreps_first, "heads": list(heads),
            "head": head,
        }  # fmt: skip
        self.head = 0 if head is None else list(heads).index(head)
        with importing():
            self.host = build(self._config)
        self.receptive_radius = self.cutoff * num_interactions
        for interaction_block in self.host.interactions:
            # a number that `calibrate` finds: with the weights, not among the arguments
            value = torch.as_tensor(interaction_block.avg_num_neighbors, dtype=torch.float64)
            del interaction_block.avg_num_neighbors
            interaction_block.register_buffer("avg_num_neighbors", value)
        columns = columns_of([product.linear.irreps_out for product in self.host.products])
        for name, found in columns.items():
            self.register_buffer(f"{name}_index", torch.tensor(found, dtype=torch.int64), persistent=False)
        self.set_widths(len(columns["scalar"]), len(columns["vector"]) // 3, len(columns["tensor"]) // 5)

    @classmethod
    def prepare(cls) -> None:
        """Import mace."""
        with importing():
            pass

    @classmethod
    def from_host(cls, model: nn.Module, *, head: str | None = None) -> Self:
        """Make an adapter of a ``MACE`` or ``ScaleShiftMACE``, with a copy of its weights; the model stays as it is.

        Parameters
        ----------
        model
            The model; its dtype becomes that of the adapter.
        head
            Which head to take where the model has several.

        Raises
        ------
        ValueError
            If the model is of another kind, or cannot be rebuilt from its settings.
        """
        dtype = next(model.parameters()).dtype
        with importing():
            source = as_scale_shift(model)
            self = cls(**settings_of(source), head=head)
            weights = source.state_dict()
            references = torch.atleast_2d(weights["atomic_energies_fn.atomic_energies"]).clone()
            weights["atomic_energies_fn.atomic_energies"] = torch.zeros_like(references)
            for k, block in enumerate(source.interactions):
                average = torch.as_tensor(block.avg_num_neighbors, dtype=torch.float64)
                weights[f"interactions.{k}.avg_num_neighbors"] = average
            load_weights(self.host, weights)
            row = references[self.head if len(references) > 1 else 0]
            self.reference_energies = dict(zip(self.elements, row.tolist(), strict=True))
            self._check_copy(source)
        self.pretrained = True
        return self.to(dtype)

    def forward(self, batch: AtomicBatch) -> Features:
        """Energy without `reference_energies` (eV) and features of a batch with neighbours within `cutoff`.

        Raises
        ------
        ValueError
            If the batch has no neighbours, or only nearer ones, or (seen on the CPU) unknown elements.
        """
        energies, features = self._run(self.host, batch)
        return self.scaled(batch.sum_over_atoms(energies), *self._kinds(features))

    @torch.no_grad()
    def calibrate(self, batch: AtomicBatch, force_scale: float = 1.0) -> None:
        """Set starting scales: features of order one for the heads; for fresh weights also what mace's training sets.

        These are the mean number of neighbours, and the scale of the energy, which is the RMS force ``force_scale``
        (eV/Å). Energies of a model with weights from mace stay what they are.
        """
        if not self.pretrained:
            count = len(self.edges(batch).i) / max(batch.n_atoms, 1)
            for block in self.host.interactions:
                block.avg_num_neighbors.fill_(max(count, 1.0))
            self.host.scale_shift.scale.fill_(force_scale)
        _, features = self._run(self.host, batch)
        self.fit_scales(*self._kinds(features))

    def _kinds(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scalars, vectors and tensors of the features of all layers."""
        vectors = features[:, self.vector_index].reshape(len(features), self.n_vectors, 3)
        tensors = features[:, self.tensor_index].reshape(len(features), self.n_tensors, 5)
        return features[:, self.scalar_index], vectors, traceless_from_l2(tensors)

    def _run(self, host: Any, batch: AtomicBatch) -> tuple[Tensor, Tensor]:
        """Energies (atoms,) and features of all layers, in e3nn's order, of the host or another of its kind."""
        edges = self.edges(batch)
        species = nn.functional.one_hot(self.species(batch), len(self.elements))
        ends = batch.counts.cumsum(0)
        data = {
            # mace asks its positions for gradients: a view, so that the caller's tensor stays as it is
            "positions": batch.positions.view_as(batch.positions),
            "node_attrs": species.to(batch.positions.dtype),
            "edge_index": torch.stack([edges.i, edges.j]),
            "shifts": edges.shifts,
            "unit_shifts": edges.shifts,  # only for mace's own strain
            "cell": batch.cell.reshape(-1, 3),
            "pbc": batch.pbc,
            "batch": batch.system,
            "ptr": torch.cat([ends.new_zeros(1), ends]),
            "head": torch.full((batch.n_systems,), self.head, device=batch.system.device),
        }
        out = host(data, training=True, compute_force=False)
        return out["node_energy"], out["node_feats"]

    def _check_copy(self, source: nn.Module) -> None:
        """Compare with the model on a probe of all its elements: settings that were not seen would show there."""
        batch = probe(self.elements, self.cutoff)
        with torch.no_grad():
            mine, _ = self._run(self.host, batch)
            theirs, _ = self._run(source, batch)
        check_copy("MACE", mine, theirs - torch.tensor([self.reference_energies[int(z)] for z in batch.numbers]))
