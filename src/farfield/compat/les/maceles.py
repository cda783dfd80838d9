"""Forces and stress of mace-torch's MACELES that are derivatives of its energy.

mace-torch 0.3.16 strains the edges of its graph but hands its long range the positions and cell from before: the stress
that it gives lacks the long range. Here positions, cell and shifts are strained first, and the model is asked for
nothing but the energy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def forces_and_stress(model: nn.Module, data: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Energy, forces and stress of a MACELES, or any model of mace's interface.

    Parameters
    ----------
    model
        The model.
    data
        Its input, with ``unit_shifts``; not changed.
    **options
        Passed to the model, such as ``compute_bec=True``.

    Returns
    -------
    dict
        What the model gives, with ``energy`` (systems,) (eV), ``forces`` (atoms, 3) (eV/Å) and ``stress`` (systems, 3,
        3) (eV/Å³, tensile positive; NaN without a volume) that belong together.
    """
    cell = data["cell"].reshape(-1, 3, 3)
    positions = data["positions"].detach().clone().requires_grad_()
    strain = torch.zeros_like(cell).requires_grad_()
    deform = torch.eye(3, dtype=cell.dtype, device=cell.device) + 0.5 * (strain + strain.mT)
    cells = cell.detach() @ deform
    sender = data["edge_index"][0]
    strained = {
        **data,
        "positions": (positions[:, None, :] @ deform[data["batch"]])[:, 0],
        "cell": cells.reshape(-1, 3),
        "shifts": (data["unit_shifts"].to(cell.dtype)[:, None, :] @ cells[data["batch"][sender]])[:, 0],
    }
    out: dict[str, Tensor] = dict(model(strained, compute_force=False, **options))
    slopes = torch.autograd.grad(out["energy"].sum(), (positions, strain))
    volume = torch.linalg.det(cell.detach()).abs()[:, None, None]
    stress = torch.where(volume > 0, slopes[1] / volume, torch.nan)
    return {**out, "energy": out["energy"].detach(), "forces": -slopes[0], "stress": stress}
