"""Models with response: every combination is a model, features or bonds, in a field, with and without baselines."""

from __future__ import annotations

import itertools

import pytest
import torch
from potential_structures import crystal, joined, molecule

from farfield.atoms.neighbors import find_neighbors
from farfield.atoms.structures import split_systems
from farfield.potentials.augmented import AugmentedPotential
from farfield.potentials.baselines import free_atom_table
from farfield.potentials.cace import CACE
from farfield.potentials.long_range import LongRange
from farfield.potentials.response_heads import bounded
from farfield.units import COULOMB_CONSTANT

SMALL = {"n_bessel": 4, "n_radial": 3, "n_embedding": 2, "n_features": 8, "n_hidden": [8], "max_l": 2, "max_nu": 2}
CHOICES = ("dipoles", "quadrupoles", "induced_charges", "induced_dipoles")
ALL = dict.fromkeys(CHOICES, True)


def systems(field: bool = False):
    slab, wire = (crystal(4, 1).replace(pbc=torch.tensor([pbc])) for pbc in ((True, False, True), (False, False, True)))
    batch = joined([molecule(5, 1), crystal(5, 2), crystal(5, 3, left_handed=True), slab, wire], 3.0)
    batch = batch.replace(total_charge=torch.tensor([1.0, 0.0, -1.0, 0.0, 1.0]).double())
    if not field:
        return batch
    generator = torch.Generator().manual_seed(8)
    return batch.replace(external_field=0.2 * torch.randn(5, 3, generator=generator, dtype=torch.float64))


def potential(vectors: int = 3, tensors: int = 2, **options) -> AugmentedPotential:
    torch.manual_seed(3)
    backbone = CACE([1, 6, 8], 3.0, n_layers=0, n_vectors=vectors, n_tensors=tensors, **SMALL)
    # softer than a fresh model is: a law about response needs some
    options = {"charge_scale": 0.3, "accuracy": 1e-5, "n_hidden": (8,), "softness_scale": 0.01, **options}
    far = LongRange(backbone.n_scalars, vectors, tensors, **options)
    model = AugmentedPotential(backbone, far).double()
    model.calibrate(systems())
    return model


