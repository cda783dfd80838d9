"""NequIP (nequip, Batzner et al., arXiv 2101.03164) as a backbone: energy, invariants of all layers, l = 1 and 2."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch
from farfield.hosts import nequip_models
from farfield.hosts.base import HostBackbone, check_copy, probe, traceless_from_l2
from farfield.hosts.nequip_features import HostFeatures
from farfield.potentials.features import Features


class NequIPFamily(HostBackbone):
    """What the adapters of NequIP and Allegro share; made in double precision, ``.to(dtype)`` follows.

    Parameters
    ----------
    elements
        Atomic numbers that the model knows.
    cutoff
        Range of the edges (Å), nequip's ``r_max``.
    options
        Arguments of nequip's builder, and ``per_edge_type_cutoff``, ``zbl_cutoff_p``.
    """

    #: Name of the host.
    host_name: str
    host: Any

    def __init__(self, elements: Sequence[int], cutoff: float, options: Mapping[str, Any]) -> None:
        super().__init__(elements, cutoff)
        with nequip_models.importing(self.host_name):
            self.host = nequip_models.build(self._builder(), self.elements, self.cutoff, options)
        self.features = HostFeatures(nequip_models.parts_of(self.host))
        self.set_widths(self.features.n_scalars, self.features.n_vectors, self.features.n_tensors)

    @staticmethod
    def _builder() -> Any:
        """Builder of the host's model that knows all its arguments."""
        raise NotImplementedError

    @staticmethod
    def _settings(parts: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the adapter for a model of the host."""
        raise NotImplementedError

    @classmethod
    def read(cls, path: Path, head: str | None) -> nn.Module:
        """Return the model in a checkpoint of ``nequip-train`` (.ckpt) or a package (.nequip.zip).

        Where it has several, ``head`` names one.
        """
        with nequip_models.importing(cls.host_name):
            return nequip_models.read(path, head)

    @classmethod
    def from_host(cls, model: nn.Module, *, head: str | None = None) -> Self:
        """Make an adapter of a model of the host, with a copy of its weights; the model stays as it is.

        Parameters
        ----------
        model
            What nequip's builders return, or the energy model in it; its dtype becomes that of the adapter.
        head
            Of no meaning here: such models have one energy.

        Raises
        ------
        ValueError
            If the model is of another kind, or cannot be rebuilt from its settings.
        """
        dtype = next(model.parameters()).dtype
        with nequip_models.importing(cls.host_name):
            inner: Any = getattr(model, "model", model)
            source = copy.deepcopy(getattr(inner, "func", inner)).cpu().double()
            nequip_models.match_dtype(source, torch.float64)
            self = cls(**cls._settings(nequip_models.parts_of(source)))
            weights, shifts = nequip_models.weights_for(self.host, source)
            try:
                self.host.load_state_dict(weights)
            except RuntimeError as error:
                raise ValueError(f"this {cls.host_name} model cannot be rebuilt from its settings: {error}") from error
            self.reference_energies = dict(zip(self.elements, shifts, strict=True))
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
        data = self._run(self.host, batch)
        return self.scaled(batch.sum_over_atoms(data["atomic_energy"][:, 0]), *self._kinds(data))

    @torch.no_grad()
    def calibrate(self, batch: AtomicBatch, force_scale: float = 1.0) -> None:
        """Set starting scales: features of order one for the heads; for fresh weights also what nequip takes from data.

        These are the mean number of neighbours, and the scale of the energy, which is the RMS force ``force_scale``
        (eV/Å). Energies of a model with weights from nequip stay what they are.
        """
        if not self.pretrained:
            count = max(len(self.edges(batch).i) / max(batch.n_atoms, 1), 1.0)
            for norm in nequip_models.norms_of(self.host).values():
                norm.norm_const.fill_(count**-0.5)
            self.host.per_type_energy_scale_shift.scales.fill_(force_scale)
        self.fit_scales(*self._kinds(self._run(self.host, batch)))

    def _kinds(self, data: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Scalars, vectors and tensors of nequip's dictionary."""
        scalars, vectors, tensors = self.features(data)
        return scalars, vectors, traceless_from_l2(tensors)

    def _run(self, host: Any, batch: AtomicBatch) -> dict[str, Tensor]:
        """Run an energy model; return nequip's dictionary, with atomic energies and features."""
        edges = self.edges(batch)
        return host(
            {
                "pos": batch.positions,
                "edge_index": torch.stack([edges.i, edges.j]),
                "edge_vectors": edges.vectors(batch.positions),
                "atom_types": self.species(batch),
            }
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        nequip_models.match_dtype(self.host, self.scalar_scale.dtype)
        return self

    def _check_copy(self, source: nn.Module) -> None:
        """Compare with the model on a probe of all its elements: settings that were not seen would show there."""
        batch = probe(self.elements, self.cutoff)
        with torch.no_grad():
            mine, theirs = (self._run(model, batch)["atomic_energy"][:, 0] for model in (self.host, source))
            theirs = theirs - torch.tensor([self.reference_energies[int(z)] for z in batch.numbers])
        check_copy(self.host_name, mine, theirs)


class NequIPBackbone(NequIPFamily):
    """NequIP as a backbone; arguments are those of ``nequip.model.NequIPGNNModel`` where not said otherwise.

    Scalars are the embedding of the element and the 0e features of all layers, vectors their 1o features, tensors their
    2e features; the last layer has only scalars.

    Parameters
    ----------
    elements
        Atomic numbers that the model knows.
    cutoff
        Range of the edges (Å), nequip's ``r_max``.
    num_layers, l_max, parity, num_features
        As in nequip: layers, highest order, whether there are pseudovectors and their like, channels (one number, or
        one for each order).
    feature_irreps_hidden, irreps_edge_sh
        Features of each layer, and of the edges, in e3nn's notation, instead of these four.
    radial_mlp_depth, radial_mlp_width
        One number, or one for each layer.
    per_edge_type_cutoff
        Nearer cutoffs for some pairs of elements, by symbols.
    zbl_cutoff_p
        Add nequip's ZBL repulsion, with this power in its envelope.
    type_embed_num_features, readout_mlp_hidden_layers_depth, readout_mlp_hidden_layers_width, \
    readout_mlp_nonlinearity, num_bessels, bessel_trainable, polynomial_cutoff_p, per_type_energy_scales_trainable, \
    convnet_sc, convnet_resnet, learnable_shift, convnet_nonlinearity_type
        As in nequip.

    Raises
    ------
    ImportError
        If nequip is not installed.
    ValueError
        If an argument is out of its range.
    """

    host_name = "nequip"

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float,
        *,
        num_layers: int = 4,
        l_max: int = 1,
        parity: bool = True,
        num_features: int | Sequence[int] = 32,
        feature_irreps_hidden: Sequence[str] | None = None,
        irreps_edge_sh: str | None = None,
        type_embed_num_features: int | None = None,
        radial_mlp_depth: int | Sequence[int] = 1,
        radial_mlp_width: int | Sequence[int] = 128,
        readout_mlp_hidden_layers_depth: int = 0,
        readout_mlp_hidden_layers_width: int | None = None,
        readout_mlp_nonlinearity: str | None = "silu",
        num_bessels: int = 8,
        bessel_trainable: bool = False,
        polynomial_cutoff_p: float = 6,
        per_edge_type_cutoff: Mapping[str, Any] | None = None,
        per_type_energy_scales_trainable: bool = False,
        zbl_cutoff_p: float | None = None,
        convnet_sc: bool = True,
        convnet_resnet: bool = False,
        learnable_shift: bool = False,
        convnet_nonlinearity_type: str = "gate",
    ) -> None:
        layers = feature_irreps_hidden or nequip_models.irreps_of_layers(num_layers, l_max, parity, num_features)
        depth, width = (
            [value] * len(layers) if isinstance(value, int) else list(value)
            for value in (radial_mlp_depth, radial_mlp_width)
        )
        harmonics = irreps_edge_sh or nequip_models.harmonics_up_to(l_max)
        embedded = type_embed_num_features
        if embedded is None:
            embedded = int(layers[0].partition("x")[0])
        options = {
            "feature_irreps_hidden": list(layers), "irreps_edge_sh": harmonics, "type_embed_num_features": embedded,
            "radial_mlp_depth": depth, "radial_mlp_width": width,
            "readout_mlp_hidden_layers_depth": readout_mlp_hidden_layers_depth,
            "readout_mlp_hidden_layers_width": readout_mlp_hidden_layers_width,
            "readout_mlp_nonlinearity": readout_mlp_nonlinearity, "num_bessels": num_bessels,
            "bessel_trainable": bessel_trainable, "polynomial_cutoff_p": polynomial_cutoff_p,
            "per_edge_type_cutoff": None if per_edge_type_cutoff is None else dict(per_edge_type_cutoff),
            "per_type_energy_scales_trainable": per_type_energy_scales_trainable, "zbl_cutoff_p": zbl_cutoff_p,
            "convnet_sc": convnet_sc, "convnet_resnet": convnet_resnet, "learnable_shift": learnable_shift,
            "convnet_nonlinearity_type": convnet_nonlinearity_type,
        }  # fmt: skip
        super().__init__(elements, cutoff, options)
        self._config |= options
        self.receptive_radius = self.cutoff * len(layers)

    @staticmethod
    def _builder() -> Any:
        from nequip.model.nequip_models import FullNequIPGNNModel

        return FullNequIPGNNModel

    @staticmethod
    def _settings(parts: Mapping[str, Any]) -> dict[str, Any]:
        return nequip_models.nequip_settings(parts)
