"""CHGNet (Deng et al., Nat. Mach. Intell. 5, 1031; chgnet) as a backbone: energy and invariants of two layers."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch
from farfield.hosts.base import Edges, HostBackbone, check_copy, probe
from farfield.hosts.registry import require
from farfield.potentials.features import Features

#: Models that come with the package, and where in it.
PRETRAINED = {
    "0.3.0": "0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
    "r2scan": "r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
}

#: How many elements CHGNet embeds, from hydrogen on.
N_ELEMENTS = 94

#: Settings of a model that the adapter takes over; that of the cutoff has another name.
_KEPT = (
    "atom_fea_dim", "bond_fea_dim", "angle_fea_dim", "num_radial", "num_angular", "n_conv", "atom_conv_hidden_dim",
    "update_bond", "bond_conv_hidden_dim", "update_angle", "angle_layer_hidden_dim", "mlp_hidden_dims",
    "non_linearity", "bond_graph_cutoff", "cutoff_coeff", "learnable_rbf", "gMLP_norm", "readout_norm", "final_mlp",
)  # fmt: skip

#: Settings that keep an energy from being a smooth sum over atoms, each with what it has to be.
_NEEDED: dict[str, Any] = {"mlp_first": True, "conv_norm": None, "mlp_out_bias": False}


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import and build without what chgnet prints, and without notices that nobody here can act on."""
    require("chgnet")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class CHGNetBackbone(HostBackbone):
    """CHGNet as a backbone; arguments are those of ``chgnet.model.CHGNet`` where not said otherwise.

    Scalars are the features of atoms before the last layer, from which CHGNet reads magnetic moments, and those after
    it, from which it reads the energy. There are no vectors and tensors: dipoles and quadrupoles need ``bond_cutoff``
    (see `farfield.LongRange`).

    CHGNet's own converter knows periodic cells only. Its graph is made here from the neighbours of the batch instead:
    molecules, slabs and wires need no box, and positions and cell keep their gradients. Made in double precision;
    ``.to(dtype)`` follows.

    Parameters
    ----------
    elements
        Atomic numbers that are let through, up to 94; the weights are for all 94 in any case.
    cutoff
        Range of the bonds (Å), CHGNet's ``atom_graph_cutoff``.
    bond_graph_cutoff
        Range of the bonds that make angles (Å).
    final_mlp
        ``"MLP"`` or ``"gated"``.
    atom_fea_dim, bond_fea_dim, angle_fea_dim, num_radial, num_angular, n_conv, atom_conv_hidden_dim, update_bond, \
    bond_conv_hidden_dim, update_angle, angle_layer_hidden_dim, mlp_hidden_dims, non_linearity, cutoff_coeff, \
    learnable_rbf, gMLP_norm, readout_norm
        As in CHGNet. Norms are ``"layer"`` or None: a norm over the batch would couple its systems.

    Raises
    ------
    ImportError
        If chgnet is not installed.
    ValueError
        If an argument is out of its range.
    """

    host: Any
    energy_scale: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float = 6.0,
        *,
        bond_graph_cutoff: float = 3.0,
        atom_fea_dim: int = 64,
        bond_fea_dim: int = 64,
        angle_fea_dim: int = 64,
        num_radial: int = 31,
        num_angular: int = 31,
        n_conv: int = 4,
        atom_conv_hidden_dim: Sequence[int] | int = 64,
        update_bond: bool = True,
        bond_conv_hidden_dim: Sequence[int] | int = 64,
        update_angle: bool = True,
        angle_layer_hidden_dim: Sequence[int] | int = 0,
        mlp_hidden_dims: Sequence[int] | int = (64, 64, 64),
        non_linearity: str = "silu",
        cutoff_coeff: int = 8,
        learnable_rbf: bool = True,
        gMLP_norm: str | None = "layer",  # noqa: N803
        readout_norm: str | None = "layer",
        final_mlp: str = "MLP",
    ) -> None:
        super().__init__(elements, cutoff)
        if max(self.elements) > N_ELEMENTS:
            raise ValueError(f"`elements` has {max(self.elements)} but CHGNet knows those up to {N_ELEMENTS}")
        if not 0 < bond_graph_cutoff <= cutoff:
            raise ValueError(
                f"`bond_graph_cutoff` is {bond_graph_cutoff} but must lie between 0 and `cutoff`, {cutoff}"
            )
        if n_conv < 2:
            raise ValueError(f"`n_conv` is {n_conv} but must be at least 2: features come from the last two layers")
        for name, norm in (("gMLP_norm", gMLP_norm), ("readout_norm", readout_norm)):
            if norm not in ("layer", None):
                raise ValueError(
                    f"`{name}` is {norm!r} but must be 'layer' or None: others couple the systems of a batch"
                )
        settings: dict[str, Any] = {
            "bond_graph_cutoff": float(bond_graph_cutoff), "atom_fea_dim": atom_fea_dim, "bond_fea_dim": bond_fea_dim,
            "angle_fea_dim": angle_fea_dim, "num_radial": num_radial, "num_angular": num_angular, "n_conv": n_conv,
            "atom_conv_hidden_dim": _plain(atom_conv_hidden_dim), "update_bond": update_bond,
            "bond_conv_hidden_dim": _plain(bond_conv_hidden_dim), "update_angle": update_angle,
            "angle_layer_hidden_dim": _plain(angle_layer_hidden_dim), "mlp_hidden_dims": _plain(mlp_hidden_dims),
            "non_linearity": non_linearity, "cutoff_coeff": cutoff_coeff, "learnable_rbf": learnable_rbf,
            "gMLP_norm": gMLP_norm, "readout_norm": readout_norm, "final_mlp": final_mlp,
        }  # fmt: skip
        with importing():
            from chgnet.model import CHGNet

            self.host = CHGNet(composition_model=None, atom_graph_cutoff=self.cutoff, **settings)
        self._config |= settings
        self.bond_graph_cutoff = float(bond_graph_cutoff)
        self.receptive_radius = self.cutoff * n_conv
        self.set_widths(2 * atom_fea_dim)
        self.register_buffer("energy_scale", torch.ones((), dtype=torch.float64))
        self.double()

    @classmethod
    def from_host(cls, model: nn.Module, *, head: str | None = None) -> Self:
        """Make an adapter of a ``CHGNet``, with a copy of its weights; the model stays as it is.

        The energies of the elements that its composition model adds become `reference_energies`.

        Raises
        ------
        ValueError
            If the model is of another kind, has an option that makes its energy no smooth sum over atoms, or cannot be
            rebuilt from its settings; or if a ``head`` is given.
        """
        if head is not None:
            raise ValueError(f"`head` is {head!r} but CHGNet has one energy: leave it out")
        with importing():
            given = _settings(model)
            source: Any = copy.deepcopy(model).cpu().double().eval()
            own = {key: given[key] for key in _KEPT if key in given}
            self = cls(range(1, N_ELEMENTS + 1), float(given["atom_graph_cutoff"]), **own).double()
            weights = {k: v for k, v in source.state_dict().items() if not k.startswith("composition_model.")}
            try:
                self.host.load_state_dict(weights)
            except RuntimeError as error:
                raise ValueError(f"this CHGNet cannot be rebuilt from its settings: {error}") from error
            if source.composition_model is not None:
                found = source.composition_model.fc.weight[0].tolist()
                self.reference_energies = dict(zip(self.elements, found, strict=True))
            batch = probe(self.elements, self.cutoff)
            with torch.no_grad():
                check_copy("CHGNet", self._run(self.host, batch)[0], self._run(source, batch)[0])
        self.pretrained = True
        return self.to(next(model.parameters()).dtype)

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, trust: bool = False, head: str | None = None) -> Self:
        """Make an adapter of a model that comes with chgnet, or of a file that its trainer has written.

        Parameters
        ----------
        path
            ``"0.3.0"`` (PBE and PBE+U, Materials Project trajectories) or ``"r2scan"`` for one that comes with the
            package, else a file.
        trust
            Load the file though it holds more than tensors and plain settings: it may run any code. chgnet's own do
            not need that.
        head
            CHGNet has one energy: leave it out.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is none of a CHGNet, needs ``trust``, or as in `from_host`.
        """
        with importing():
            import chgnet
            from chgnet.model import CHGNet

            if str(path) in PRETRAINED:
                path, trust = Path(chgnet.__file__).parent / "pretrained" / PRETRAINED[str(path)], False
            elif not Path(path).is_file():
                raise FileNotFoundError(
                    f"there is no checkpoint {str(path)!r}: give a file, or one of {', '.join(PRETRAINED)}, which come "
                    "with chgnet"
                )
            state = _loaded(Path(path), trust)
            try:
                model = CHGNet.from_dict(state)
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"{str(path)!r} has settings that do not go with its weights: {error}") from error
            return cls.from_host(model, head=head)

    def forward(self, batch: AtomicBatch) -> Features:
        """Energy without `reference_energies` (eV) and features of a batch with neighbours within `cutoff`.

        Raises
        ------
        ValueError
            If the batch has no neighbours, or only nearer ones, or (seen on the CPU) unknown elements.
        """
        energies, scalars = self._run(self.host, batch)
        return self.scaled(batch.sum_over_atoms(energies * self.energy_scale), scalars)

    @torch.no_grad()
    def calibrate(self, batch: AtomicBatch, force_scale: float = 1.0) -> None:
        """Set starting scales: features of order one for the heads; energies of fresh weights times ``force_scale``.

        ``force_scale`` is the RMS force (eV/Å). Energies of a model with weights from chgnet stay what they are.
        """
        if not self.pretrained:
            self.energy_scale.fill_(force_scale)
        _, scalars = self._run(self.host, batch)
        before, after = scalars.chunk(2, dim=1)
        for scale, features in zip(self.scalar_scale.chunk(2), (before, after), strict=True):
            scale.fill_(1.0 / float(features.square().mean().sqrt().clamp(min=1e-6)))

    def _run(self, host: Any, batch: AtomicBatch) -> tuple[Tensor, Tensor]:
        """Energies (atoms,) and scalars, of the host or another of its kind."""
        out = host._compute(self._graph(host, batch), return_atom_feas=True, return_crystal_feas=True)
        return out["e"], torch.cat([torch.cat(out["atom_fea"]), out["crystal_fea"]], dim=1)

    def _graph(self, host: Any, batch: AtomicBatch) -> Any:
        """Return CHGNet's inputs, in which each atom is a graph of its own: what it sums over graphs is for each atom.

        Bonds are the directed pairs; two of opposite directions share one undirected bond, whose features depend on the
        length only. Angles are ordered pairs of short bonds at one atom; they belong to the first of the two.
        """
        from chgnet.model.model import BatchedGraph

        self.species(batch)
        edges = self.edges(batch)
        vectors = edges.vectors(batch.positions)
        lengths = vectors.norm(dim=1)
        units = vectors / lengths[:, None]
        undirected, chosen = _undirected(edges, batch.n_atoms)
        basis = host.bond_basis_expansion
        first, second = _angles(edges.i, (lengths.detach() < self.bond_graph_cutoff).nonzero()[:, 0])
        return BatchedGraph(
            atomic_numbers=batch.numbers,
            bond_bases_ag=basis.rbf_expansion_ag(lengths[chosen]),
            bond_bases_bg=basis.rbf_expansion_bg(lengths[chosen]),
            angle_bases=host.angle_basis_expansion(units[first], units[second]),
            batched_atom_graph=torch.stack([edges.i, edges.j], dim=1),
            batched_bond_graph=torch.stack([edges.i[first], undirected[first], undirected[second]], dim=1),
            atom_owners=torch.arange(batch.n_atoms, device=batch.system.device),
            directed2undirected=undirected,
            # only for forces and stress of CHGNet's own
            atom_positions=[],
            strains=[],
            volumes=[],
        )


