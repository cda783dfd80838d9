"""MatGL's graph networks (matgl) as backbones: TensorNet, M3GNet, CHGNet and SO3Net."""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch
from farfield.hosts.base import HostBackbone, check_copy, probe, traceless_from_l2
from farfield.hosts.registry import require
from farfield.potentials.features import Features

#: Options without which an energy is no sum over atoms, or changes with states, mirrors, or only in single precision.
_FIXED: dict[str, Any] = {
    "is_intensive": False, "task_type": "regression", "ntargets": 1, "num_targets": 1, "include_state": False,
    "dim_state_feats": None, "equivariance_invariance_group": "O(3)", "target_property": "atomwise",
    "pooling_operation": "sum", "readout_field": "atom_feat", "layer_bond_weights": None,
}  # fmt: skip

#: Options that are given otherwise, or that change no energy that is a sum over atoms.
_ASIDE = frozenset({
    "self", "element_types", "cutoff", "dtype", "kwargs", "use_warp", "readout_type", "field", "niters_set2set",
    "nlayers_set2set", "nlayers_readout", "ntypes_state", "dim_state_embedding", "dropout", "conv_dropout",
    "final_dropout", "use_vector_representation", "return_vector_representation", "correct_charges",
    "predict_dipole_magnitude",
})  # fmt: skip


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import and build in single precision, and without notices that nobody here can act on.

    matgl keeps constants of SO3Net in a cache and joins single precision with the default one, so that no other works.
    """
    require("matgl")
    dtype = torch.get_default_dtype()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


class MatGLBackbone(HostBackbone):
    """A network of MatGL as a backbone.

    ===========  ==================================  =====================================  ==========================
    network      scalars                             vectors                                tensors
    ===========  ==================================  =====================================  ==========================
    TensorNet    what the energy is read from        antisymmetric part of the last layer   symmetric traceless part
    M3GNet       of each layer                       –                                      –
    CHGNet       before and after the last layer     –                                      –
    SO3Net       of the last layer                   l = 1 of the last layer                l = 2, for ``lmax`` ≥ 2
    ===========  ==================================  =====================================  ==========================

    Without vectors and tensors, dipoles and quadrupoles need ``bond_cutoff`` (see `farfield.LongRange`). Made in double
    precision; ``.to(dtype)`` follows. The coefficients of SO3Net are single precision in any case: it turns with a
    system to 10⁻⁶.

    Parameters
    ----------
    elements
        Atomic numbers that the network knows, in its order.
    cutoff
        Range of the edges (Å).
    architecture
        Name of the network.
    **settings
        Arguments of the network's class, such as ``units`` and ``nblocks``.

    Raises
    ------
    ImportError
        If matgl is not installed.
    ValueError
        If the network or a setting is unknown, or refused.
    """

    host: Any
    energy_scale: Tensor
    energy_shift: Tensor

    def __init__(
        self, elements: Sequence[int], cutoff: float = 5.0, *, architecture: str = "TensorNet", **settings: Any
    ) -> None:
        super().__init__(elements, cutoff)
        if architecture not in _READERS:
            raise ValueError(f"`architecture` is {architecture!r} but must be one of {', '.join(_READERS)}")
        with importing():
            from ase.data import chemical_symbols

            cls = _networks()[architecture]
            known = inspect.signature(cls).parameters
            allowed = sorted(known.keys() - _FIXED.keys() - _ASIDE)
            for key in settings:
                if key not in allowed:
                    raise ValueError(f"`{key}` is no setting of {architecture} here: {', '.join(allowed)}")
            if settings.get("threebody_cutoff", 0.0) > self.cutoff:
                raise ValueError(f"`threebody_cutoff` is {settings['threebody_cutoff']} but `cutoff` only {cutoff} (Å)")
            fixed = {key: value for key, value in _FIXED.items() if key in known}
            if "use_warp" in known:
                fixed["use_warp"] = False  # its kernels have no derivatives of forces in double precision
            symbols = tuple(chemical_symbols[z] for z in self.elements)
            self.host = cls(element_types=symbols, cutoff=self.cutoff, **fixed, **settings).double()
        if architecture == "SO3Net":
            self.host.embedding.padding_idx = None  # or the first element would never be trained
        self.architecture = architecture
        self._config |= {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        self._config["architecture"] = architecture
        layers, widths = _READERS[architecture][0](self.host)
        self.receptive_radius = self.cutoff * layers
        self.set_widths(*widths)
        self.register_buffer("energy_scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("energy_shift", torch.zeros((), dtype=torch.float64))

    @classmethod
    def from_host(cls, model: nn.Module, *, head: str | None = None) -> Self:
        """Make an adapter of a ``Potential`` or of its network, with a copy of its weights; the model stays as it is.

        A potential's ``data_mean`` and ``data_std`` become part of the energy, its ``element_refs`` the
        `reference_energies`.

        Raises
        ------
        ValueError
            If the model is of another kind, has an option that the adapter does not know, or cannot be rebuilt from its
            settings; or if a ``head`` is given.
        """
        if head is not None:
            raise ValueError(f"`head` is {head!r} but models of MatGL have one energy: leave it out")
        with importing():
            network, scale, shift, references = parts_of(model)
            given = _settings(network)
            # features that a call has left behind belong to its graph, and cannot be copied
            source: Any = copy.deepcopy(network, {id(network.feature_dict): {}}).cpu().double().eval()
            self = cls(**given)
            try:
                self.host.load_state_dict(source.state_dict())
            except RuntimeError as error:
                raise ValueError(f"this {self.architecture} cannot be rebuilt from its settings: {error}") from error
            batch = probe(self.elements, self.cutoff)
            with torch.no_grad():
                check_copy(self.architecture, self._run(self.host, batch)[0], self._run(source, batch)[0])
            self.energy_scale.fill_(scale)
            self.energy_shift.fill_(shift)
            if references is not None:
                self.reference_energies = dict(zip(self.elements, references, strict=True))
        self.pretrained = True
        return self.to(next(network.parameters()).dtype)

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, trust: bool = False, head: str | None = None) -> Self:
        """Make an adapter of a folder that matgl's ``save`` has written (``model.json``, ``model.pt``, ``state.pt``).

        Raises
        ------
        FileNotFoundError
            If there is no such folder: nothing is fetched from the net.
        ValueError
            If ``trust`` is not set: ``model.json`` names the class that is imported and called. Or as in `from_host`.
        """
        path = Path(path)
        if not (path / "model.json").is_file():
            raise FileNotFoundError(f"there is no folder {str(path)!r} with a model.json, which matgl's `save` writes")
        if not trust:
            raise ValueError(
                f"{str(path / 'model.json')!r} names what is imported and called when the model is loaded: set `trust` "
                "to true if you know where it comes from"
            )
        with importing():
            import matgl

            return cls.from_host(matgl.load_model(path), head=head)

    def forward(self, batch: AtomicBatch) -> Features:
        """Energy without `reference_energies` (eV) and features of a batch with neighbours within `cutoff`.

        Raises
        ------
        ValueError
            If the batch has no neighbours, or only nearer ones, or (seen on the CPU) unknown elements.
        """
        energy, scalars, vectors, tensors = self._run(self.host, batch)
        return self.scaled(energy * self.energy_scale + self.energy_shift, scalars, vectors, tensors)

    @torch.no_grad()
    def calibrate(self, batch: AtomicBatch, force_scale: float = 1.0) -> None:
        """Set starting scales: features of order one for the heads; energies of fresh weights times ``force_scale``.

        ``force_scale`` is the RMS force (eV/Å). Energies of a model with weights from matgl stay what they are.
        """
        if not self.pretrained:
            self.energy_scale.fill_(force_scale)
        self.fit_scales(*self._run(self.host, batch)[1:])

    def _run(self, host: Any, batch: AtomicBatch) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Energies (systems,) and scalars, vectors, tensors, of the host or another of its kind."""
        edges = self.edges(batch)
        graph = SimpleNamespace(
            node_type=self.species(batch),
            pos=batch.positions,
            # sorted by centre, as they are: triples are enumerated atom by atom
            edge_index=torch.stack([edges.i, edges.j]),
            pbc_offshift=edges.shifts,
            pbc_offset=edges.images,
            batch=batch.system,
            num_graphs=batch.n_systems,
        )
        energy = host(graph).reshape(-1)
        found = host.feature_dict
        host.feature_dict = {}  # it would keep the graph alive, and could not be copied
        return energy, *_READERS[self.architecture][1](host, found)


