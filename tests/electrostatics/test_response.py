"""Response: the oracle, and derivatives of the one functional for every kind of model, mode and boundary."""

from __future__ import annotations

import json

import pytest
import torch
from electrostatic_systems import one_system
from response_systems import BOUNDARIES, MODELS, MODES, across, given, random_response, solver, system_of, values

from farfield.atoms.batch import concatenate
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.response import LinearResponse
from farfield.electrostatics.susceptibility import Response

FIELD = torch.tensor([[0.11, -0.07, 0.16]], dtype=torch.float64)


def _close(actual, expected, tolerance=1e-6):
    expected = torch.tensor(expected, dtype=torch.float64)
    assert float((actual.detach() - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("method", ["auto", "ewald", "mesh"])
def test_every_system_of_the_oracle_agrees(oracle, method):
    file = oracle / "gaussian_multipoles.json" if oracle.is_dir() else oracle
    systems = json.loads(file.read_text())["systems"]
    assert len(systems) == 12
    for system in systems:
        if method == "mesh" and sum(system["pbc"]) < 2:
            continue  # large padded meshes, for minutes; the other sums have them
        q, u, quadrupoles, kappa, alpha, field, positions, cell = (
            torch.tensor(system[name], dtype=torch.float64)
            for name in ("charges", "dipoles", "quadrupoles", "kappa", "alpha", "external_field", "positions", "cell")
        )
        batch = one_system(positions.requires_grad_(), cell).replace(pbc=torch.tensor([system["pbc"]]))
        multipoles, reference = Multipoles(q, u, quadrupoles), system["reference"]
        coulomb = Coulomb(system["smearing"], accuracy=1e-8 if method != "mesh" else 1e-6, method=method)
        published = LinearResponse(coulomb, conserve_charge=False)
        result = published(batch, multipoles, Response(kappa, alpha), external_field=field[None])
        _close(result.permanent_energy[0], reference["energy"])
        _close(result.response_energy[0], reference["one_shot_energy"])
        _close(result.induced.charges, reference["induced_charges"])
        _close(result.induced.dipoles, reference["induced_dipoles"])
        (gradient,) = torch.autograd.grad(result.response_energy.sum(), batch.positions)
        _close(-gradient, reference["one_shot_forces"])
        mutual = LinearResponse(coulomb, mode="scf", tolerance=1e-10)
        result = mutual(batch, multipoles, Response(None, alpha), external_field=field[None])
        _close(result.response_energy[0], reference["scf_energy"])
        _close(result.dipole_energy[0], reference["scf_energy"])
        _close(result.induced.dipoles, reference["scf_induced_dipoles"])


def _energy(solve, batch, multipoles, response, field):
    return solve(batch, multipoles, response, external_field=field).energy.sum()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("model", MODELS)
def test_forces_and_strain_derivative_by_finite_differences(model, boundary, mode):
    batch, (multipoles, response), solve = system_of(boundary), given(model), solver(mode, accuracy=1e-3)
    positions, cell = batch.positions.clone().requires_grad_(), batch.cell.clone().requires_grad_()
    energy = _energy(solve, batch.replace(positions=positions, cell=cell), multipoles, response, FIELD)
    by_position, by_cell = torch.autograd.grad(energy, (positions, cell), materialize_grads=True)
    strain = positions.detach().mT @ by_position + cell[0].detach().mT @ by_cell[0]
    generator = torch.Generator().manual_seed(1)
    for deforms in (False, True):
        # The field stays when the structure is strained or turned: the normal of a slab turns in it.
        step = 1e-4 * torch.randn(batch.positions.shape if not deforms else (3, 3), generator=generator).double()

        def moved(sign, step=step, deforms=deforms):
            if not deforms:
                return batch.replace(positions=batch.positions + sign * step)
            deformation = torch.eye(3, dtype=torch.float64) + sign * step
            return batch.replace(positions=batch.positions @ deformation, cell=batch.cell @ deformation)

        change = [float(_energy(solve, moved(sign), multipoles, response, FIELD)) for sign in (1.0, -1.0)]
        slope = float(((strain if deforms else by_position) * step).sum())
        assert (change[0] - change[1]) / 2 == pytest.approx(slope, rel=1e-6, abs=1e-11)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("boundary", ["open", "slab", "wire", "bulk"])
@pytest.mark.parametrize("model", MODELS)
def test_polarization_born_charges_and_polarizability_are_derivatives_of_the_energy(model, boundary, mode, close):
    """P = −∂E/∂F is Σ(q̃ + Δq)r along open directions + Σu + ΣΔu; Z* = ∂P/∂r = ∂(force)/∂F; polarizability = ∂P/∂F."""
    if model == "q+k" and boundary == "bulk":
        pytest.skip("charges in bulk have no energy in a field")
    batch, (multipoles, response), solve = system_of(boundary), given(model), solver(mode)
    positions, field = batch.positions.clone().requires_grad_(), FIELD.clone().requires_grad_()
    result = solve(
        batch.replace(positions=positions), multipoles, response, external_field=field, total_charge=torch.ones(1)
    )
    (by_field,) = torch.autograd.grad(result.energy.sum(), field, create_graph=True)
    polarization = -by_field[0]
    induced = result.induced
    written = torch.zeros(3, dtype=torch.float64) if multipoles.dipoles is None else multipoles.dipoles.sum(0)
    if induced.dipoles is not None:
        written = written + induced.dipoles.sum(0)
    charges = multipoles.charges - (multipoles.charges.sum() - 1.0) / len(positions) + induced.charges
    written = written + charges @ positions @ across(batch)
    close(polarization, written, rtol=1e-8, atol=1e-9)

    (by_position,) = torch.autograd.grad(result.energy.sum(), positions, create_graph=True)
    born = torch.stack([torch.autograd.grad(p, positions, retain_graph=True)[0] for p in polarization], 1)
    written_born = torch.stack([torch.autograd.grad(p, positions, retain_graph=True)[0] for p in written], 1)
    forces = -by_position.reshape(-1)
    from_forces = torch.stack([torch.autograd.grad(f, field, retain_graph=True)[0][0] for f in forces])
    close(born, from_forces.reshape(-1, 3, 3).mT, rtol=1e-7, atol=1e-9)
    close(written_born, born, rtol=1e-7, atol=1e-8)
    # at fixed multipoles, of which only the sum of the charges knows about translations
    close(born.sum(0), across(batch), rtol=1e-7, atol=1e-9)

    rows = [torch.autograd.grad(p, field, retain_graph=True, materialize_grads=True)[0][0] for p in polarization]
    atomic = solve.polarizability(batch, response, order=MODELS[model][0])
    close(torch.stack(rows), atomic.sum(0), rtol=1e-7, atol=1e-9)
    # charges alone answer along open directions alone
    unmoved = torch.eye(3) - across(batch) if response.polarizability is None else 0.0
    assert float(torch.linalg.eigvalsh(atomic.sum(0) + unmoved).min()) > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_the_loop_over_its_systems(mode, close):
    """Any mix of boundaries, sizes and strengths, however soon each system converges."""
    batches = [system_of(boundary, 3 + n, seed=n) for n, boundary in enumerate(BOUNDARIES)]
    batches.append(system_of("open", 1, seed=9))
    models = [given("q+u+Q+k+A", batch.n_atoms, seed=n) for n, batch in enumerate(batches)]
    models[1] = (models[1][0], Response(0.0 * models[1][1].softness, 0.0 * models[1][1].polarizability))
    models[2] = (models[2][0], Response(1.5 * models[2][1].softness, 2.0 * models[2][1].polarizability))
    fields = [float(n) * FIELD for n in range(len(batches))]
    solve = solver(mode)
    apart = [
        solve(batch, *model, external_field=field) for batch, model, field in zip(batches, models, fields, strict=True)
    ]
    joined = solve(
        concatenate(batches),
        Multipoles(
            *(torch.cat([getattr(m, name) for m, _ in models]) for name in ("charges", "dipoles", "quadrupoles"))
        ),
        Response(*(torch.cat([getattr(r, name) for _, r in models]) for name in ("softness", "polarizability"))),
        external_field=torch.cat(fields),
    )
    for index, found in enumerate(values(joined)):
        close(found, torch.cat([values(one)[index] for one in apart]), rtol=1e-9, atol=1e-10)
    if mode == "scf":
        assert joined.iterations == max(one.iterations for one in apart)


def test_conserved_charge_and_its_limits(close):
    """ΣΔq = 0 and no origin in the energy; without conservation Δq = −κφ; nothing where κ is zero everywhere."""
    batch, (multipoles, response) = system_of("open"), given("q+u+k+a")
    potential = Coulomb(1.0)(batch, multipoles).potential
    for mode in MODES:
        result = solver(mode)(batch, multipoles, response, external_field=FIELD, total_charge=torch.zeros(1))
        close(result.induced.charges.sum(), 0.0)
        far = batch.replace(positions=batch.positions + 20.0)
        there = solver(mode)(far, multipoles, response, external_field=FIELD, total_charge=torch.zeros(1))
        close(there.energy, result.energy, rtol=1e-8)
        single = random_response(1, True, None)
        alone = solver(mode)(system_of("open", 1), Multipoles(torch.ones(1, dtype=torch.float64)), single)
        close(alone.energy, torch.zeros(1))
    published = LinearResponse(Coulomb(1.0), conserve_charge=False)(batch, multipoles, response, external_field=FIELD)
    close(published.induced.charges, -response.softness * potential)
    close(published.charge_energy[0], -0.5 * (response.softness * potential**2).sum())
    none = response.replace(softness=(0.0 * response.softness).requires_grad_())
    result = solver("one-shot")(batch, multipoles, none)
    close(result.induced.charges, torch.zeros(4))
    assert bool(torch.isfinite(torch.autograd.grad(result.energy.sum(), none.softness)[0]).all())


@pytest.mark.parametrize("mode", MODES)
def test_float32_follows_float64(mode):
    batch, (multipoles, response) = system_of("bulk", 6), given("q+u+Q+k+A", 6)
    solve = LinearResponse(Coulomb(1.0), mode=mode)
    exact = solve(batch, multipoles, response, external_field=FIELD)
    single = solve(
        batch.to(dtype=torch.float32),
        Multipoles(*(part.float() for part in (multipoles.charges, multipoles.dipoles, multipoles.quadrupoles))),
        Response(response.softness.float(), response.polarizability.float()),
        external_field=FIELD.float(),
    )
    assert single.energy.dtype == torch.float64
    assert single.induced.dipoles.dtype == torch.float32
    assert float(single.energy) == pytest.approx(float(exact.energy), rel=1e-5)
    assert float((single.induced.dipoles - exact.induced.dipoles).norm() / exact.induced.dipoles.norm()) < 1e-4


def test_what_is_refused():
    batch, (multipoles, response) = system_of("open"), given("q+u+k+a")
    coulomb = Coulomb(1.0)
    with pytest.raises(ValueError, match="`mode` is 'twice'"):
        LinearResponse(coulomb, mode="twice")
    with pytest.raises(ValueError, match="depend on the origin"):
        LinearResponse(coulomb, conserve_charge=False, field_on_charges=True)
    with pytest.raises(ValueError, match="`tolerance` is 0"):
        LinearResponse(coulomb, tolerance=0.0)
    with pytest.raises(ValueError, match="`max_iterations` is 0"):
        LinearResponse(coulomb, max_iterations=0)
    solve = LinearResponse(coulomb)
    for bad, message in (
        (Response(), "neither"),
        (Response(torch.zeros(3, dtype=torch.float64)), "`softness` has the shape"),
        (Response(None, torch.zeros(5, dtype=torch.float64)), "`polarizability` has the shape"),
        (Response(-response.softness), "`softness` of atom 0 is -.*must not be negative"),
        (Response(torch.full((4,), torch.nan, dtype=torch.float64)), "must be finite"),
        (Response(None, -response.polarizability), "`polarizability` of atom 0 .*must not be negative"),
        (Response(None, torch.ones(4, 3, 3, dtype=torch.float64).triu()), "must be symmetric"),
        (Response(None, torch.diag(torch.tensor([1.0, 1.0, -0.1]).double()).expand(4, 3, 3)), "semidefinite"),
    ):
        with pytest.raises(ValueError, match=message):
            solve(batch, multipoles, bad)
    with pytest.raises(ValueError, match="`external_field` has the shape"):
        solve(batch, multipoles, response, external_field=FIELD.expand(2, 3))
    with pytest.raises(ValueError, match="`total_charge` has the shape"):
        solve(batch, multipoles, response, total_charge=torch.zeros(2))
    again = LinearResponse.from_config(LinearResponse(Coulomb(0.8), mode="scf", tolerance=1e-6).config())
    assert again.config() == LinearResponse(Coulomb(0.8), mode="scf", tolerance=1e-6).config()
