"""Laws of the built-in backbone."""

from __future__ import annotations

import math

import pytest
import torch
from potential_structures import crystal, joined, molecule

from farfield.potentials.cace import CACE
from farfield.potentials.invariants import invariant_names
from farfield.potentials.radial import bessel_basis, polynomial_cutoff

SMALL = {"n_bessel": 4, "n_radial": 3, "n_embedding": 2, "n_features": 8, "n_hidden": [8], "n_message_channels": 4}
KINDS = {
    "no messages": {"n_layers": 0},
    "one layer": {"n_layers": 1},
    "two layers, l 2, nu 3": {"n_layers": 2, "max_l": 2, "max_nu": 3},
    "covariants": {"n_layers": 1, "n_vectors": 3, "n_tensors": 2},
    "scalars only": {"n_layers": 1, "max_l": 0, "max_nu": 2},
}


def backbone(dtype: torch.dtype = torch.float64, **options) -> CACE:
    torch.manual_seed(0)
    return CACE([1, 6, 8], 3.0, **{**SMALL, **options}).to(dtype)


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def model(request) -> CACE:
    return backbone(**request.param)


def orthogonal(proper: bool) -> torch.Tensor:
    matrix, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    return matrix * (torch.linalg.det(matrix) if proper else -torch.linalg.det(matrix))


@pytest.mark.parametrize("proper", [True, False], ids=["rotation", "reflection"])
def test_scalars_stay_vectors_and_tensors_turn(model, proper):
    matrix = orthogonal(proper)
    batch = joined([molecule(), crystal()], 3.0)
    turned = batch.replace(positions=batch.positions @ matrix.T, cell=batch.cell @ matrix.T)
    before, after = model(batch), model(turned)
    torch.testing.assert_close(after.energy, before.energy)
    torch.testing.assert_close(after.scalars, before.scalars)
    if before.vectors is not None:
        torch.testing.assert_close(after.vectors, before.vectors @ matrix.T)
    if before.tensors is not None:
        torch.testing.assert_close(after.tensors, matrix @ before.tensors @ matrix.T)


def test_order_and_origin_of_atoms_do_not_matter(model):
    one = molecule(8, 2)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    other = one.replace(positions=one.positions[order] + 3.0, numbers=one.numbers[order])
    before, after = model(joined([one], 3.0)), model(joined([other], 3.0))
    torch.testing.assert_close(after.energy, before.energy)
    torch.testing.assert_close(after.scalars, before.scalars[order])


def test_a_batch_is_the_loop_over_its_systems(model):
    systems = [molecule(5, 1), crystal(4, 2), molecule(1, 3), crystal(6, 4, left_handed=True)]
    together = model(joined(systems, 3.0))
    apart = [model(joined([system], 3.0)) for system in systems]
    torch.testing.assert_close(together.energy, torch.cat([each.energy for each in apart]))
    torch.testing.assert_close(together.scalars, torch.cat([each.scalars for each in apart]))


def test_a_supercell_has_twice_the_energy(model):
    one = crystal(5, 1)
    two = one.replace(
        positions=torch.cat([one.positions, one.positions + one.cell[0, 1]]),
        numbers=one.numbers.repeat(2),
        cell=one.cell * torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)[:, None],
        system=one.system.repeat(2),
    )
    torch.testing.assert_close(model(joined([two], 3.0)).energy, 2.0 * model(joined([one], 3.0)).energy)


def test_an_atom_that_crosses_the_cutoff_is_not_felt_there(model):
    pair = molecule(2, 0)

    def energy(distance: float) -> torch.Tensor:
        positions = torch.zeros(2, 3, dtype=torch.float64)
        positions[1, 0] = distance
        return model(joined([pair.replace(positions=positions)], 3.0)).energy

    outside = energy(3.1)
    torch.testing.assert_close(energy(3.0 - 1e-4), outside, rtol=0, atol=1e-9)
    assert (energy(2.0) - outside).abs() > 1e-4


def test_pairs_of_a_longer_list_change_nothing(model):
    system = molecule(9, 3)
    torch.testing.assert_close(model(joined([system], 4.5)).energy, model(joined([system], 3.0)).energy)


def test_messages_carry_beyond_the_cutoff_and_no_further():
    chain = molecule(3, 0)
    positions = torch.zeros(3, 3, dtype=torch.float64)
    positions[:, 0] = torch.tensor([0.0, 2.0, 4.0])
    for layers, feels in ((0, False), (1, True)):
        model = backbone(n_layers=layers)
        leaf = positions.clone().requires_grad_()
        features = model(joined([chain], 3.0).replace(positions=leaf))
        # neighbours found at the true positions
        batch = joined([chain.replace(positions=positions)], 3.0).replace(positions=leaf)
        features = model(batch)
        (gradient,) = torch.autograd.grad(features.scalars[0].sum(), leaf)
        assert bool(gradient[2].abs().max() > 1e-8) is feels
        assert model.receptive_radius == 3.0 * (1 + layers)


