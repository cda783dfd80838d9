"""The drop-in for `les` is what the published equations say; the original cannot be had here."""

from __future__ import annotations

import math
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from farfield.compat.les import Les, install, pickles
from farfield.units import COULOMB_CONSTANT, INVERSE_TWO_EPSILON_0

CELL = torch.tensor([[6.2, 0.0, 0.4], [0.9, -5.8, 0.1], [-0.5, 0.3, 7.1]], dtype=torch.float64)
ZERO = torch.zeros(3, 3, dtype=torch.float64)


def traceless(matrix: Tensor) -> Tensor:
    matrix = 0.5 * (matrix + matrix.mT)
    return matrix - matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * torch.eye(3, dtype=matrix.dtype)


@pytest.fixture
def atoms() -> dict[str, Tensor]:
    """Two systems of four and five atoms with all multipoles."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "positions": 1.7 * draw(9, 3),
        "latent_charges": draw(9),
        "latent_dipoles": 0.3 * draw(9, 3),
        "latent_quads": 0.3 * traceless(draw(9, 3, 3)),
        "batch": torch.tensor([0] * 4 + [1] * 5),
    }


def only(atoms: dict[str, Tensor], system: int) -> dict[str, Tensor]:
    keep = atoms["batch"] == system
    return {name: value[keep] for name, value in atoms.items() if name != "batch"}


def equation(one: dict[str, Tensor], cell: Tensor, sigma: float, dl: float, factor: float, keep: bool) -> Tensor:
    """Energy of one cell by the published equation: the whole sphere of k, complex numbers, nothing left out."""
    n = torch.arange(-8, 9, dtype=torch.float64)
    k = torch.cartesian_prod(n, n, n) @ (2 * math.pi * torch.linalg.inv(cell).T)
    k = k[(k.norm(dim=1) <= 2 * math.pi / dl) & (k.norm(dim=1) > 0)]
    form = one["latent_charges"] + 1j * (k @ one["latent_dipoles"].T)
    form = form - 0.5 * torch.einsum("kx,axy,ky->ka", k, one["latent_quads"], k)
    structure = (form * torch.exp(1j * (k @ one["positions"].T))).sum(1)
    squares = k.square().sum(1)
    total = (torch.exp(-0.5 * sigma**2 * squares) / squares * structure.abs() ** 2).sum()
    energy = factor / torch.linalg.det(cell).abs() * total
    return energy if keep else energy - self_energy(one, sigma, factor / (2 * math.pi))


def self_energy(one: dict[str, Tensor], sigma: float, constant: float) -> Tensor:
    return (
        constant
        / math.sqrt(2 * math.pi)
        * (
            one["latent_charges"].square().sum() / sigma
            + one["latent_dipoles"].square().sum() / (3 * sigma**3)
            + one["latent_quads"].square().sum() / (10 * sigma**5)
        )
    )


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("factor", [INVERSE_TWO_EPSILON_0, 90.0474])
def test_the_published_sum_is_the_equation(atoms, keep, factor) -> None:
    options = {"truncation": "published", "sigma": 0.9, "dl": 1.8, "norm_factor": factor}
    les = Les({**options, "remove_self_interaction": not keep})
    cells = torch.stack([CELL, 1.2 * CELL])
    found = les(cell=cells, **atoms)["E_lr"]
    for system, cell in enumerate(cells):
        expected = equation(only(atoms, system), cell, 0.9, 1.8, factor, keep)
        torch.testing.assert_close(found[system], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("keep", [True, False])
def test_fine_resolution_and_the_solver_agree_in_mixed_batches(atoms, keep) -> None:
    """Both kinds of systems, and a cell so large that it is nearly open but for the dipole of the whole."""
    cells, options = torch.stack([CELL, ZERO]), {"remove_self_interaction": not keep}
    smooth = Les({**options, "accuracy": 1e-8})(cell=cells, **atoms)["E_lr"]
    published = Les({**options, "truncation": "published", "dl": 0.9})(cell=cells, **atoms)["E_lr"]
    torch.testing.assert_close(published, smooth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("truncation", ["smooth", "published"])
def test_response_is_one_shot(atoms, truncation) -> None:
    """−½Σκφ² − ½ΣE·α·(E + e_ext) of potential and field that derivatives of the permanent energy give."""
    les = Les({"truncation": truncation, "accuracy": 1e-9})
    cells = torch.stack([CELL, ZERO])
    generator = torch.Generator().manual_seed(3)
    kappa = 0.01 * torch.rand(9, generator=generator, dtype=torch.float64)
    root = 0.2 * torch.randn(9, 3, 3, generator=generator, dtype=torch.float64)
    alpha, field = root @ root.mT, torch.tensor([0.3, -0.1, 0.2], dtype=torch.float64)
    leaves = {name: atoms[name].clone().requires_grad_() for name in ("latent_charges", "latent_dipoles")}
    permanent = les(cell=cells, **{**atoms, **leaves})["E_lr"]
    potential, slope = torch.autograd.grad(permanent.sum(), list(leaves.values()))
    found = les(cell=cells, latent_kappas=kappa, latent_alphas=alpha, e_ext=field, **atoms)
    induced = (alpha @ (field - slope)[:, :, None])[:, :, 0]
    extra = -0.5 * kappa * potential**2 + 0.5 * (slope * induced).sum(1)
    expected = permanent.detach() + torch.zeros(2).double().index_add(0, atoms["batch"], extra)
    torch.testing.assert_close(found["E_lr"], expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(
        found["latent_charges"], atoms["latent_charges"] - kappa * potential, rtol=1e-7, atol=1e-7
    )
    torch.testing.assert_close(found["latent_dipoles"], atoms["latent_dipoles"] + induced, rtol=1e-7, atol=1e-7)
    isotropic = les(cell=cells, latent_alphas=alpha[:, 0, 0], e_ext=field, **atoms)
    matrix = les(cell=cells, latent_alphas=alpha[:, :1, :1] * torch.eye(3), e_ext=field, **atoms)
    torch.testing.assert_close(isotropic["E_lr"], matrix["E_lr"])


def test_channels_of_charges_add_up(atoms) -> None:
    les, cells = Les(), torch.stack([CELL, ZERO])
    plain = {name: atoms[name] for name in ("positions", "batch")}
    charges = torch.stack([atoms["latent_charges"], atoms["latent_dipoles"][:, 0]], dim=1)
    together = les(cell=cells, latent_charges=charges, **plain)["E_lr"]
    apart = [les(cell=cells, latent_charges=part, **plain)["E_lr"] for part in charges.unbind(1)]
    torch.testing.assert_close(together, apart[0] + apart[1])
    with pytest.raises(ValueError, match="several channels"):
        les(cell=cells, latent_charges=charges, latent_dipoles=atoms["latent_dipoles"], **plain)


@pytest.mark.parametrize("cell", [CELL, ZERO], ids=["periodic", "open"])
def test_born_charges_are_the_published_formula(cell) -> None:
    """One harmonic along each cell vector, or the plain moment of an open system, by differences."""
    generator = torch.Generator().manual_seed(1)
    positions = 2.0 * torch.randn(5, 3, generator=generator, dtype=torch.float64)

    def multipoles(r: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.sin(r @ torch.tensor([0.3, 0.8, -0.4]).double())
        return inside + inside.roll(1) ** 2, torch.cos(r) * inside.roll(2)[:, None]

    def moments(r: Tensor) -> tuple[Tensor, Tensor]:
        charges, dipoles = multipoles(r)
        charges = charges - charges.mean()
        if not cell.any():
            return (charges[:, None] * r).sum(0), dipoles.sum(0)
        phases = torch.exp(2j * math.pi * (r @ torch.linalg.inv(cell)))
        return (charges[:, None] * phases).sum(0) / (2j * math.pi), dipoles.sum(0)

    step = 1e-5
    by_charges, by_dipoles = [], []
    for i in range(5):
        for b in range(3):
            move = torch.zeros(5, 3, dtype=torch.float64)
            move[i, b] = step
            ahead, behind = moments(positions + move), moments(positions - move)
            slopes = [(x - y) / (2 * step) for x, y in zip(ahead, behind, strict=True)]
            if cell.any():
                back = torch.exp(-2j * math.pi * (positions[i] @ torch.linalg.inv(cell)))
                slopes[0] = (back * slopes[0]).real @ cell
            by_charges.append(slopes[0])
            by_dipoles.append(slopes[1])
    expected = [torch.stack(part).reshape(5, 3, 3).mT for part in (by_charges, by_dipoles)]
    leaf = positions.clone().requires_grad_()
    charges, dipoles = multipoles(leaf)
    les = Les({"epsilon_factor": 4.0})
    given = {"latent_charges": charges, "compute_energy": False, "compute_bec": True}
    found = les(leaf, cell[None], latent_dipoles=dipoles, **given)["BEC"]
    torch.testing.assert_close(found, 2.0 * torch.stack(expected, dim=1), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(les(leaf, cell[None], **given)["BEC"], found[:, 0])
    torch.testing.assert_close(les(leaf, cell[None], bec_output_index=1, **given)["BEC"], found[:, 0, 1])


def test_distant_ions_and_derivatives() -> None:
    positions = torch.tensor([[0.0, 0, 0], [0, 0, 50.0]], dtype=torch.float64, requires_grad=True)
    charges = torch.tensor([1.0, -1.0], dtype=torch.float64)
    energy = Les()(positions, torch.zeros(1, 3, 3).double(), latent_charges=charges)["E_lr"]
    assert energy.item() == pytest.approx(-COULOMB_CONSTANT / 50.0)
    (slope,) = torch.autograd.grad(energy.sum(), positions)
    assert slope[1, 2].item() == pytest.approx(COULOMB_CONSTANT / 2500.0)


def test_charges_from_features_and_options_of_callers(tmp_path: Path) -> None:
    (tmp_path / "les.yaml").write_text("use_atomwise: true\ncompute_bec: true\nn_hidden: [8, 4]\n")
    les = Les(str(tmp_path / "les.yaml"))
    out = les(torch.randn(4, 3), torch.zeros(1, 3, 3), desc=torch.randn(4, 6))
    assert out["latent_charges"].shape == (4, 1) or out["latent_charges"].shape == (4,)
    assert out["E_lr"].dtype == torch.float32
    with pytest.raises(ValueError, match="desc"):
        Les()(torch.randn(4, 3))
    with pytest.raises(ValueError, match="use_atomic_alpha"):
        Les({"use_atomic_alpha": True})
    with pytest.raises(ValueError, match=r"compute_field.*farfield\.Coulomb"):
        les(torch.randn(4, 3), desc=torch.randn(4, 6), compute_field=True)
    with pytest.raises(ValueError, match="truncation"):
        Les({"truncation": "none"})


def test_fixed_charges_are_added_to_those_that_are_given(atoms) -> None:
    numbers = torch.tensor([1, 8, 1, 8, 1, 1, 8, 1, 8])
    options = {"use_fixed_atomic_charges": True, "fixed_atomic_charges": {1: 1.0, 8: -2.0}}
    les, cells = Les({**options, "fixed_atomic_charges_scaling_factor": 0.25}), torch.stack([CELL, ZERO])
    found = les(cell=cells, atomic_numbers=numbers, **atoms)
    whole = atoms["latent_charges"] + 0.25 * torch.where(numbers == 1, 1.0, -2.0).double()
    torch.testing.assert_close(found["latent_charges"], whole)
    torch.testing.assert_close(found["E_lr"], Les()(cell=cells, **{**atoms, "latent_charges": whole})["E_lr"])
    assert Les(options).fixed_charges == {1: 0.5, 8: -1.0}  # half of them where no factor is given
    with pytest.raises(ValueError, match="atomic_numbers"):
        les(cell=cells, **atoms)
    with pytest.raises(ValueError, match=r"none of the elements \[6\]"):
        les(cell=cells, atomic_numbers=torch.full((9,), 6), **atoms)
    with pytest.raises(ValueError, match="fixed_atomic_charges"):
        Les({"use_fixed_atomic_charges": True})


# ---- pickles of the original, imitated: these classes have its names and the attributes that its interface tells -----


@pytest.fixture
def reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Pickle a `les.les.Les` that a function has changed, where there is such a class; load it under `install`."""

    def part(path: str, name: str, **attributes: Any) -> nn.Module:
        cls = type(name, (nn.Module,), {"__module__": path})
        setattr(sys.modules[path], name, cls)
        made = cls()
        for key, value in attributes.items():
            setattr(made, key, value)
        return made

    def made_up() -> nn.Module:
        les = part(
            "les.les", "Les", sigma=0.9, dl=1.8, remove_self_interaction=True, remove_mean=True, epsilon_factor=1.0,
            use_atomwise=True, use_fixed_atomic_charges=False, use_atomic_alpha=False, use_epsilon_r_scaling=True,
            fixed_atomic_charges_scaling_factor=0.5,
        )  # fmt: skip
        les.atomwise = part("les.module.atomwise", "Atomwise", output_scaling_factor=0.1, outnet=network())
        numbers = {"sigma": 0.9, "dl": 1.8, "remove_self_interaction": False, "norm_factor": 90.0474}
        les.ewald = part("les.module.ewald", "Ewald", **numbers)
        les.bec = part("les.module.bec", "BEC", remove_mean=False, epsilon_factor=4.0, normalization_factor=2.0)
        return les

    def run(change: Callable[[nn.Module], None] = lambda les: None) -> Les:
        names = ["les", *pickles.modules()]
        with monkeypatch.context() as there:
            for name in names:
                there.setitem(sys.modules, name, types.ModuleType(name))
            les = made_up()
            change(les)
            torch.save(les, tmp_path / "les.pt")
        with monkeypatch.context() as here:
            for name in names:  # so that they are gone afterwards
                here.setitem(sys.modules, name, sys.modules["farfield.compat.les"])
            install()
            return torch.load(tmp_path / "les.pt", weights_only=False)

    return run


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4), nn.SiLU(), nn.Linear(4, 1)).double()


