"""Born effective charges and forces in an electric field, by vector–Jacobian products on one retained graph.

Along open directions Z*_{i,ab} = ∂P_a/∂r_ib with P of `polarization`. Along periodic axes

    Z*_i = q̃_i·1 + Σ_j d_ij ⊗ ∂q_j/∂r_i + Σ_j ∂u_j/∂r_i ,   d_ij ≈ Σ_axes (cell vector) Σ_m c_m sin(2πm s_ij)/(2πm),

s_ij the difference of fractional coordinates. Since sin(θ_j − θ_i) = sin θ_j cos θ_i − cos θ_j sin θ_i, each axis and
harmonic takes two vector–Jacobian products, with weights sin θ_j and cos θ_j, for all atoms at once; an open direction
takes one, with the coordinate itself as weight.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.frames import completed_cells, open_projectors, perpendicular_heights
from farfield.atoms.replicas import replicate
from farfield.electrostatics.multipoles import Multipoles
from farfield.observables.harmonics import fitted_coefficients, flat_coefficients
from farfield.observables.moments import MultipoleModel, Scale, balanced_charges, physical, with_neighbors

Mean = Literal["detached", "attached", "kept"]

#: Harmonics used where none are asked for.
DEFAULT_HARMONICS = 6

#: Share of the Born charges that may come from where displacements are ambiguous, before a warning says so.
AMBIGUOUS_SHARE = 0.01

#: With ``exact``: cells are repeated until the receptive radius is no more than this share of their heights, where so
#: many harmonics follow a displacement to 4·10⁻⁵ of the radius.
EXACT_REACH, EXACT_HARMONICS = 0.3, 12


def born_charges(
    model: MultipoleModel,
    batch: AtomicBatch,
    *,
    harmonics: int = DEFAULT_HARMONICS,
    fit: Literal["flat", "radius"] = "radius",
    mean: Mean = "detached",
    scale: Scale = 1.0,
    sum_rule: bool = False,
    exact: bool = False,
    create_graph: bool = False,
) -> Float[Tensor, "atoms 3 3"]:
    """Born effective charges, first index polarization, second displacement.

    Open systems need three vector–Jacobian products for the whole batch; periodic ones 6 ``harmonics`` (and three more
    where the model has atomic dipoles). Systems with any periodicity may be mixed.

    Parameters
    ----------
    model, batch, scale
        As in `farfield.observables.dipole`.
    harmonics
        Number of lattice harmonics that stand for the displacement along periodic axes; 1 is the published formula.
    fit
        ``"radius"``: coefficients fitted on the model's receptive radius; ``"flat"``: the maximally flat combination,
        which needs about twice as many harmonics. With one harmonic both are the published formula.
    mean
        Whether the residual charge (Σq − Q_tot)/N of a periodic system is differentiated. ``"detached"``, because its
        derivative spreads over the whole cell, where displacements have no meaning; ``"attached"`` with one harmonic
        reproduces published numbers. Along open directions it always is: there Z* is the derivative of P. ``"kept"``:
        no residual is taken off at all.
    sum_rule
        Shift Z* evenly so that they add up to the total charge (see `impose_sum_rule`). Off by default: how far the sum
        is from it tells about the model.
    exact
        Repeat cells along periodic axes as far as the receptive radius asks for, so that no displacement is ambiguous,
        and give the Z* of the atoms of one copy: those of an infinite supercell, to some 10⁻⁵ and at the cost of the
        larger cells. At least `EXACT_HARMONICS` are used there.
    create_graph
        Keep the graph, to train on Z*; phases stay constants.

    Returns
    -------
    Tensor
        Z* (e), shape (atoms, 3, 3), in the dtype of the positions.

    Raises
    ------
    ValueError
        If an option is not one of those above.

    Warns
    -----
    UserWarning
        If charges respond to atoms half a periodic cell away, where displacements are ambiguous, by more than
        `AMBIGUOUS_SHARE` of the Born charges. That needs a receptive radius of more than half of the cell's smallest
        perpendicular height, but with message passing such a radius hardly matters until it is much longer; beyond the
        whole height there is always a warning.
    """
    directions = torch.eye(3, dtype=batch.positions.dtype, device=batch.positions.device)
    directions = directions[:, None, :].expand(3, batch.n_systems, 3)
    rows = _contracted(model, batch, directions, harmonics, fit, mean, scale, exact, create_graph)
    born = rows.transpose(0, 1)
    return impose_sum_rule(batch, born) if sum_rule else born


def forces_in_field(
    model: MultipoleModel,
    batch: AtomicBatch,
    field: Float[Tensor, "systems 3"] | Float[Tensor, "3"],
    *,
    harmonics: int = DEFAULT_HARMONICS,
    fit: Literal["flat", "radius"] = "radius",
    mean: Mean = "detached",
    scale: Scale = 1.0,
    exact: bool = False,
    create_graph: bool = False,
) -> Float[Tensor, "atoms 3"]:
    """Give the forces of a uniform field through the Born charges, f_ib = Σ_a F_a Z*_{i,ab}, without building Z*.

    Parameters
    ----------
    model, batch, harmonics, fit, mean, scale, exact, create_graph
        As in `born_charges`.
    field
        Electric field (V/Å), one for all systems or one each: applied along open directions, macroscopic along periodic
        ones.

    Returns
    -------
    Tensor
        eV/Å, shape (atoms, 3): to be added to the forces without a field.

    Raises
    ------
    ValueError
        If ``field`` has the wrong shape or is not finite, or as `born_charges`.
    """
    field = torch.as_tensor(field).to(batch.positions)
    if field.shape not in ((3,), (batch.n_systems, 3)):
        raise ValueError(f"`field` has shape {tuple(field.shape)} but must be (3,) or ({batch.n_systems}, 3), in V/Å")
    if not bool(torch.isfinite(field).all()):
        raise ValueError("`field` must be finite (V/Å)")
    directions = field.expand(batch.n_systems, 3)[None]
    return _contracted(model, batch, directions, harmonics, fit, mean, scale, exact, create_graph)[0]


def forces_on_periodic_charges(
    model: MultipoleModel,
    batch: AtomicBatch,
    *,
    harmonics: int = DEFAULT_HARMONICS,
    fit: Literal["flat", "radius"] = "radius",
    mean: Mean = "detached",
    scale: Scale = 1.0,
    exact: bool = False,
) -> Float[Tensor, "atoms 3"]:
    """Give the forces of ``batch.external_field`` that are derivatives of no energy (eV/Å), shape (atoms, 3).

    Those on charges along periodic directions, F·Z* with Z* of the charges alone. Those on dipoles, on charges along
    open directions and on all that is induced are derivatives of the energy in the field.

    Parameters
    ----------
    model, batch, harmonics, fit, mean, scale, exact
        As in `born_charges`; the batch has a field.

    Raises
    ------
    ValueError
        If the batch has no field.
    """
    if batch.external_field is None:
        raise ValueError("`batch.external_field` is None: set it (V/Å), or leave these forces out")
    field = batch.external_field.detach().double()
    field = field - torch.einsum("sab,sb->sa", open_projectors(batch).detach(), field)
    directions = field.to(batch.positions)[None]
    return _contracted(model, batch, directions, harmonics, fit, mean, scale, exact, False, charges_only=True)[0]


def impose_sum_rule(batch: AtomicBatch, born: Float[Tensor, "atoms 3 3"]) -> Float[Tensor, "atoms 3 3"]:
    """Shift Born charges evenly over each system's atoms so that Σ_i Z*_i = Q_tot·1 (0 where Q_tot is not known)."""
    excess = batch.sum_over_atoms(born)
    if batch.total_charge is not None:
        eye = torch.eye(3, dtype=excess.dtype, device=excess.device)
        excess = excess - batch.total_charge.to(excess)[:, None, None] * eye
    share = excess / batch.counts.clamp(min=1)[:, None, None]
    return born - share.to(born)[batch.system]