def _plain(widths: Sequence[int] | int) -> list[int] | int:
    return widths if isinstance(widths, int) else [int(width) for width in widths]


def _settings(model: nn.Module) -> dict[str, Any]:
    """Check that a model is one that has an adapter, and return its settings."""
    from chgnet.model import CHGNet
    from chgnet.model.composition_model import AtomRef

    if type(model) is not CHGNet:  # settings and parts of others may mean something else
        raise ValueError(f"`model` is a {type(model).__name__} but must be a CHGNet: other kinds may have more parts")
    composition: Any = model.composition_model
    if composition is not None and not isinstance(composition, AtomRef):
        raise ValueError("this CHGNet's composition model is no sum over atoms: farfield keeps energies of elements")
    if composition is not None and composition.is_intensive != model.is_intensive:
        raise ValueError("this CHGNet gives its energy for the system and that of the elements per atom, or vice versa")
    given: Any = model.model_args
    for key, needed in _NEEDED.items():
        if given.get(key, needed) != needed:
            raise ValueError(
                f"this CHGNet has {key}={given[key]!r} but an energy that is a smooth sum over atoms needs {needed!r}"
            )
    return given


def _loaded(path: Path, trust: bool) -> dict[str, Any]:
    """Return settings and weights of a file of chgnet's trainer."""
    import pickle

    try:
        found = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if trust:
            raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
        raise ValueError(
            f"{str(path)!r} holds more than tensors and plain settings, and may run any code when it is loaded: set "
            "`trust` to true if you know where it comes from"
        ) from error
    state = found.get("model") if isinstance(found, dict) else None
    if not isinstance(state, dict) or not {"model_args", "state_dict"} <= state.keys():
        raise ValueError(f"{str(path)!r} is no file of a CHGNet: it lacks model_args and state_dict")
    return state


