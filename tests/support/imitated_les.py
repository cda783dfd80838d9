"""Whole-module checkpoints like those of MACELES with the original ``les``, and what they should give.

Run as ``python imitated_les.py FOLDER``, in a process of its own. The original cannot be had here: these files imitate
it. The modules ``les.*`` are made up here and have nothing but the names and attributes that the interface says the
original's have; a real file may differ. What is expected is written out from the published equations with mace-torch's
own charges, sharing no code with farfield's sums.
"""

from __future__ import annotations

import math
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from mace_inputs import ELEMENTS, inputs_of
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import find_neighbors
from farfield.atoms.structures import from_ase
from farfield.hosts.mace_models import importing

#: Variants of the checkpoint: what stands in its Ewald and BEC, and whether it comes from a fork of mace of 2025.
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {"norm_factor": 90.0474, "sigma": 1.0, "dl": 2.0, "keep": True, "mean": True, "old": True},
    "newer": {"norm_factor": 90.4756, "sigma": 1.2, "dl": 1.7, "keep": False, "mean": False, "epsilon": 2.0},
    "fixed": {"norm_factor": 90.4756, "sigma": 0.9, "dl": 2.2, "keep": False, "mean": True, "fixed": 0.5},
}
#: Made up, by atomic number from 0 on.
TABLE = [0.0, 1.0, *[0.0] * 4, 0.4, 0.0, -2.0, *[0.0] * 86]


def structures() -> list[Atoms]:
    """A triclinic cell, a left-handed one, one with waves on the cutoff itself, and a molecule in a cell of no use."""
    generator = torch.Generator().manual_seed(4)
    numbers = [1, 6, 8, 1, 1, 6]
    fractions = torch.rand(4, 6, 3, generator=generator, dtype=torch.float64).numpy()
    cells = [
        [[7.1, 0.0, 0.3], [1.0, 6.5, 0.2], [-0.4, 0.5, 8.0]],
        [[6.9, 0.0, 0.0], [0.0, 7.4, 0.0], [0.6, 0.0, -6.6]],
        [[8.0, 0.0, 0.0], [0.0, 8.0, 0.0], [0.0, 0.0, 8.0]],
        [[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]],
    ]
    return [
        Atoms(numbers, cell=cell, scaled_positions=part, pbc=number < 3)
        for number, (cell, part) in enumerate(zip(cells, fractions, strict=True))
    ]


def made_up_les() -> dict[str, type[nn.Module]]:
    """Put modules ``les.*`` with classes of the original's names where pickles find them; return the classes."""
    classes: dict[str, type[nn.Module]] = {}
    for path, name in (
        ("les.les", "Les"),
        ("les.module.atomwise", "Atomwise"),
        ("les.module.ewald", "Ewald"),
        ("les.module.bec", "BEC"),
        ("les.module.fixedcharges", "FixedCharges"),
        ("les.module.atomicalpha", "AtomicAlpha"),
    ):
        cls = type(name, (nn.Module,), {"__module__": path})
        if name == "Les":
            cls.__init__ = lambda self, les_arguments=None: nn.Module.__init__(self)  # type: ignore[misc]
            cls.forward = lambda self, **given: {"E_lr": None, "BEC": None}
        classes[name] = cls
        parts = path.split(".")
        for depth in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
        setattr(sys.modules[path], name, cls)
    sys.modules["les"].Les = classes["Les"]  # type: ignore[attr-defined]
    return classes