# ---- what each network gives: layers that an atom sees through and widths of the features, and the features ----------

_Kinds = tuple[Tensor, Tensor | None, Tensor | None]


def _tensornet_widths(host: Any) -> tuple[int, tuple[int, int, int]]:
    return host.num_layers + 1, (host.units, host.units, host.units)


def _tensornet(host: Any, found: dict[str, Any]) -> _Kinds:
    matrices = found[f"gc_{host.num_layers}"]
    transposed = matrices.mT
    skew, symmetric = 0.5 * (matrices - transposed), 0.5 * (matrices + transposed)
    third = symmetric.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    one = torch.eye(3, dtype=matrices.dtype, device=matrices.device)
    # the matrix of a cross product; its vector is a polar one, as the bond vectors that it was made from
    vectors = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], dim=-1)
    return found["readout"], vectors, symmetric - third * one


def _m3gnet_widths(host: Any) -> tuple[int, tuple[int, int, int]]:
    return host.n_blocks, (host.n_blocks * host.embedding.layer_node_embedding.embedding_dim, 0, 0)


def _m3gnet(host: Any, found: dict[str, Any]) -> _Kinds:
    return torch.cat([found[f"gc_{k + 1}"]["node_feat"] for k in range(host.n_blocks)], dim=1), None, None


