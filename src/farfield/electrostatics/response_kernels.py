r"""Compiled loops over the atoms of each system: what they answer to the fields there, and how that changes.

With potential φ and gradient g at the atoms (the first of the *fields* of `farfield.electrostatics.open_kernels`),

    Δq = −κ (φ − μ) ,  μ = Σκφ/Σκ or 0 ,   Δu = −α·g ,   U = ½ Σ (Δq φ + Δu·g) = −½ Σ κ (φ − μ)² − ½ Σ g·α·g ,
    ∂U/∂κ = −½ (φ − μ)² ,   ∂U/∂α = −½ g g ,   δμ = Σ (κ δφ + δκ (φ − μ))/Σκ .

Of α there are no, one (isotropic) or nine numbers an atom, of which the symmetric part counts.
"""

from __future__ import annotations

from farfield.electrostatics.compiled import compiled


@compiled
def _mean(values, softness):  # type: ignore[no-untyped-def]
    """Find μ of a system, and Σκ; both zero where there is no softness."""
    total, mean = 0.0, 0.0
    for i in range(len(softness)):
        total += softness[i]
        mean += softness[i] * values[i, 0]
    return (mean / total if total > 0.0 else 0.0), total


@compiled
def _polarized(alpha, x, y, z):  # type: ignore[no-untyped-def]
    """α·(x, y, z)."""
    if len(alpha) == 1:
        return alpha[0] * x, alpha[0] * y, alpha[0] * z
    xy, xz, yz = 0.5 * (alpha[1] + alpha[3]), 0.5 * (alpha[2] + alpha[6]), 0.5 * (alpha[5] + alpha[7])
    return (
        alpha[0] * x + xy * y + xz * z,
        xy * x + alpha[4] * y + yz * z,
        xz * x + yz * y + alpha[8] * z,
    )


@compiled
def induce(values, softness, polarizability, conserved, charges, dipoles, energy):  # type: ignore[no-untyped-def]
    """Write Δq and Δu of the fields (members, slots, numbers), and add U to the energy of each member."""
    members, slots = softness.shape
    for k in range(members):
        mean, total = 0.0, 0.0
        if conserved:
            mean, _ = _mean(values[k], softness[k])
        for i in range(slots):
            v, alpha = values[k, i], polarizability[k, i]
            charge = softness[k, i] * (mean - v[0])
            charges[k, i] = charge
            total += charge * v[0]
            if len(alpha) > 0:
                x, y, z = _polarized(alpha, v[1], v[2], v[3])
                dipoles[k, i, 0], dipoles[k, i, 1], dipoles[k, i, 2] = -x, -y, -z
                total -= x * v[1] + y * v[2] + z * v[3]
        energy[k] += 0.5 * total


@compiled
def slopes(values, softness, conserved, by_softness, by_polarizability):  # type: ignore[no-untyped-def]
    """Write ∂U/∂κ and ∂U/∂α."""
    members, slots = softness.shape
    for k in range(members):
        mean = 0.0
        if conserved:
            mean, _ = _mean(values[k], softness[k])
        for i in range(slots):
            v, o = values[k, i], by_polarizability[k, i]
            by_softness[k, i] = -0.5 * (v[0] - mean) ** 2
            if len(o) == 1:
                o[0] = -0.5 * (v[1] * v[1] + v[2] * v[2] + v[3] * v[3])
            elif len(o) == 9:
                for a in range(3):
                    for b in range(3):
                        o[3 * a + b] = -0.5 * v[1 + a] * v[1 + b]


@compiled
def change(  # type: ignore[no-untyped-def]
    values, changes, softness, polarizability, dsoftness, dpolarizability, conserved, charges, dipoles, on_softness,
    on_polarizability,
):  # fmt: skip
    """Write how Δq, Δu, ∂U/∂κ and ∂U/∂α change with given changes of the fields, of κ and of α."""
    members, slots = softness.shape
    for k in range(members):
        mean, dmean = 0.0, 0.0
        if conserved:
            mean, total = _mean(values[k], softness[k])
            for i in range(slots):
                dmean += softness[k, i] * changes[k, i, 0] + dsoftness[k, i] * (values[k, i, 0] - mean)
            dmean = dmean / total if total > 0.0 else 0.0
        for i in range(slots):
            v, d, alpha, dalpha = values[k, i], changes[k, i], polarizability[k, i], dpolarizability[k, i]
            high, dhigh = v[0] - mean, d[0] - dmean
            charges[k, i] = -(dsoftness[k, i] * high + softness[k, i] * dhigh)
            on_softness[k, i] = -high * dhigh
            if len(alpha) > 0:
                one, other = _polarized(alpha, d[1], d[2], d[3]), _polarized(dalpha, v[1], v[2], v[3])
                for a in range(3):
                    dipoles[k, i, a] = -(one[a] + other[a])
                o = on_polarizability[k, i]
                if len(o) == 1:
                    o[0] = -(v[1] * d[1] + v[2] * d[2] + v[3] * d[3])
                else:
                    for a in range(3):
                        for b in range(3):
                            o[3 * a + b] = -0.5 * (v[1 + a] * d[1 + b] + d[1 + a] * v[1 + b])
