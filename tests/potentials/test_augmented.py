"""One energy: forces and stress are its derivatives, the far field reaches where features do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from potential_structures import crystal, joined, molecule

from farfield import units
from farfield.potentials.augmented import AugmentedPotential, backbone_class
from farfield.potentials.cace import CACE
from farfield.potentials.long_range import LongRange
from farfield.potentials.repulsion import zbl_energy

PARTLY = [(True, False, True), (False, True, False)]
SMALL = {"n_bessel": 4, "n_radial": 3, "n_embedding": 2, "n_features": 8, "n_hidden": [8], "n_message_channels": 4}
ALL = {"dipoles": True, "quadrupoles": True, "induced_charges": True, "induced_dipoles": True, "anisotropic": True}
VARIANTS = {
    "charges": {},
    "constraint": {"total_charge": "constraint"},
    "weighted constraint": {"total_charge": "constraint", "learned_weights": True},
    "feature": {"total_charge": "feature"},
    "multipoles": {"dipoles": True, "quadrupoles": True},
    "induced charges": {"induced_charges": True},
    "induced dipoles": {"dipoles": True, "induced_dipoles": True},
    "all": {**ALL, "total_charge": "constraint"},
    "all, self-consistent": {**ALL, "response": "scf"},
}


def potential(dtype: torch.dtype = torch.float64, charge_scale: float = 0.3, **options) -> AugmentedPotential:
    """Small model whose long-range forces dominate."""
    torch.manual_seed(1)
    backbone = CACE([1, 6, 8], 3.0, n_layers=1, n_vectors=3, n_tensors=2, **SMALL)
    far = LongRange(backbone.n_scalars, 3, 2, charge_scale=charge_scale, accuracy=1e-6, **options)
    model = AugmentedPotential(backbone, far, reference_energies={1: -13.6, 6: -1000.0, 8: -2000.0}).double()
    model.calibrate(mixed())
    return model.to(dtype)


def slope_of(energy: Callable[[float], torch.Tensor], step: float = 1e-4) -> torch.Tensor:
    """Derivative at 0 by the five-point formula."""
    with torch.no_grad():
        near = energy(step) - energy(-step)
        far = energy(2 * step) - energy(-2 * step)
    return (8 * near - far) / (12 * step)


def mixed(total_charge: float = 1.0):
    slab, wire = (crystal(5, seed).replace(pbc=torch.tensor([pbc])) for seed, pbc in enumerate(PARTLY))
    systems = [molecule(6, 1), crystal(6, 2), crystal(5, 3, left_handed=True), slab, wire]
    systems = [s.replace(total_charge=torch.full((1,), total_charge, dtype=torch.float64)) for s in systems]
    return joined(systems, 3.0)


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request) -> AugmentedPotential:
    return potential(**request.param)


def test_forces_are_minus_the_slope_of_the_energy(model):
    batch = mixed()
    found = model.predict(batch)
    assert found.long_range_energy.abs().min() > 0.1
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(batch.positions.shape, generator=generator, dtype=torch.float64)
    for system in range(batch.n_systems):
        move = direction * (batch.system == system)[:, None]
        slope = slope_of(lambda step, move=move: model(batch.replace(positions=batch.positions + step * move)).energy)
        slope = slope[system]
        torch.testing.assert_close(-(found.forces * move).sum(), slope, rtol=1e-6, atol=1e-6)


def test_stress_is_the_slope_in_strain(model):
    batch = mixed()
    stress = model.predict(batch, stress=True).stress
    full = batch.pbc.all(-1)
    assert torch.isnan(stress[~full]).all()  # a system that is open along an axis has no volume
    generator = torch.Generator().manual_seed(0)
    strain = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    strain = strain + strain.T

    def energy(step: float) -> torch.Tensor:
        deform = torch.eye(3, dtype=torch.float64) + step * strain
        return model(batch.replace(positions=batch.positions @ deform, cell=batch.cell @ deform)).energy

    slope = slope_of(energy)
    volume = torch.linalg.det(batch.cell).abs()
    torch.testing.assert_close((stress * strain).sum((1, 2))[full] * volume[full], slope[full], rtol=1e-6, atol=1e-6)


def test_forces_turn_with_the_system(model):
    matrix, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    batch = mixed()
    before = model.predict(batch, stress=True)
    turned = batch.replace(positions=batch.positions @ matrix.T, cell=batch.cell @ matrix.T)
    after = model.predict(turned, stress=True)
    torch.testing.assert_close(after.energy, before.energy)
    torch.testing.assert_close(after.forces, before.forces @ matrix.T)
    full = batch.pbc.all(-1)
    torch.testing.assert_close(after.stress[full], matrix @ before.stress[full] @ matrix.T)


def test_a_training_step_reaches_every_parameter(model):
    batch = mixed()
    found = model.predict(batch, stress=True, create_graph=True)
    loss = found.forces.square().sum() + found.energy.sum() + found.stress[batch.pbc.all(-1)].square().sum()
    loss.backward()
    # a constant in the energy, or in all charges under a constraint, has no influence on what is trained
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    allowed = {"long_range.charges.perceptron.4.bias"} if model.long_range.total_charge == "constraint" else set()
    assert silent <= allowed


@pytest.mark.parametrize("learned", [False, True])
def test_a_constraint_holds_to_rounding(learned):
    batch = mixed(total_charge=-2.0)
    model = potential(total_charge="constraint", learned_weights=learned)
    sums = batch.sum_over_atoms(model(batch).multipoles.charges)
    torch.testing.assert_close(sums, torch.full((batch.n_systems,), -2.0, dtype=torch.float64))


def test_a_screened_constraint_divides_by_the_root_of_epsilon_in_crystals_only():
    batch = mixed(total_charge=-2.0)
    sums = batch.sum_over_atoms(potential(total_charge="constraint", epsilon_infinity=4.0)(batch).multipoles.charges)
    torch.testing.assert_close(sums, torch.tensor([-2.0, -1.0, -1.0, -2.0, -2.0], dtype=torch.float64))


def test_the_total_charge_as_a_feature_changes_the_charges():
    model = potential(total_charge="feature")
    assert not torch.allclose(model(mixed(0.0)).multipoles.charges, model(mixed(1.0)).multipoles.charges)


def test_a_needed_total_charge_that_is_missing_is_refused():
    with pytest.raises(ValueError, match="total_charge"):
        potential(total_charge="constraint")(mixed().replace(total_charge=None))


def test_distant_fragments_interact_as_their_charges_over_distance():
    model = potential()
    one, other = molecule(4, 1), molecule(5, 2)

    def energy(distance: float):
        shift = torch.tensor([distance, 0.0, 0.0], dtype=torch.float64)
        pair = one.replace(
            positions=torch.cat([one.positions, other.positions + shift]),
            numbers=torch.cat([one.numbers, other.numbers]),
            system=torch.zeros(9, dtype=torch.int64),
        )
        return model(joined([pair], 3.0))

    near, far = energy(40.0), energy(1e5)
    charges = near.multipoles.charges
    torch.testing.assert_close(near.short_range_energy, far.short_range_energy)
    positions = torch.cat([one.positions, other.positions + torch.tensor([40.0, 0, 0], dtype=torch.float64)])
    distances = torch.cdist(positions[:4], positions[4:])
    expected = units.COULOMB_CONSTANT * (charges[:4, None] * charges[None, 4:] / distances).sum()
    torch.testing.assert_close((near.energy - far.energy)[0], expected, rtol=1e-2, atol=1e-4)
    # dipoles and quadrupoles are part of the model only if asked for: with charges alone it is exact
    assert near.multipoles.dipoles is None


def test_no_long_range_is_the_backbone_plus_references():
    model = potential()
    bare = AugmentedPotential(model.backbone, None, reference_energies=model.reference_energies)
    batch = mixed()
    out = bare(batch)
    references = torch.tensor([{1: -13.6, 6: -1000.0, 8: -2000.0}[int(z)] for z in batch.numbers], dtype=torch.float64)
    torch.testing.assert_close(out.energy, model.backbone(batch).energy + batch.sum_over_atoms(references))
    torch.testing.assert_close(out.energy, model(batch).energy - model(batch).long_range_energy)
    assert out.multipoles is None


def test_reference_energies_stay_in_double_precision():
    model = potential().float()
    model.set_reference_energies({1: -1e6 - 1 / 3, 6: 0.0, 8: 0.0})
    batch = joined([molecule(1)], 3.0).replace(numbers=torch.tensor([1]))
    out = model(batch.to(dtype=torch.float32))
    rest = out.energy - out.short_range_energy - out.long_range_energy
    torch.testing.assert_close(rest, torch.tensor([-1e6 - 1 / 3], dtype=torch.float64), rtol=1e-14, atol=0)


def test_config_and_weights_rebuild_the_potential(model):
    model.zbl = True
    again = AugmentedPotential.from_config(model.config()).double()
    again.load_state_dict(model.state_dict())
    batch = mixed()
    assert torch.equal(again.predict(batch).forces, model.predict(batch).forces)
    assert torch.equal(again(batch).energy, model(batch).energy)


def test_unknown_backbones_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'nequipp'.*cace"):
        backbone_class("nequipp")


def test_features_that_are_missing_are_refused():
    with pytest.raises(ValueError, match="vector"):
        LongRange(4, dipoles=True)
    with pytest.raises(ValueError, match="tensor"):
        LongRange(4, quadrupoles=True)
    with pytest.raises(ValueError, match="total_charge"):
        LongRange(4, total_charge="sum")
    with pytest.raises(ValueError, match="scalars"):
        LongRange(0)


def test_zbl_tends_to_bare_nuclei_and_ends_at_its_cutoff():
    pair = molecule(2).replace(numbers=torch.tensor([6, 8]))

    def energy(distance: float) -> float:
        positions = torch.zeros(2, 3, dtype=torch.float64)
        positions[1, 2] = distance
        return zbl_energy(joined([pair.replace(positions=positions)], 3.0)).item()

    assert energy(1e-4) == pytest.approx(units.COULOMB_CONSTANT * 48 / 1e-4, rel=2e-3)
    assert energy(1.5) == pytest.approx(0.0, abs=1e-12)
    assert energy(1.0) > energy(1.2) > 0