def _reach(model: MultipoleModel, batch: AtomicBatch) -> Float[Tensor, " systems"]:
    """Receptive radius over the smallest perpendicular height along periodic axes; 0 without any."""
    heights = perpendicular_heights(completed_cells(batch))
    return model.receptive_radius / torch.where(batch.pbc, heights, torch.inf).min(dim=1).values


def _warn_of_ambiguity(
    model: MultipoleModel,
    batch: AtomicBatch,
    result: Float[Tensor, "directions atoms 3"],
    beyond: Float[Tensor, "directions atoms 3"],
) -> None:
    """Warn where charges respond to atoms so far away that their displacement is ambiguous.

    A receptive radius of more than half of the cell alone says little: after layers of message passing hardly anything
    is left of the response at its end. ``beyond`` is what atoms near half of the cell contribute if put half a cell
    away (see `_periodic_axis`). It cannot tell an atom from its images, so that it is not asked where both are felt.
    """
    size, unsure = (batch.sum_over_atoms(t.double().square().sum(dim=(0, 2))).sqrt() for t in (result, beyond))
    reach = _reach(model, batch)
    matters = (reach > 0.5) & (unsure > AMBIGUOUS_SHARE * size) | (reach > 1.0)
    if not bool(matters.any()):
        return
    worst = int(torch.where(matters, reach, 0.0).argmax())
    radius, times = float(model.receptive_radius), float(reach[worst])
    warnings.warn(
        f"the model's receptive radius of {radius:.2f} Å is more than half of the smallest perpendicular height of "
        f"system {worst} ({radius / times:.2f} Å), and charges respond to atoms that far away: its Born charges are "
        f"approximate. Set `exact`, which repeats such cells ({math.ceil(times / EXACT_REACH)} times along its short "
        "axes), or compare a few values of `harmonics`.",
        UserWarning,
        stacklevel=4,
    )