def les_of(classes: dict[str, type[nn.Module]], variant: dict[str, Any]) -> nn.Module:
    """A pickle's ``Les`` with the attributes that the interface names."""
    sigma, dl = variant["sigma"], variant["dl"]

    def part(name: str, **attributes: Any) -> nn.Module:
        made = classes[name]()
        for key, value in attributes.items():
            setattr(made, key, value)
        return made

    shared = {"n_layers": 3, "n_hidden": [32, 16], "add_linear_nn": True, "output_scaling_factor": 0.1}
    les = part(
        "Les", sigma=sigma, dl=dl, remove_self_interaction=not variant["keep"], remove_mean=variant["mean"],
        epsilon_factor=variant.get("epsilon", 1.0), use_atomwise=False, **shared,
    )  # fmt: skip
    les.atomwise = part("Atomwise", n_in=None, n_out=1, activation=nn.functional.silu, bias=True, outnet=None, **shared)
    les.ewald = part(
        "Ewald", dl=dl, sigma=sigma, sigma_sq_half=sigma**2 / 2.0, twopi=2.0 * math.pi, twopi_sq=(2.0 * math.pi) ** 2,
        remove_self_interaction=not variant["keep"], norm_factor=variant["norm_factor"],
        k_sq_max=(2.0 * math.pi / dl) ** 2,
    )  # fmt: skip
    epsilon = variant.get("epsilon", 1.0)
    les.bec = part("BEC", remove_mean=variant["mean"], epsilon_factor=epsilon, normalization_factor=epsilon**0.5)
    if not variant.get("old"):
        les.use_fixed_atomic_charges, les.use_atomic_alpha = "fixed" in variant, False
        les.fixed_atomic_charges_scaling_factor = variant.get("fixed", 0.5)
        les.use_epsilon_r_scaling = les.ewald.use_epsilon_r_scaling = "epsilon" in variant
    if "fixed" in variant:
        les.fixedcharges = part("FixedCharges")
        les.fixedcharges.register_buffer("table", torch.tensor(TABLE, dtype=torch.float64))
    return les