def _chgnet_widths(host: Any) -> tuple[int, tuple[int, int, int]]:
    if host.n_blocks < 2:
        raise ValueError(f"`num_blocks` is {host.n_blocks} but must be at least 2: features come from the last two")
    return host.n_blocks, (2 * host.atom_embedding.embedding_dim, 0, 0)


def _chgnet(host: Any, found: dict[str, Any]) -> _Kinds:
    last = (host.n_blocks - 1, host.n_blocks)
    return torch.cat([found[f"gc_{k}"]["atom_feat"] for k in last], dim=1), None, None


def _so3net_widths(host: Any) -> tuple[int, tuple[int, int, int]]:
    width = host.dim_node_embedding
    return host.nblocks, (width, width if host.lmax >= 1 else 0, width if host.lmax >= 2 else 0)


def _so3net(host: Any, found: dict[str, Any]) -> _Kinds:
    x = found[f"gc_{host.nblocks}"]
    # real harmonics about z: y, z, x, where those of e3nn are about y: x, y, z
    vectors = x[:, 1:4].roll(1, 1).mT if host.lmax >= 1 else None
    tensors = traceless_from_l2(x[:, 4:9].mT).roll((1, 1), (-2, -1)) if host.lmax >= 2 else None
    return x[:, 0], vectors, tensors


_READERS: dict[str, tuple[Callable[[Any], tuple[int, tuple[int, int, int]]], Callable[[Any, dict[str, Any]], _Kinds]]]
_READERS = {
    "TensorNet": (_tensornet_widths, _tensornet),
    "M3GNet": (_m3gnet_widths, _m3gnet),
    "CHGNet": (_chgnet_widths, _chgnet),
    "SO3Net": (_so3net_widths, _so3net),
}


# ---- models of matgl -------------------------------------------------------------------------------------------------


def _networks() -> dict[str, Any]:
    import matgl.models

    return {name: getattr(matgl.models, name) for name in _READERS}


def parts_of(model: Any) -> tuple[Any, float, float, list[float] | None]:
    """Network, scale and shift of its energy, and energies of its elements (eV), of a potential or a bare network."""
    from matgl.apps.pes import Potential

    if type(model) is not Potential:
        return model, 1.0, 0.0, None
    if model.calc_repuls or model.calc_charge:
        raise ValueError(
            "this Potential adds a repulsion or charges of its own, which the adapter does not: give its `model`, and "
            "zbl=True for a repulsion"
        )
    references = None
    if model.element_refs is not None:
        offsets = model.element_refs.property_offset
        if offsets.ndim > 1:
            raise ValueError("this Potential has energies of the elements for several states: the adapter knows none")
        references = [float(value) for value in offsets.double()]
    return model.model, float(model.data_std), float(model.data_mean), references


def _settings(network: Any) -> dict[str, Any]:
    """Arguments of the adapter for a network of matgl."""
    from ase.data import atomic_numbers

    names = {cls: name for name, cls in _networks().items()}
    if type(network) not in names:
        raise ValueError(
            f"`model` is a {type(network).__name__} but must be one of {', '.join(_READERS)}, or a Potential of one; "
            "farfield.hosts.matgl_training.potential_of takes one that has a far field already"
        )
    given = network._init_args
    known = inspect.signature(type(network)).parameters
    for key, needed in _FIXED.items():
        if key in known and given.get(key, needed) != needed:
            raise ValueError(f"this {type(network).__name__} has {key}={given[key]!r} but the adapter needs {needed!r}")
    settings = {key: value for key, value in given.items() if key in known.keys() - _FIXED.keys() - _ASIDE}
    return {
        **settings,
        "architecture": names[type(network)],
        "cutoff": float(given["cutoff"]),
        "elements": [atomic_numbers[symbol] for symbol in network.element_types],
    }
