"""A drop-in for the library ``les``: the class that mace-torch's MACELES and NequIP-LES call, on farfield's solver.

    import farfield.compat.les
    farfield.compat.les.install()          # from here on ``from les import Les`` gives the class below

or, for another program, ``python -m farfield.compat.les mace_run_train --model MACELES …``. Written from the interface
that its callers use and from the equations; no code of ``les`` is here.
"""  # noqa: D208

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch
from farfield.compat.les.born import published_born_charges
from farfield.compat.les.pickles import Atomwise, install_modules, options_of
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.published import PublishedCoulomb
from farfield.units import INVERSE_TWO_EPSILON_0

_DEFAULTS: dict[str, Any] = {
    "sigma": 1.0, "dl": 2.0, "remove_self_interaction": True, "remove_mean": True, "epsilon_factor": 1.0,
    "use_atomwise": False, "n_layers": 3, "n_hidden": (32, 16), "add_linear_nn": True, "output_scaling_factor": 0.1,
    "use_fixed_atomic_charges": False, "fixed_atomic_charges_scaling_factor": 0.5, "fixed_atomic_charges": None,
    "truncation": "smooth", "accuracy": 1e-4, "norm_factor": INVERSE_TWO_EPSILON_0,
}  # fmt: skip


class Les(nn.Module):
    """Long-range energy and Born charges of latent multipoles.

    Parameters
    ----------
    les_arguments
        Options, or the path of a YAML file of them; unknown keys are ignored, as callers put their own there. ``sigma``
        1 (Å), ``remove_self_interaction`` True, ``remove_mean`` True, ``epsilon_factor`` 1; ``use_atomwise`` False,
        else charges are made from ``desc`` by a perceptron (``n_layers`` 3, ``n_hidden`` [32, 16], ``add_linear_nn``
        True, ``output_scaling_factor`` 0.1); ``use_fixed_atomic_charges`` False, else what is given is added to
        ``fixed_atomic_charges_scaling_factor`` 0.5 times the charge of the element. Of farfield:
        ``fixed_atomic_charges``, charges (e) by atomic number, as the original's are not known here; ``truncation``,
        ``"smooth"`` (`farfield.Coulomb` at ``accuracy`` 1e-4, by Ewald or mesh) or ``"published"`` (a hard cutoff |k| ≤
        2π/``dl``, ``dl`` 2 Å, for models trained so); ``norm_factor``, 1/(2ε₀) (eV·Å/e²; 90.0474 in models from before
        2026-04).

    Raises
    ------
    ValueError
        If an option has a value that is not known here; for ``use_atomic_alpha``, whose table and use are not; for
        ``use_fixed_atomic_charges`` without charges.

    Notes
    -----
    A pickle of the original's ``les.les.Les`` can be loaded as this class (see `farfield.compat.les.pickles`): then the
    sum is the published one, with the numbers that stand in the pickle. ``use_epsilon_r_scaling`` has no effect on
    anything that is computed here.
    """

    def __init__(self, les_arguments: Mapping[str, Any] | str | Path | None = None) -> None:
        super().__init__()
        if isinstance(les_arguments, str | Path):
            import yaml

            given = dict(yaml.safe_load(Path(les_arguments).read_text(encoding="utf-8")) or {})
        else:
            given = dict(les_arguments or {})
        if given.get("use_atomic_alpha"):
            raise ValueError(
                "`use_atomic_alpha` is set, but neither its table nor how it enters is known here: leave it out, or "
                "give `latent_alphas`"
            )
        options = {name: given.get(name, default) for name, default in _DEFAULTS.items()}
        if options["truncation"] not in ("smooth", "published"):
            raise ValueError(f"`truncation` is {options['truncation']!r} but must be 'smooth' or 'published'")
        self.sigma, self.dl = float(options["sigma"]), float(options["dl"])
        self.remove_self_interaction = bool(options["remove_self_interaction"])
        self.remove_mean, self.epsilon_factor = bool(options["remove_mean"]), float(options["epsilon_factor"])
        self.truncation, self.norm_factor = options["truncation"], float(options["norm_factor"])
        self.coulomb = PublishedCoulomb(
            self.sigma,
            dl=self.dl if self.truncation == "published" else None,
            norm_factor=self.norm_factor,
            self_interaction=not self.remove_self_interaction,
            accuracy=float(options["accuracy"]),
        )
        self.fixed_charges = _fixed_charges(options)
        self.atomwise: nn.Module | None = None
        if options["use_atomwise"]:
            self.atomwise = _Atomwise(
                list(options["n_hidden"])[: options["n_layers"] - 1],
                bool(options["add_linear_nn"]),
                float(options["output_scaling_factor"]),
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a pickle: of this class, or of the original's."""
        if "coulomb" in state:
            super().__setstate__(state)
            return
        self.__init__(options_of(state))  # type: ignore[misc]
        atomwise = state.get("_modules", {}).get("atomwise")
        self.atomwise = atomwise if state.get("use_atomwise", True) and isinstance(atomwise, Atomwise) else None
        self.train(bool(state.get("training", False)))

    def settings(self) -> dict[str, Any]:
        """Return how charges are summed and read out, as `farfield.potentials.given_charges.GivenCharges` takes it."""
        return {
            **self.coulomb.config(),
            "remove_mean": self.remove_mean,
            "epsilon_factor": self.epsilon_factor,
            "fixed_charges": self.fixed_charges,
        }

    def forward(
        self,
        positions: Float[Tensor, "atoms 3"],
        cell: Tensor | None = None,
        *,
        e_ext: Tensor | None = None,
        desc: Float[Tensor, "atoms features"] | None = None,
        latent_charges: Tensor | None = None,
        latent_dipoles: Float[Tensor, "atoms 3"] | None = None,
        latent_quads: Float[Tensor, "atoms 3 3"] | None = None,
        latent_kappas: Tensor | None = None,
        latent_alphas: Tensor | None = None,
        atomic_numbers: Tensor | None = None,
        batch: Int[Tensor, " atoms"] | None = None,
        compute_energy: bool = True,
        compute_field: bool = False,
        compute_bec: bool = False,
        bec_output_index: int | None = None,
    ) -> dict[str, Tensor | None]:
        """Sum latent multipoles.

        Parameters
        ----------
        positions
            Positions (Å).
        cell
            Cells (Å), shape (systems, 3, 3); one whose determinant is zero is open along all axes. None: all open.
        e_ext
            Uniform field (V/Å), shape (3,), which only −½ Σ E·α·(E + e_ext) and the induced dipoles know.
        desc
            Features, for charges by ``use_atomwise``.
        latent_charges
            Charges, shape (atoms,) or (atoms, channels); the energies of channels add up.
        latent_dipoles, latent_quads
            Dipoles (e·Å) and traceless quadrupoles (e·Å²).
        latent_kappas, latent_alphas
            Softness κ (e²/eV), shape (atoms,), and polarizability α (e²·Å²/eV), shape (atoms,) or (atoms, 3, 3), that
            answer in one shot: −½ Σ κφ² and −½ Σ E·α·(E + e_ext), of potential and field of the permanent multipoles.
        atomic_numbers
            Atomic numbers, for ``use_fixed_atomic_charges``.
        batch
            System of each atom, ascending.
        compute_energy, compute_bec
            What to compute.
        compute_field
            Refused: under which name and in which shape the original gives a field is not known here.
        bec_output_index
            Give only this component of the polarization.

        Returns
        -------
        dict
            ``E_lr`` (systems,) (eV); ``latent_charges`` and ``latent_dipoles``, permanent and induced;
            ``latent_quads``, ``latent_alphas``; ``BEC`` (e, times √epsilon_factor), shape (atoms, 3, 3), first index
            polarization, or with dipoles (atoms, 2, 3, 3), of charges and of dipoles; with an output index (atoms, 3)
            or (atoms, 2, 3). What is not there is None.

        Raises
        ------
        ValueError
            If there are neither charges nor a way to make them, or several channels beside dipoles, response or fixed
            charges; if fixed charges are used and atomic numbers missing or without a charge; for ``compute_field``.
        """
        if compute_field:
            raise ValueError(
                "`compute_field` is set, but how the original gives a field is not known here: farfield.Coulomb gives "
                "potential, field and field gradient at the atoms"
            )
        charges = self._charges(desc, latent_charges, atomic_numbers)
        systems = _systems(positions, cell, batch)
        several = charges.ndim == 2 and charges.shape[1] > 1
        others = (latent_dipoles, latent_quads, latent_kappas, latent_alphas)
        if several and any(value is not None for value in others):
            raise ValueError("`latent_charges` have several channels, which are summed only without other multipoles")
        energy: Tensor | None = None
        if several:
            if compute_energy:
                parts = [self.coulomb(systems, Multipoles(part), outputs="energy") for part in charges.unbind(1)]
                energy = torch.stack([part.energy for part in parts]).sum(0)
            moments = Multipoles(charges.sum(1))
        else:
            permanent = Multipoles(charges.reshape(len(positions)), latent_dipoles, latent_quads)
            energy, moments = self._respond(systems, permanent, latent_kappas, latent_alphas, e_ext, compute_energy)
        born = self._born(systems, moments, bec_output_index) if compute_bec else None
        return {
            "E_lr": None if energy is None or not compute_energy else energy.to(positions.dtype),
            "latent_charges": charges if several else moments.charges,
            "latent_dipoles": moments.dipoles,
            "latent_quads": latent_quads,
            "latent_alphas": latent_alphas,
            "BEC": born,
        }

    def _charges(self, desc: Tensor | None, given: Tensor | None, numbers: Tensor | None) -> Tensor:
        if given is None:
            if self.atomwise is None or desc is None:
                raise ValueError("give `latent_charges`, or `desc` with the option use_atomwise")
            given = self.atomwise(desc)
        if not self.fixed_charges:
            return given
        if numbers is None or (given.ndim == 2 and given.shape[1] > 1):
            raise ValueError("fixed atomic charges are used: give `atomic_numbers`, and one channel of charges")
        table = given.new_full((119,), torch.nan)
        for number, charge in self.fixed_charges.items():
            table[number] = charge
        fixed = table[numbers]
        if bool(fixed.isnan().any()):
            lacking = sorted(set(numbers[fixed.isnan()].tolist()))
            raise ValueError(f"fixed atomic charges are used, but there are none of the elements {lacking}")
        return given + fixed.reshape(given.shape)

    def _respond(
        self,
        batch: AtomicBatch,
        permanent: Multipoles,
        kappas: Tensor | None,
        alphas: Tensor | None,
        e_ext: Tensor | None,
        compute_energy: bool,
    ) -> tuple[Tensor | None, Multipoles]:
        """Energy, and permanent plus induced multipoles."""
        if kappas is None and alphas is None:
            return (self.coulomb(batch, permanent, outputs="energy").energy if compute_energy else None), permanent
        felt = self.coulomb(batch, permanent)
        potential, field = felt.potential, felt.field
        assert potential is not None  # narrows the type
        assert field is not None
        atoms = potential.new_zeros(len(potential))
        charges, dipoles = permanent.charges, permanent.dipoles
        if kappas is not None:
            softness = kappas.reshape(-1)
            atoms = atoms - 0.5 * softness * potential.square()
            charges = charges - softness * potential
        if alphas is not None:
            whole = field if e_ext is None else field + e_ext.to(field)
            induced = alphas.reshape(-1, 1) * whole if alphas.ndim < 3 else (alphas @ whole[:, :, None])[:, :, 0]
            atoms = atoms - 0.5 * (field * induced).sum(1)
            dipoles = induced if dipoles is None else dipoles + induced
        return felt.energy + batch.sum_over_atoms(atoms), permanent.replace(charges=charges, dipoles=dipoles)

    def _born(self, batch: AtomicBatch, moments: Multipoles, index: int | None) -> Tensor:
        charges, dipoles = published_born_charges(
            batch, moments, remove_mean=self.remove_mean, create_graph=self.training
        )
        found = charges if dipoles is None else torch.stack((charges, dipoles), dim=1)
        found = found * self.epsilon_factor**0.5
        return found if index is None else found[..., index, :]


class _Atomwise(nn.Module):
    """Charges from features: a perceptron, and a linear map beside it."""

    def __init__(self, n_hidden: list[int], add_linear: bool, scale: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in n_hidden:
            layers.extend([nn.LazyLinear(width), nn.SiLU()])
        self.perceptron = nn.Sequential(*layers, nn.LazyLinear(1))
        self.linear = nn.LazyLinear(1, bias=False) if add_linear else None
        self.scale = scale

    def forward(self, desc: Tensor) -> Tensor:
        out = self.perceptron(desc)
        if self.linear is not None:
            out = out + self.linear(desc)
        return self.scale * out


def _fixed_charges(options: Mapping[str, Any]) -> dict[int, float]:
    """Return fixed charges by atomic number, times their factor; none where they are not used."""
    if not options["use_fixed_atomic_charges"]:
        return {}
    if not options["fixed_atomic_charges"]:
        raise ValueError(
            "`use_fixed_atomic_charges` is set, but the original's table is not known here: give "
            "`fixed_atomic_charges`, charges (e) by atomic number, or leave it out"
        )
    factor = float(options["fixed_atomic_charges_scaling_factor"])
    return {int(number): factor * float(charge) for number, charge in options["fixed_atomic_charges"].items()}


def _systems(positions: Tensor, cell: Tensor | None, batch: Tensor | None) -> AtomicBatch:
    system = torch.zeros(len(positions), dtype=torch.int64, device=positions.device) if batch is None else batch
    if cell is None:
        count = int(system.max()) + 1 if len(system) else 1
        cell = positions.new_zeros(count, 3, 3)
    cell = cell.reshape(-1, 3, 3)
    periodic = torch.linalg.det(cell.detach()).abs() > 1e-6
    return AtomicBatch(
        positions=positions,
        numbers=torch.ones_like(system),
        cell=cell.to(positions.dtype),
        pbc=periodic[:, None].expand(-1, 3),
        system=system.long(),
    )


def install() -> None:
    """Make ``import les`` give this module, and pickles of the original's classes load, for this process.

    Raises
    ------
    RuntimeError
        If another ``les`` was imported already.
    """
    own = sys.modules[__name__]
    if sys.modules.get("les", own) is not own:
        raise RuntimeError("another package `les` was imported already: call farfield.compat.les.install() before")
    sys.modules["les"] = own
    install_modules()


__all__ = ["Les", "install"]