def _contracted(
    model: MultipoleModel,
    batch: AtomicBatch,
    directions: Float[Tensor, "directions systems 3"],
    harmonics: int,
    fit: str,
    mean: str,
    scale: Scale,
    exact: bool,
    create_graph: bool,
    charges_only: bool = False,
) -> Float[Tensor, "directions atoms 3"]:
    """Σ_a D_a Z*_{i,ab} for some directions D of polarization of each system."""
    if exact:
        reach = model.receptive_radius / perpendicular_heights(completed_cells(batch))
        copies = torch.where(batch.pbc, torch.ceil(reach / EXACT_REACH).clamp(min=1), 1).long()
        cells, first = replicate(batch, copies)
        harmonics = max(harmonics, EXACT_HARMONICS)
        rows = _contracted(
            model, cells, directions, harmonics, fit, mean, scale, False, create_graph, charges_only=charges_only
        )
        return rows[:, first]
    if fit not in ("flat", "radius"):
        raise ValueError(f"`fit` is {fit!r} but must be one of 'flat', 'radius'")
    if mean not in get_args(Mean):
        raise ValueError(f"`mean` is {mean!r} but must be one of {', '.join(map(repr, get_args(Mean)))}")
    flat = flat_coefficients(harmonics)
    far = bool((_reach(model, batch) > 0.5).any())

    batch = with_neighbors(model, batch)
    if not batch.positions.requires_grad:
        batch = batch.replace(positions=batch.positions.detach().requires_grad_(True))
    positions, system = batch.positions, batch.system
    periodic, open_axes = batch.pbc, ~batch.pbc
    any_periodic, any_open = bool(periodic.any()), bool(open_axes.any())

    detached = any_periodic and mean == "detached"
    # Values are the same with and without the gradient of the total; where both gradients are needed, run twice.
    twice = detached and (any_open or create_graph)
    with torch.enable_grad():
        multipoles = physical(batch, model.multipoles(batch, detach_total=detached and not twice), scale)
        charges = multipoles.charges if mean == "kept" else balanced_charges(batch, multipoles.charges)
        if charges_only:
            multipoles = Multipoles(multipoles.charges)
        responding = multipoles.charges if detached else charges
        if twice:
            responding = physical(batch, model.multipoles(batch, detach_total=True), scale).charges

    frames = completed_cells(batch)
    fractions = torch.einsum("na,nac->nc", positions.detach().double(), torch.linalg.inv(frames)[system])
    # Components along the frame's vectors: D·r = Σ_c (D·frame_c) s_c.
    along = torch.einsum("dsa,sca->dsc", directions.double(), frames)

    def product(outputs: list[Tensor], weights: list[Tensor]) -> Tensor:
        return _vjp(outputs, weights, positions, create_graph)

    local = directions[:, system, :] * charges[None, :, None]
    result = local if create_graph else local.detach()
    beyond = torch.zeros_like(result)
    if any_open or multipoles.dipoles is not None:
        # Dipoles carry no phase: their derivative is the same with any periodicity.
        lengths = torch.where(open_axes[system], fractions, 0.0)
        outputs, heads = [charges], [torch.einsum("nc,dnc->dn", lengths, along[:, system, :]).to(positions)]
        if multipoles.dipoles is not None:
            outputs.append(multipoles.dipoles)
            heads.append(directions[:, system, :])
        terms = [product(outputs, [head[d] for head in heads]) for d in range(directions.shape[0])]
        result = result + torch.stack(terms)
    if any_periodic:
        if fit == "radius" and harmonics > 1:
            coefficients = fitted_coefficients(harmonics, model.receptive_radius / perpendicular_heights(frames))
        else:
            coefficients = flat.to(frames.device).expand(batch.n_systems, 3, harmonics)
        used = (along.abs().amax(dim=(0, 1)) > 0) & periodic.any(dim=0)
        for axis in torch.nonzero(used).flatten().tolist():
            inside = periodic[:, axis]
            term, edge = _periodic_axis(
                lambda weight: product([responding], [weight]),
                fractions[:, axis],
                torch.where(inside[:, None], coefficients[:, axis], 0.0)[system],
                inside[system],
                positions.dtype,
                far,
            )
            result = result + along[:, system, axis, None].to(positions) * term
            if edge is not None:
                beyond = beyond + 0.5 * along[:, system, axis, None].to(positions) * edge
    if far:
        _warn_of_ambiguity(model, batch, result.detach(), beyond)
    return result