def check_forces(model: AugmentedPotential, batch) -> None:
    """Forces are minus the slope of the energy, five-point formula."""
    found = model.predict(batch)
    move = torch.randn(batch.positions.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def energy(step):
        with torch.no_grad():
            return model(batch.replace(positions=batch.positions + step * move)).energy

    step = 1e-4
    slope = (8 * (energy(step) - energy(-step)) - energy(2 * step) + energy(-2 * step)) / (12 * step)
    torch.testing.assert_close(batch.sum_over_atoms(-(found.forces * move).sum(1)), slope, rtol=1e-6, atol=1e-6)


def check_stress(model: AugmentedPotential, batch) -> None:
    """Stress of bulk is the slope of the energy in a strain, by its volume."""
    stress = model.predict(batch, stress=True).stress
    full = batch.pbc.all(-1)
    strain = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strain = strain + strain.T

    def energy(step):
        deform = torch.eye(3, dtype=torch.float64) + step * strain
        with torch.no_grad():
            return model(batch.replace(positions=batch.positions @ deform, cell=batch.cell @ deform)).energy

    step = 1e-4
    slope = (8 * (energy(step) - energy(-step)) - energy(2 * step) + energy(-2 * step)) / (12 * step)
    volume = torch.linalg.det(batch.cell).abs()
    work = (stress * strain).sum((1, 2))[full] * volume[full]
    torch.testing.assert_close(work, slope[full], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("response", ["one-shot", "scf"])
@pytest.mark.parametrize("chosen", list(itertools.product([False, True], repeat=4)), ids=lambda c: f"{c}")
def test_every_combination_is_a_model(chosen, response):
    """In a field and all boundaries: forces are derivatives, the energy is even in multipoles and field together.

    Stress is a derivative without a field, and a batch is the loop over its systems.
    """
    model = potential(**dict(zip(CHOICES, chosen, strict=True)), response=response)
    batch = systems(field=True)
    check_forces(model, batch)
    far = model(batch).far
    assert (far.multipoles.dipoles is not None, far.multipoles.quadrupoles is not None) == chosen[:2]
    if any(chosen[2:]):
        assert (far.response.softness is not None, far.response.polarizability is not None) == chosen[2:]
        assert float(far.details.response_energy.detach().abs().min()) > 1e-4
        torch.testing.assert_close(far.energy, model(batch).long_range_energy)
    else:
        assert far.response is None
    opposite = model(batch, -torch.ones(5, dtype=torch.float64))  # the other sign of the gauge
    turned = model(batch.replace(external_field=-batch.external_field, total_charge=-batch.total_charge))
    torch.testing.assert_close(opposite.energy, turned.energy)
    alone = torch.cat([model(one).energy for one in split_systems(batch)])
    torch.testing.assert_close(alone, model(batch).energy, rtol=1e-9, atol=1e-9)
    check_stress(model, batch.replace(external_field=None))


def test_anisotropic_polarizabilities_are_positive_symmetric_and_turn_with_the_system():
    batch = systems()
    matrix, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    turned = batch.replace(positions=batch.positions @ matrix.T, cell=batch.cell @ matrix.T)
    for options in ({}, {"vectors": 0}, {"tensors": 0}, {"vectors": 0, "tensors": 0, "bond_cutoff": 2.5}):
        model = potential(**options, induced_dipoles=True, anisotropic=True)
        alpha = model.response(batch).polarizability.detach()
        torch.testing.assert_close(alpha, alpha.mT, rtol=0, atol=0)
        eigenvalues = torch.linalg.eigvalsh(alpha)
        assert float(eigenvalues.min()) > 0
        assert float((eigenvalues[:, 2] - eigenvalues[:, 0]).max()) > 1e-4
        torch.testing.assert_close(model.response(turned).polarizability, matrix @ alpha @ matrix.T)


def test_models_of_scalars_alone_get_directions_from_bonds():
    model = potential(0, 0, **ALL, anisotropic=True, bond_cutoff=2.5, bond_channels=4, response="scf")
    batch = systems(field=True)
    check_forces(model, batch)
    assert float(model.multipoles(batch).dipoles.detach().abs().min(1).values.max()) > 0
    assert model.receptive_radius == 3.0 + 2.5
    found = model.predict(batch, create_graph=True)
    (found.forces.square().sum() + found.energy.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.long_range.parameters())
    short = find_neighbors(batch.replace(neighbors=None), 2.0)
    features = model.backbone(batch)
    with pytest.raises(ValueError, match="reach 2 Å but `bond_cutoff` is 2.5"):
        model.long_range.multipoles(short, features)
    with pytest.raises(ValueError, match="`bond_cutoff`"):
        LongRange(4, dipoles=True)
    with pytest.raises(ValueError, match="`bond_cutoff` is -1"):
        LongRange(4, bond_cutoff=-1.0)


def test_bounded_response_stays_where_scf_has_a_minimum_and_small_values_stay():
    values = torch.tensor([1e-6, 0.1, 5.0, 1e4], dtype=torch.float64)
    small = bounded(values, 0.25)
    torch.testing.assert_close(small[0], values[0], rtol=1e-5, atol=0)
    assert bool((small.diff() > 0).all())
    assert float(small.max()) < 0.25
    rotation, _ = torch.linalg.qr(torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    matrices = rotation @ torch.diag_embed(values[:, None] * torch.tensor([1.0, 0.0, 3.0]).double()) @ rotation.mT
    capped = bounded(matrices, 0.25)
    eigenvalues = torch.linalg.eigvalsh(capped)
    assert float(eigenvalues.max()) < 0.25
    torch.testing.assert_close(eigenvalues[:, 1], bounded(values, 0.25))
    huge = potential(**ALL, anisotropic=True, response="scf", softness_scale=50.0, polarizability_scale=50.0)
    assert bool(torch.isfinite(huge(systems()).energy).all())


def test_baselines_are_added_and_multiplied():
    batch = systems()
    bare = potential(induced_dipoles=True, polarizability_scale=1.0)
    based = potential(
        induced_dipoles=True,
        free_atom_polarizabilities=True,
        nominal_charges={"H": 1, 8: -2},
        nominal_factor=0.3,
    )
    nominal = torch.zeros(9, dtype=torch.float64)
    nominal[1], nominal[8] = 0.3, -0.6
    difference = based.multipoles(batch).charges - bare.multipoles(batch).charges
    torch.testing.assert_close(difference, nominal[batch.numbers])
    ratio = based.response(batch).polarizability / bare.response(batch).polarizability
    torch.testing.assert_close(ratio, free_atom_table()[batch.numbers])
    # hydrogen: 4.5 Bohr³, exactly (H. A. Bethe and E. E. Salpeter, Quantum Mechanics of One- and Two-Electron Atoms)
    assert float(free_atom_table()[1]) * COULOMB_CONSTANT == pytest.approx(4.5 * 0.1481847, rel=1e-6)
    again = AugmentedPotential.from_config(based.config()).double()
    again.load_state_dict(based.state_dict())
    assert torch.equal(again(batch).energy, based(batch).energy)
    features = based.backbone(batch)
    with pytest.raises(ValueError, match="atomic numbers .56"):
        based.long_range(batch.replace(numbers=torch.full_like(batch.numbers, 56)), features)
    for name, message in (("Xx", "no element symbol"), (0, "no atomic number")):
        with pytest.raises(ValueError, match=message):
            LongRange(4, nominal_charges={name: 1.0})


def test_a_field_on_charges_alone_is_minus_f_dot_p_along_open_directions():
    model, batch = potential(dipoles=True), systems()
    multipoles = model.multipoles(batch)
    field = torch.tensor([[0.1, 0.3, -0.2]], dtype=torch.float64).expand(5, 3)
    change = model(batch.replace(external_field=field)).energy - model(batch).energy
    balanced = (
        multipoles.charges
        - ((batch.sum_over_atoms(multipoles.charges) - batch.total_charge) / batch.counts)[batch.system]
    )
    dipoles = batch.sum_over_atoms(multipoles.dipoles)
    charged = batch.sum_over_atoms(balanced[:, None] * batch.positions)
    torch.testing.assert_close(change[0], -(charged + dipoles)[0] @ field[0])
    torch.testing.assert_close(change[1:3], -(dipoles[1:3] * field[1:3]).sum(1))
    cell = batch.cell
    normal = torch.linalg.cross(cell[3, 2], cell[3, 0])
    normal = normal / normal.norm()
    torch.testing.assert_close(change[3], -(dipoles[3] @ field[3] + (charged[3] @ normal) * (field[3] @ normal)))
    with pytest.raises(ValueError, match="`stress` is not defined in an external field"):
        model.predict(batch.replace(external_field=field), stress=True)


def test_what_long_range_refuses():
    for options, message in (
        ({"response": "twice"}, "`response` is 'twice'"),
        ({"anisotropic": True}, "set `induced_dipoles`"),
        ({"anisotropic": True, "induced_dipoles": True}, "needs vector or tensor features"),
        ({"free_atom_polarizabilities": True}, "set `induced_dipoles`"),
        ({"conserve_charge": False, "field_on_charges": True}, "origin"),
    ):
        with pytest.raises(ValueError, match=message):
            LongRange(4, **options)