def _undirected(edges: Edges, n_atoms: int) -> tuple[Tensor, Tensor]:
    """Undirected bond of each pair, and for each undirected bond one of its pairs.

    The other direction of (i, j, image) is (j, i, −image). Both have one name: a number, so that no row is compared.
    """
    reach = edges.images.abs().max() + 1 if len(edges.i) else 1
    base = 2 * reach + 1

    def name(i: Tensor, j: Tensor, images: Tensor) -> Tensor:
        a, b, c = (images + reach).unbind(dim=1)
        return (((i * n_atoms + j) * base + a) * base + b) * base + c

    there, back = name(edges.i, edges.j, edges.images), name(edges.j, edges.i, -edges.images)
    names, undirected = torch.minimum(there, back).unique(return_inverse=True)
    chosen = torch.empty_like(names)
    forth = (there <= back).nonzero()[:, 0]
    chosen[undirected[forth]] = forth
    return undirected, chosen


def _angles(centers: Tensor, short: Tensor) -> tuple[Tensor, Tensor]:
    """Ordered pairs of different short bonds that start at the same atom; ``short`` are places among the bonds.

    Bonds are sorted by centre.
    """
    _, place, counts = centers[short].unique_consecutive(return_inverse=True, return_counts=True)
    partners = counts[place]
    starts = (counts.cumsum(0) - counts)[place]
    first = torch.arange(len(short), device=short.device).repeat_interleave(partners)
    within = torch.arange(len(first), device=short.device) - (partners.cumsum(0) - partners)[first]
    second = starts[first] + within
    different = first != second
    return short[first[different]], short[second[different]]