def _periodic_axis(
    product: Callable[[Tensor], Tensor],
    fractions: Float[Tensor, " atoms"],
    coefficients: Float[Tensor, "atoms harmonics"],
    inside: Tensor,
    dtype: torch.dtype,
    far: bool,
) -> tuple[Float[Tensor, "atoms 3"], Float[Tensor, "atoms 3"] | None]:
    """Σ_j (∂q_j/∂r_i) Σ_m c_m sin(2πm (s_j − s_i))/(2πm) along one axis.

    With ``far`` also the response near half of the cell, from the same products: Σ_j (∂q_j/∂r_i) sin²ᴹ(π (s_j − s_i)),
    a window that is 1 there and narrower the more harmonics there are,
    sin²ᴹ(πs) = 4⁻ᴹ [C(2M, M) + 2 Σ_m (−1)ᵐ C(2M, M−m) cos(2πms)].
    """
    total: Tensor | None = None
    harmonics = coefficients.shape[1]
    edge: Tensor | None = None
    if far:
        edge = math.comb(2 * harmonics, harmonics) / 4**harmonics * product(inside.to(dtype)).detach()
    for m in range(1, harmonics + 1):
        phase = 2.0 * math.pi * m * fractions
        factor = coefficients[:, m - 1] / (2.0 * math.pi * m)
        sine, cosine = torch.sin(phase), torch.cos(phase)
        by_sine = product(torch.where(inside, sine, 0.0).to(dtype))
        by_cosine = product(torch.where(inside, cosine, 0.0).to(dtype))
        term = (factor * cosine).to(dtype)[:, None] * by_sine - (factor * sine).to(dtype)[:, None] * by_cosine
        total = term if total is None else total + term
        if edge is not None:
            weight = 2 * (-1) ** m * math.comb(2 * harmonics, harmonics - m) / 4**harmonics
            response = cosine.to(dtype)[:, None] * by_cosine + sine.to(dtype)[:, None] * by_sine
            edge = edge + weight * response.detach()
    if total is None:
        raise ValueError("at least one harmonic is needed")
    return total, edge


def _vjp(outputs: list[Tensor], weights: list[Tensor], positions: Tensor, create_graph: bool) -> Tensor:
    """Vector–Jacobian product in the positions; zero where the outputs do not depend on them."""
    pairs = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    if not pairs:
        return torch.zeros_like(positions)
    (gradient,) = torch.autograd.grad(
        [output for output, _ in pairs],
        positions,
        [weight for _, weight in pairs],
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return gradient
