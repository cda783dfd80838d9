"""The laws of physics that every host's adapter keeps, as one class of tests to inherit from.

A test file of a host gives `backbone` (fresh weights) and `native` (a model of the host itself), in double precision,
that know H, C and O and see no further than 3 Å.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from potential_structures import crystal, joined, molecule
from torch import Tensor, nn

from farfield import augment, units
from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.atoms.structures import to_ase
from farfield.engines.ase import Calculator
from farfield.model import Model
from farfield.observables.born import born_charges
from farfield.potentials.augmented import AugmentedPotential

SLAB, WIRE = (True, False, True), (False, True, False)


def mixed() -> list[AtomicBatch]:
    """Open, periodic, left-handed, slab, wire, and an atom alone, with a total charge."""
    slab, wire = (crystal(5, seed).replace(pbc=torch.tensor([pbc])) for seed, pbc in enumerate((SLAB, WIRE)))
    systems = [molecule(6, 1), crystal(6, 2), crystal(5, 3, left_handed=True), slab, wire, molecule(1)]
    charge = torch.ones(1, dtype=torch.float64)
    return [system.replace(total_charge=charge) for system in systems]


def deformable(batch: AtomicBatch) -> tuple[Tensor, Tensor, Callable[[float, float], AtomicBatch]]:
    """A random direction for all atoms, a random symmetric strain, and the batch moved by so much of each."""
    generator = torch.Generator().manual_seed(0)
    move = torch.randn(batch.positions.shape, generator=generator, dtype=torch.float64)
    strain = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    strain = strain + strain.T

    def deformed(shift: float, stretch: float) -> AtomicBatch:
        deform = torch.eye(3, dtype=torch.float64) + stretch * strain
        return batch.replace(positions=(batch.positions + shift * move) @ deform, cell=batch.cell @ deform)

    return move, strain, deformed


class HostLaws:
    """Inherit from this, and give `backbone` and `native`."""

    #: What an adapter with all features is tried with.
    far: dict[str, Any] = {
        "dipoles": True, "quadrupoles": True, "induced_dipoles": True, "polarizability_scale": 0.01,
        "total_charge": "constraint",
    }  # fmt: skip

    #: How exactly outputs turn with a system; other than by default where a host's constants are single precision.
    turning: dict[str, float] = {}

    @classmethod
    def backbone(cls) -> nn.Module:
        raise NotImplementedError

    @classmethod
    def native(cls) -> nn.Module:
        raise NotImplementedError

    def native_energy(self, model: nn.Module, batch: AtomicBatch) -> Tensor:
        """Energies of the systems by the host's own means."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def built(cls) -> AugmentedPotential:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            potential = augment(cls.backbone(), charge_scale=0.5, accuracy=1e-6, **cls.far).double()
        potential.set_reference_energies({1: -1.5, 6: -10.0, 8: -20.0})
        # the host's forces small: what is checked is mostly the long range
        potential.calibrate(joined(mixed(), potential.cutoff), 0.1)
        return potential

    @pytest.fixture
    def potential(self, built: AugmentedPotential) -> AugmentedPotential:
        return built

    @pytest.fixture
    def batch(self, potential: AugmentedPotential) -> AtomicBatch:
        return joined(mixed(), potential.cutoff)

    # ---- derivatives -------------------------------------------------------------------------------------------------

    @staticmethod
    def slope_of(energy: Any, step: float = 1e-4) -> Tensor:
        """Derivative at 0 by the five-point formula."""
        with torch.no_grad():
            near, far = energy(step) - energy(-step), energy(2 * step) - energy(-2 * step)
        return (8 * near - far) / (12 * step)

    def test_forces_are_minus_the_slope_of_the_energy(self, potential, batch) -> None:
        found = potential.predict(batch)
        assert found.long_range_energy[:-1].abs().min() > 0.05
        short = AugmentedPotential(potential.backbone).predict(batch).forces
        assert (found.forces - short).norm() > 2.0 * short.norm()  # the long range dominates
        move, _, deformed = deformable(batch)
        slope = self.slope_of(lambda step: potential(deformed(step, 0.0)).energy)
        torch.testing.assert_close(-batch.sum_over_atoms(found.forces * move).sum(1), slope, rtol=1e-6, atol=1e-6)

    def test_stress_is_the_slope_in_strain(self, potential, batch) -> None:
        stress = potential.predict(batch, stress=True).stress
        _, strain, deformed = deformable(batch)
        slope, full = self.slope_of(lambda step: potential(deformed(0.0, step)).energy), batch.pbc.all(-1)
        volume = torch.linalg.det(batch.cell).abs()
        torch.testing.assert_close(
            (stress * strain).sum((1, 2))[full] * volume[full], slope[full], rtol=1e-6, atol=1e-6
        )

    def test_a_training_step_changes_host_and_heads(self, potential, batch) -> None:
        potential = copy.deepcopy(potential)
        before = {name: value.clone() for name, value in potential.named_parameters()}
        optimizer = torch.optim.SGD(potential.parameters(), lr=1e-3)
        found = potential.predict(batch, stress=True, create_graph=True)
        full = batch.pbc.all(-1)
        (found.forces.square().sum() + found.stress[full].square().sum()).backward()
        slope = self._slope_of_the_loss(potential, batch)
        torch.testing.assert_close(slope[0], slope[1], rtol=1e-5, atol=1e-7)
        optimizer.step()
        changed = {name for name, value in potential.named_parameters() if not torch.equal(value, before[name])}
        assert any(name.startswith("backbone.") for name in changed)
        for head in ("charges", "dipoles", "quadrupoles", "polarizability"):
            assert any(name.startswith(f"long_range.{head}.") for name in changed)

    @staticmethod
    def _slope_of_the_loss(potential: AugmentedPotential, batch: AtomicBatch) -> tuple[Tensor, Tensor]:
        """Slope of the squared forces along a random direction of all weights: by gradients, and by differences."""
        parameters = [parameter for parameter in potential.parameters() if parameter.requires_grad]
        generator = torch.Generator().manual_seed(0)
        steps = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

        def loss(size: float, graph: bool = False) -> Tensor:
            with torch.no_grad():
                for parameter, step in zip(parameters, steps, strict=True):
                    parameter += size * step
            return potential.predict(batch, create_graph=graph).forces.square().sum()

        gradients = torch.autograd.grad(loss(0.0, True), parameters, allow_unused=True, materialize_grads=True)
        by_gradients = sum((g * s).sum() for g, s in zip(gradients, steps, strict=True))
        above, below = loss(1e-5), loss(-2e-5)
        loss(1e-5)  # back to where it was
        return by_gradients, (above - below) / 2e-5

    # ---- symmetries --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("handedness", [1, -1], ids=["rotation", "reflection"])
    def test_all_outputs_turn_with_the_system(self, potential, batch, handedness) -> None:
        turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
        turn = turn * torch.linalg.det(turn).sign() * handedness
        turned = batch.replace(positions=batch.positions @ turn.T, cell=batch.cell @ turn.T)
        before, after = (potential.predict(b, stress=True) for b in (batch, turned))
        close = functools.partial(torch.testing.assert_close, **self.turning)
        close(after.energy, before.energy)
        close(after.forces, before.forces @ turn.T)
        full = batch.pbc.all(-1)
        close(after.stress[full], turn @ before.stress[full] @ turn.T)
        close(after.multipoles.charges, before.multipoles.charges)
        close(after.multipoles.dipoles, before.multipoles.dipoles @ turn.T)
        close(after.multipoles.quadrupoles, turn @ before.multipoles.quadrupoles @ turn.T)
        close(after.far.response.polarizability, before.far.response.polarizability)
        one, other = (potential.backbone(b) for b in (batch, turned))
        close(other.scalars, one.scalars)
        if one.vectors is not None:
            assert one.vectors[:-1].abs().max() > 1e-3
            close(other.vectors, one.vectors @ turn.T)
        if one.tensors is not None:
            assert one.tensors[:-1].abs().max() > 1e-3
            close(other.tensors, turn @ one.tensors @ turn.T)
            close(one.tensors.diagonal(dim1=-2, dim2=-1).sum(-1), torch.zeros(one.tensors.shape[:2]).double())

    def test_names_of_atoms_do_not_matter(self, potential) -> None:
        one = mixed()[1]
        order = torch.randperm(one.n_atoms, generator=torch.Generator().manual_seed(1))
        other = one.replace(positions=one.positions[order], numbers=one.numbers[order])
        before, after = (potential.predict(joined([b], potential.cutoff)) for b in (one, other))
        torch.testing.assert_close(after.energy, before.energy)
        torch.testing.assert_close(after.forces, before.forces[order])

    def test_moving_all_atoms_changes_nothing(self, potential) -> None:
        systems = mixed()
        shift = torch.tensor([11.3, -4.2, 7.7], dtype=torch.float64)
        moved = [b.replace(positions=b.positions + shift) for b in systems]
        before, after = (potential.predict(joined(b, potential.cutoff)) for b in (systems, moved))
        torch.testing.assert_close(after.energy, before.energy)
        torch.testing.assert_close(after.forces, before.forces, rtol=1e-6, atol=1e-8)

    def test_a_batch_is_a_loop_over_its_systems(self, potential, batch) -> None:
        together = potential.predict(batch)
        alone = [potential.predict(joined([one], potential.cutoff)) for one in mixed()]
        torch.testing.assert_close(together.energy, torch.cat([one.energy for one in alone]))
        torch.testing.assert_close(together.forces, torch.cat([one.forces for one in alone]))

    def test_edges_beyond_the_cutoff_do_not_matter(self, potential) -> None:
        near, wide = (potential.predict(joined(mixed(), reach)) for reach in (potential.cutoff, potential.cutoff + 1.5))
        torch.testing.assert_close(wide.energy, near.energy)
        torch.testing.assert_close(wide.forces, near.forces)

    # ---- charges -----------------------------------------------------------------------------------------------------

    def test_born_charges_add_up_to_the_total_charge(self, potential) -> None:
        one = potential.add_neighbors(mixed()[0])
        model = Model(potential)
        found = born_charges(model, one)
        torch.testing.assert_close(found.sum(0), torch.eye(3, dtype=torch.float64), rtol=1e-7, atol=1e-7)

    def test_distant_ions_interact_as_one_over_r(self, potential) -> None:
        one, other = mixed()[0], mixed()[0]

        def energy(distance: float) -> Tensor:
            shift = torch.tensor([distance, 0.0, 0.0], dtype=torch.float64)
            pair = concatenate([one, other.replace(positions=other.positions + shift)])
            pair = pair.replace(
                cell=one.cell, pbc=one.pbc, system=torch.zeros_like(pair.system), total_charge=2 * one.total_charge
            )
            return potential(potential.add_neighbors(pair)).energy[0]

        near, far = 200.0, 400.0
        # next come charges and dipoles, a hundredth of this
        expected = units.COULOMB_CONSTANT * (1 / near - 1 / far)
        torch.testing.assert_close(energy(near) - energy(far), torch.tensor(expected).double(), rtol=0.05, atol=0)

    # ---- the host itself ---------------------------------------------------------------------------------------------

    def test_with_the_long_range_off_the_energy_is_the_hosts(self) -> None:
        native = self.native()
        potential = augment(native, charge_scale=1e-30)
        batch = joined(mixed(), potential.cutoff)
        found = potential.predict(batch, stress=True)
        given = batch.replace(positions=batch.positions.clone().requires_grad_())
        expected = self.native_energy(native, given)
        torch.testing.assert_close(found.energy, expected.double(), rtol=1e-8, atol=1e-8)
        forces = -torch.autograd.grad(expected.sum(), given.positions)[0]
        torch.testing.assert_close(found.forces, forces, rtol=1e-8, atol=1e-8)

    def test_the_callers_model_and_tensors_stay_as_they_are(self) -> None:
        native = self.native()
        before = {name: value.clone() for name, value in native.state_dict().items()}
        trained = [parameter.requires_grad for parameter in native.parameters()]
        potential = augment(native, freeze=True)
        batch = joined(mixed(), potential.cutoff)
        with torch.no_grad():
            potential(batch)
        potential.calibrate(batch, 3.0)
        assert not batch.positions.requires_grad
        assert all(torch.equal(value, before[name]) for name, value in native.state_dict().items())
        assert not any(parameter.requires_grad for parameter in potential.backbone.parameters())
        assert all(parameter.requires_grad for parameter in potential.long_range.parameters())
        assert [parameter.requires_grad for parameter in native.parameters()] == trained

    def test_unknown_elements_are_refused(self, potential) -> None:
        batch = joined(mixed(), potential.cutoff)
        with pytest.raises(ValueError, match=r"\[92\]"):
            potential(batch.replace(numbers=torch.full_like(batch.numbers, 92)))

    # ---- files and engines -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
    def test_saved_and_loaded_it_gives_the_same_bits(self, potential, batch, dtype, tmp_path: Path) -> None:
        potential, batch = copy.deepcopy(potential).to(dtype), batch.to(dtype=dtype)
        Model(potential).save(tmp_path / "model.ff")
        again = Model.from_file(tmp_path / "model.ff").potential
        before, after = potential.predict(batch, stress=True), again.predict(batch, stress=True)
        assert torch.equal(after.energy, before.energy)
        assert torch.equal(after.forces, before.forces)
        assert again.backbone.receptive_radius == potential.backbone.receptive_radius

    def test_single_precision_is_close_to_double(self, potential, batch) -> None:
        exact = potential.predict(batch)
        found = copy.deepcopy(potential).float().predict(batch.to(dtype=torch.float32))
        torch.testing.assert_close(found.energy, exact.energy, rtol=1e-4, atol=1e-4)
        scale = float(exact.forces.abs().max())
        torch.testing.assert_close(found.forces.double(), exact.forces, rtol=1e-3, atol=2e-4 * scale)

    def test_it_runs_in_ase(self, potential) -> None:
        system = mixed()[1]
        (atoms,) = to_ase(system)
        atoms.info["total_charge"] = 1.0
        atoms.calc = Calculator(potential)
        expected = potential.predict(potential.add_neighbors(system), stress=True)
        assert atoms.get_potential_energy() == pytest.approx(expected.energy.item())
        torch.testing.assert_close(torch.tensor(atoms.get_forces()), expected.forces)
        torch.testing.assert_close(torch.tensor(atoms.get_stress(voigt=False)), expected.stress[0])