def test_a_pickle_of_the_original_loads_with_its_numbers(atoms, reload) -> None:
    """What its parts say goes before what it says; the sum is the equation, the charges those of its network."""
    les = reload()
    assert (les.remove_mean, les.epsilon_factor) == (False, 4.0)
    desc = torch.randn(9, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plain = {name: atoms[name] for name in ("positions", "batch")}
    found = les(cell=torch.stack([CELL, 1.2 * CELL]), desc=desc, **plain)
    charges = 0.1 * network()(desc)[:, 0]
    torch.testing.assert_close(found["latent_charges"].reshape(9), charges)
    zero = {"latent_dipoles": torch.zeros(9, 3).double(), "latent_quads": torch.zeros(9, 3, 3).double()}
    for system, cell in enumerate((CELL, 1.2 * CELL)):
        one = only({**atoms, **zero, "latent_charges": charges}, system)
        expected = equation(one, cell, 0.9, 1.8, 90.0474, keep=True)
        torch.testing.assert_close(found["E_lr"][system], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda les: setattr(les, "use_atomic_alpha", True), "use_atomic_alpha"),
        (lambda les: setattr(les, "use_fixed_atomic_charges", True), "no table"),
        (lambda les: delattr(les.ewald, "norm_factor"), "norm_factor"),
        (lambda les: setattr(les.ewald, "k_sq_max", 1.0), "k_sq_max"),
    ],
    ids=["alpha", "charges", "constant", "cutoff"],
)
def test_a_pickle_that_does_not_tell_its_numbers_is_refused(reload, change, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        reload(change)


def test_a_network_that_was_never_built_is_said_to_be_missing(reload) -> None:
    les = reload(lambda les: setattr(les.atomwise, "outnet", None))
    with pytest.raises(ValueError, match="never built"):
        les(torch.zeros(2, 3).double(), desc=torch.zeros(2, 6).double())


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ([{"H": 1.0, 8: -2.0}], None),
        ([[0.0, 1.0, *[0.0] * 6, -2.0, *[0.0] * 90]], None),
        ([[1.0, 0.0, -2.0]], "table by atomic number"),
        ([{1: 1.0}, {1: 2.0}], "2 tables"),
    ],
)
def test_tables_of_charges_are_read_where_they_are_clear(tables: list[Any], says: str | None) -> None:
    part = pickles.FixedCharges()
    for number, table in enumerate(tables):
        setattr(part, f"table{number}", table)
    numbers = {"sigma": 1.0, "dl": 2.0, "norm_factor": 90.0, "remove_self_interaction": True}
    state = {"ewald": numbers, "fixed": part, "use_fixed_atomic_charges": True}
    state |= {"fixed_atomic_charges_scaling_factor": 0.5}
    if says is not None:
        with pytest.raises(ValueError, match=says):
            pickles.options_of(state)
        return
    found = pickles.options_of(state)
    assert (found["fixed_atomic_charges"][1], found["fixed_atomic_charges"][8]) == (1.0, -2.0)


def test_another_program_finds_it_under_the_name_of_the_original(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text("import sys\nfrom les import Les\nprint(Les.__module__, sys.argv[1:], __name__)\n")
    command = [sys.executable, "-m", "farfield.compat.les"]
    run = subprocess.run([*command, str(script), "--model", "X"], check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["farfield.compat.les", "['--model',", "'X']", "__main__"]
    wrong = subprocess.run([*command, "no_such_command"], check=False, capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "no_such_command" in wrong.stderr