def test_float32_follows_float64():
    batch = joined([molecule(8, 1), crystal(6, 1)], 3.0)
    precise = backbone()(batch)
    rough = backbone().float()(batch.to(dtype=torch.float32))
    assert rough.scalars.dtype == torch.float32
    torch.testing.assert_close(rough.energy, precise.energy, rtol=1e-4, atol=1e-4)


def test_config_rebuilds_the_module(model):
    again = CACE.from_config(model.config()).double()
    again.load_state_dict(model.state_dict())
    batch = joined([molecule()], 3.0)
    assert torch.equal(again(batch).energy, model(batch).energy)


def test_calibration_sets_the_size_of_each_kind_of_invariant():
    model = backbone(n_layers=1, saturation=None)
    batch = joined([molecule(9, seed) for seed in range(12)], 3.0)
    model.calibrate(batch, force_scale=0.5)
    seen = {}
    for t, module in enumerate(model.invariants):
        module.linear.register_forward_hook(lambda module, args, _, t=t: seen.update({t: args[0]}))
    model(batch)
    names = invariant_names(3, 4)
    expected = torch.tensor([2.0 ** (1 - len(name)) for name in names], dtype=torch.float64)
    assert len(seen) == 2
    for values in seen.values():
        sizes = values.unflatten(1, (len(names), -1)).square().mean((0, 2)).sqrt()
        torch.testing.assert_close(sizes, expected)
    assert model.energy_scale.item() == pytest.approx(0.05)


def test_one_atom_and_no_atoms_work(model):
    alone = joined([molecule(1)], 3.0)
    assert torch.isfinite(model(alone).energy).all()
    nothing = alone.replace(
        positions=alone.positions[:0],
        numbers=alone.numbers[:0],
        system=alone.system[:0],
        cell=alone.cell,
        pbc=alone.pbc,
    )
    torch.testing.assert_close(model(nothing).energy, torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"elements": []}, "elements"),
        ({"elements": [1, 1]}, "repeat"),
        ({"elements": [0]}, "atomic numbers"),
        ({"cutoff": -1.0}, "cutoff"),
        ({"max_l": 4}, "max_l"),
        ({"max_nu": 0}, "max_nu"),
        ({"n_layers": -1}, "n_layers"),
        ({"n_radial": 0}, "n_radial"),
        ({"saturation": 0.0}, "saturation"),
        ({"max_l": 0, "n_vectors": 2}, "n_vectors"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        CACE(**{"elements": [1, 6], "cutoff": 3.0, **options})


def test_missing_or_short_neighbours_are_refused():
    model = backbone()
    with pytest.raises(ValueError, match="add_neighbors"):
        model(molecule())
    with pytest.raises(ValueError, match=r"2\.0 Å but the model needs 3\.0"):
        model(joined([molecule()], 2.0))


def test_unknown_elements_are_refused():
    batch = joined([molecule().replace(numbers=torch.full((7,), 92))], 3.0)
    with pytest.raises(ValueError, match=r"\[92\].*\[1, 6, 8\]"):
        backbone()(batch)


def test_cutoff_falls_from_one_to_zero_with_two_flat_derivatives():
    r = torch.tensor([1e-9, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    value = polynomial_cutoff(r, 2.0)
    (first,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    for quantity, expected in ((value, [1.0, 0.0, 0.0]), (first, [0.0] * 3), (second, [0.0] * 3)):
        torch.testing.assert_close(quantity.detach(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


def test_bessel_functions_are_orthonormal():
    r = torch.linspace(1e-6, 3.0, 20001, dtype=torch.float64)
    basis = bessel_basis(r, 3.0, 5)
    overlap = torch.einsum("rn,rm,r->nm", basis, basis, r**2) * (r[1] - r[0])
    torch.testing.assert_close(overlap, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-3)
    assert math.isclose(basis[1, 0].item(), math.sqrt(2 / 3) * math.pi / 3, rel_tol=1e-6)


def test_structures_far_from_the_training_set_get_bounded_features():
    seen = []
    crowded = joined([molecule(9, 1).replace(positions=0.3 * molecule(9, 1).positions)], 3.0)
    sizes = {}
    for saturation in (None, 30.0):
        model = backbone(n_layers=1, saturation=saturation)
        model.calibrate(joined([molecule(9, seed) for seed in range(12)], 3.0))
        for module in model.invariants:
            module.linear.register_forward_hook(lambda module, args, _: seen.append(args[0].abs().max()))
        model(crowded)
        sizes[saturation] = max(seen)
        seen.clear()
    assert sizes[None] > 1e3
    assert sizes[30.0] <= 30.0


def test_saturation_leaves_usual_structures_as_they_are():
    batch = joined([molecule(9, seed) for seed in range(12)], 3.0)
    energies = []
    for saturation in (None, 1e4):
        model = backbone(n_layers=1, saturation=saturation)
        model.calibrate(batch)
        energies.append(model(batch).energy)
    torch.testing.assert_close(energies[1], energies[0], rtol=1e-4, atol=1e-4)