def maceles() -> Any:
    """A small MACELES of two layers whose charges are large enough to matter."""
    import mace.modules as modules
    import numpy as np
    from e3nn import o3
    from mace.modules.extensions import MACELES

    torch.manual_seed(2)
    model = MACELES(
        r_max=3.0, num_bessel=4, num_polynomial_cutoff=6, max_ell=1, num_interactions=2, num_elements=3,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        hidden_irreps=o3.Irreps("5x0e+5x1o"), MLP_irreps=o3.Irreps("4x0e"), correlation=1, radial_MLP=[8],
        atomic_energies=np.linspace(-30, -5, 3), avg_num_neighbors=4.5, atomic_numbers=ELEMENTS,
        gate=nn.functional.silu, atomic_inter_scale=0.7, atomic_inter_shift=0.3,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.les_readouts.parameters():
            parameter.mul_(6.0)
    return model


def save_old(model: Any, path: Path) -> None:
    """Save as a fork of 2025 would have: under another name, without flags that came later."""
    import mace.modules.models as models

    cls = type(model)
    home = cls.__module__
    models.MACELES, cls.__module__ = cls, models.__name__
    try:
        for module in model.modules():
            for flag in ("compute_bec", "bec_output_index", "use_reduced_cg", "use_so3", "use_agnostic_product",
                         "use_last_readout_only", "use_edge_irreps_first", "edge_irreps", "lammps_mliap",
                         "apply_cutoff", "cueq_config", "oeq_config"):  # fmt: skip
                vars(module).pop(flag, None)
        torch.save(model, path)
    finally:
        del models.MACELES
        cls.__module__ = home


# ---- what is expected ------------------------------------------------------------------------------------------------


def short_range(model: Any, batch: AtomicBatch) -> tuple[Tensor, Tensor]:
    """Energy (1,) without the long range, and latent charges, by mace-torch."""
    out = model(inputs_of(batch), training=True, compute_force=False)
    return out["energy"], out["latent_charges"]


def long_range(q: Tensor, r: Tensor, cell: Tensor, periodic: bool, variant: dict[str, Any]) -> Tensor:
    """E = c/V Σ_{0<|k|≤2π/dl} e^{−σ²k²/2}/k² |Σ q e^{ikr}|², or ½ Σ_{i≠j} k_e q q erf(r/√2σ)/r; self energies apart."""
    sigma, c = variant["sigma"], variant["norm_factor"]
    own = c / (2 * math.pi) / math.sqrt(2 * math.pi) * q.square().sum() / sigma
    if not periodic:
        i, j = torch.triu_indices(len(q), len(q), 1)
        d = (r[i] - r[j]).norm(dim=1)
        pairs = c / (2 * math.pi) * (q[i] * q[j] * torch.erf(d / (math.sqrt(2) * sigma)) / d).sum()
        return pairs + own if variant["keep"] else pairs
    n = torch.arange(-9, 10, dtype=torch.float64)
    k = torch.cartesian_prod(n, n, n) @ (2 * math.pi * torch.linalg.inv(cell).T)
    lengths = k.norm(dim=1)
    k = k[(lengths <= 2 * math.pi / variant["dl"] * (1 + 1e-12)) & (lengths > 0)]
    k2 = k.square().sum(1)
    s = (q * torch.exp(1j * (k @ r.T))).sum(1)
    total = c / torch.linalg.det(cell).abs() * (torch.exp(-(sigma**2) * k2 / 2) / k2 * (s.real**2 + s.imag**2)).sum()
    return total if variant["keep"] else total - own


def born(q: Tensor, r: Tensor, cell: Tensor, periodic: bool, variant: dict[str, Any]) -> Tensor:
    """Re[e^{−iθ_i} ∂/∂r_i Σ_j q_j e^{iθ_j}/(2πi)]·a along each cell vector, or ∂(Σ q r)/∂r; times √ε."""
    if variant["mean"]:
        q = q - q.mean()

    def slope(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, r, retain_graph=True)[0]

    if not periodic:
        found = torch.stack([slope((q * r[:, a]).sum()) for a in range(3)], dim=1)
    else:
        theta = 2 * math.pi * (r @ torch.linalg.inv(cell))
        found = torch.zeros(len(q), 3, 3, dtype=torch.float64)
        for axis in range(3):
            moment = (q * torch.exp(1j * theta[:, axis])).sum() / (2j * math.pi)
            d = slope(moment.real) + 1j * slope(moment.imag)
            back = torch.exp(-1j * theta[:, axis].detach())[:, None]
            found = found + cell[axis][None, :, None] * (back * d).real[:, None, :]
    return found * math.sqrt(variant.get("epsilon", 1.0))


def expected(model: Any, variant: dict[str, Any]) -> dict[str, Tensor]:
    """Energies, forces, charges and Born charges of all structures."""
    found: dict[str, list[Tensor]] = {"energy": [], "forces": [], "charges": [], "born_charges": []}
    for atoms in structures():
        batch = find_neighbors(from_ase([atoms], dtype=torch.float64), 3.0)
        r = batch.positions.requires_grad_()
        energy, q = short_range(model, batch.replace(positions=r))
        if "fixed" in variant:
            q = q + variant["fixed"] * torch.tensor(TABLE, dtype=torch.float64)[batch.numbers]
        periodic = bool(batch.pbc.all())
        total = energy.sum() + long_range(q, r, batch.cell[0], periodic, variant)
        found["forces"].append(-torch.autograd.grad(total, r, retain_graph=True)[0])
        found["born_charges"].append(born(q, r, batch.cell[0], periodic, variant).detach())
        found["energy"].append(total.detach()[None])
        found["charges"].append(q.detach() * math.sqrt(variant.get("epsilon", 1.0)))
    return {name: torch.cat(parts) for name, parts in found.items()}


def main(folder: Path) -> None:
    """Write NAME.model and NAME.pt, what it should give, of all variants."""
    classes = made_up_les()
    with importing(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = maceles()
        for name, variant in VARIANTS.items():
            torch.save(expected(model, variant), folder / f"{name}.pt")
        # the old one last: it loses flags
        for name, variant in reversed(VARIANTS.items()):
            model.les = les_of(classes, variant)
            if variant.get("old"):
                save_old(model, folder / f"{name}.model")
            else:
                torch.save(model, folder / f"{name}.model")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
