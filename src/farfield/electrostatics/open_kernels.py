r"""Compiled kernels of the open sum: what Gaussian multipoles of each system make at its atoms, to third derivatives.

With R = r_i − r_j and B_n the radial kernels (`farfield.electrostatics.kernels`), the multipoles q, u, Q of atom j make
the potential c_0 at atom i, and its derivatives, with t_n = u B_n + Q·R B_{n+1},

    c_n = q B_n + (u·R) B_{n+1} + ½ (R·Q·R) B_{n+2} ,   ∇c_n = t_{n+1} − R c_{n+1} ,   ∇t_n = Q B_{n+1} − R t_{n+1} ,
    ∇∇c_0 = R R c_2 − (R t_2 + t_2 R) + Q B_2 − 1 c_1 ,
    ∇∇∇c_0 = −R R R c_3 + (R R t_3 + …) − (R Q + …) B_3 + (1 (R c_2 − t_2) + …) ,

"…" the other places of the indices. These *fields* of all other atoms j, contracted with the multipoles of atom i, are
the energy and its derivatives in positions and multipoles. `tangents` are the derivatives of the fields along a change
of all positions and multipoles (dR = D, s = R·D: dB_n = −s B_{n+1}, and so for c_n and t_n).

Each atom i meets all atoms j in one loop without branches that reads contiguous numbers and only adds: it becomes
vector instructions, and what each pair costs less than once it were met for both of its atoms. Lengths are measured in
σ, so that B_n is F_n but for a common factor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from farfield.electrostatics.compiled import compiled
from farfield.electrostatics.kernels import series_limit
from farfield.electrostatics.open_radial import radial, tables
from farfield.units import COULOMB_CONSTANT

#: Atoms are looked at in groups of as many as fit into the widest vectors there are; absent ones carry nothing.
_LANES = {np.dtype(np.float64): 8, np.dtype(np.float32): 16}


@compiled
def _lay_out(positions, charges, dipoles, quadrupoles, order, scale, count, width):  # type: ignore[no-untyped-def]
    """Rows x, y, z, q, u, Q of a system's atoms, multipoles in units of σ, the rest of each row empty."""
    rows = np.zeros((13, width), positions.dtype)
    for j in range(count):
        for a in range(3):
            rows[a, j] = positions[j, a]
        rows[3, j] = charges[j]
        if order > 0:
            for a in range(3):
                rows[4 + a, j] = dipoles[j, a] * scale
        if order > 1:
            t = quadrupoles[j]
            trace = (t[0, 0] + t[1, 1] + t[2, 2]) / 3.0
            square, place = scale * scale, 7
            for a in range(3):
                for b in range(a, 3):
                    rows[place, j] = square * (0.5 * (t[a, b] + t[b, a]) - (trace if a == b else 0.0))
                    place += 1
    return rows


@compiled
def _write(out, scale, degree):  # type: ignore[no-untyped-def]
    """Give the fields of an atom their units."""
    factor = COULOMB_CONSTANT * math.sqrt(2.0 / math.pi) * scale
    first = 0
    for level in range(degree + 1):
        last = first + (level + 1) * (level + 2) // 2
        for place in range(first, last):
            out[place] *= factor
        first = last
        factor *= scale


@functools.cache
def fields(order: int, degree: int, dtype: np.dtype) -> Callable[..., None]:
    """Make the kernel of the fields of multipoles of an order, up to a degree.

    Returns
    -------
    Callable
        ``kernel(positions, charges, dipoles, quadrupoles, scales, counts, first, last, out)`` sets ``out`` (members,
        slots, numbers) of atoms ``first`` … ``last`` − 1 in the order of the block: potential, gradient (x, y, z),
        second derivatives (xx, xy, xz, yy, yz, zz), third (xxx, xxy, xxz, xyy, xyz, xzz, yyy, yyz, yzz, zzz). Arrays:
        positions and dipoles (members, slots, 3), charges (members, slots), quadrupoles (members, slots, 3, 3), of
        which the symmetric traceless part counts; 1/σ and the number of atoms of each member.
    """
    highest = order + degree
    near, far, exponential = tables(highest, dtype)
    limit, lanes = 2.0 * series_limit(highest), _LANES[dtype]
    zero, third, half, two, three = (dtype.type(value) for value in (0.0, 1.0 / 3.0, 0.5, 2.0, 3.0))

    @compiled
    def kernel(positions, charges, dipoles, quadrupoles, scales, counts, first, last, out):  # type: ignore[no-untyped-def]
        slots = charges.shape[1]
        for k in range(first // slots, (last + slots - 1) // slots):
            count, scale = counts[k], scales[k]
            width = (count + lanes - 1) // lanes * lanes
            uk, tk = dipoles[k if order > 0 else 0], quadrupoles[k if order > 1 else 0]
            rows = _lay_out(positions[k], charges[k], uk, tk, order, scale, count, width)
            rx, ry, rz, rq, ux, uy, uz = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6]
            txx, txy, txz, tyy, tyz, tzz = rows[7], rows[8], rows[9], rows[10], rows[11], rows[12]
            for i in range(max(0, first - k * slots), min(slots, last - k * slots)):
                o = out[k, i]
                if i >= count:
                    o[:] = zero
                    continue
                xi, yi, zi = rx[i], ry[i], rz[i]
                v, vx, vy, vz = zero, zero, zero, zero
                vxx, vxy, vxz, vyy, vyz, vzz, trace = zero, zero, zero, zero, zero, zero, zero
                vxxx, vxxy, vxxz, vxyy, vxyz, vxzz = zero, zero, zero, zero, zero, zero
                vyyy, vyyz, vyzz, vzzz = zero, zero, zero, zero
                wx, wy, wz = zero, zero, zero
                for j in range(width):
                    x, y, z = (xi - rx[j]) * scale, (yi - ry[j]) * scale, (zi - rz[j]) * scale
                    squared = x * x + y * y + z * z
                    b0, b1, b2, b3, b4, b5, _ = radial(squared, i == j, highest, limit, near, far, exponential)
                    q = rq[j]
                    c0, c1, c2, c3 = q * b0, q * b1, q * b2, q * b3
                    t1x, t1y, t1z = zero, zero, zero
                    t2x, t2y, t2z = zero, zero, zero
                    t3x, t3y, t3z = zero, zero, zero
                    if order > 0:
                        mx, my, mz = ux[j], uy[j], uz[j]
                        m = mx * x + my * y + mz * z
                        c0, c1, c2, c3 = c0 + m * b1, c1 + m * b2, c2 + m * b3, c3 + m * b4
                        t1x, t1y, t1z = mx * b1, my * b1, mz * b1
                        t2x, t2y, t2z = mx * b2, my * b2, mz * b2
                        t3x, t3y, t3z = mx * b3, my * b3, mz * b3
                    if order > 1:
                        qxx, qxy, qxz, qyy, qyz, qzz = txx[j], txy[j], txz[j], tyy[j], tyz[j], tzz[j]
                        nx, ny, nz = (
                            qxx * x + qxy * y + qxz * z,
                            qxy * x + qyy * y + qyz * z,
                            qxz * x + qyz * y + qzz * z,
                        )
                        n = half * (nx * x + ny * y + nz * z)
                        c0, c1, c2, c3 = c0 + n * b2, c1 + n * b3, c2 + n * b4, c3 + n * b5
                        t1x, t1y, t1z = t1x + nx * b2, t1y + ny * b2, t1z + nz * b2
                        t2x, t2y, t2z = t2x + nx * b3, t2y + ny * b3, t2z + nz * b3
                        t3x, t3y, t3z = t3x + nx * b4, t3y + ny * b4, t3z + nz * b4
                    v += c0
                    if degree > 0:
                        vx += t1x - x * c1
                        vy += t1y - y * c1
                        vz += t1z - z * c1
                    if degree > 1:
                        px, py, pz = x * c2 - t2x, y * c2 - t2y, z * c2 - t2z
                        trace += c1
                        vxx += x * (px - t2x)
                        vxy += x * py - y * t2x
                        vxz += x * pz - z * t2x
                        vyy += y * (py - t2y)
                        vyz += y * pz - z * t2y
                        vzz += z * (pz - t2z)
                        if order > 1:
                            vxx += qxx * b2
                            vxy += qxy * b2
                            vxz += qxz * b2
                            vyy += qyy * b2
                            vyz += qyz * b2
                            vzz += qzz * b2
                    if degree > 2:
                        wx += px
                        wy += py
                        wz += pz
                        c = third * c3
                        ax, ay, az = t3x - x * c, t3y - y * c, t3z - z * c
                        xx, xy, xz, yy, yz, zz = x * x, x * y, x * z, y * y, y * z, z * z
                        vxxx += three * (xx * ax)
                        vxxy += two * (xy * ax) + xx * ay
                        vxxz += two * (xz * ax) + xx * az
                        vxyy += two * (xy * ay) + yy * ax
                        vxyz += xy * az + xz * ay + yz * ax
                        vxzz += two * (xz * az) + zz * ax
                        vyyy += three * (yy * ay)
                        vyyz += two * (yz * ay) + yy * az
                        vyzz += two * (yz * az) + zz * ay
                        vzzz += three * (zz * az)
                        if order > 1:
                            sxx, sxy, sxz = qxx * b3, qxy * b3, qxz * b3
                            syy, syz, szz = qyy * b3, qyz * b3, qzz * b3
                            vxxx -= three * (x * sxx)
                            vxxy -= two * (x * sxy) + y * sxx
                            vxxz -= two * (x * sxz) + z * sxx
                            vxyy -= two * (y * sxy) + x * syy
                            vxyz -= x * syz + y * sxz + z * sxy
                            vxzz -= two * (z * sxz) + x * szz
                            vyyy -= three * (y * syy)
                            vyyz -= two * (y * syz) + z * syy
                            vyzz -= two * (z * syz) + y * szz
                            vzzz -= three * (z * szz)
                o[0] = v
                if degree > 0:
                    o[1], o[2], o[3] = vx, vy, vz
                if degree > 1:
                    o[4], o[5], o[6] = vxx - trace, vxy, vxz
                    o[7], o[8], o[9] = vyy - trace, vyz, vzz - trace
                if degree > 2:
                    o[10], o[11], o[12] = vxxx + three * wx, vxxy + wy, vxxz + wz
                    o[13], o[14], o[15] = vxyy + wx, vxyz, vxzz + wx
                    o[16], o[17], o[18], o[19] = vyyy + three * wy, vyyz + wz, vyzz + wy, vzzz + three * wz
                _write(o, scale, degree)

    return kernel


@functools.cache
def tangents(order: int, degree: int, dtype: np.dtype) -> Callable[..., None]:
    """Make the kernel of the derivatives of the `fields` along a change of positions and multipoles.

    Returns
    -------
    Callable
        ``kernel(positions, …, quadrupoles, changes of the four, scales, counts, first, last, out)``, else as `fields`.
    """
    highest = order + degree + 1
    near, far, exponential = tables(highest, dtype)
    limit, lanes = 2.0 * series_limit(highest), _LANES[dtype]
    zero, third, half, two, three = (dtype.type(value) for value in (0.0, 1.0 / 3.0, 0.5, 2.0, 3.0))

    @compiled
    def kernel(  # type: ignore[no-untyped-def]
        positions, charges, dipoles, quadrupoles, dr, dq, du, dt, scales, counts, first, last, out
    ):
        slots = charges.shape[1]
        for k in range(first // slots, (last + slots - 1) // slots):
            count, scale = counts[k], scales[k]
            width = (count + lanes - 1) // lanes * lanes
            k1, k2 = k if order > 0 else 0, k if order > 1 else 0
            rows = _lay_out(positions[k], charges[k], dipoles[k1], quadrupoles[k2], order, scale, count, width)
            rx, ry, rz, rq, ux, uy, uz = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6]
            txx, txy, txz, tyy, tyz, tzz = rows[7], rows[8], rows[9], rows[10], rows[11], rows[12]
            rows = _lay_out(dr[k], dq[k], du[k1], dt[k2], order, scale, count, width)
            drx, dry, drz, drq, dux, duy, duz = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6]
            dtxx, dtxy, dtxz, dtyy, dtyz, dtzz = rows[7], rows[8], rows[9], rows[10], rows[11], rows[12]
            for i in range(max(0, first - k * slots), min(slots, last - k * slots)):
                o = out[k, i]
                if i >= count:
                    o[:] = zero
                    continue
                xi, yi, zi, dxi, dyi, dzi = rx[i], ry[i], rz[i], drx[i], dry[i], drz[i]
                v, vx, vy, vz = zero, zero, zero, zero
                vxx, vxy, vxz, vyy, vyz, vzz, trace = zero, zero, zero, zero, zero, zero, zero
                vxxx, vxxy, vxxz, vxyy, vxyz, vxzz = zero, zero, zero, zero, zero, zero
                vyyy, vyyz, vyzz, vzzz = zero, zero, zero, zero
                wx, wy, wz = zero, zero, zero
                for j in range(width):
                    x, y, z = (xi - rx[j]) * scale, (yi - ry[j]) * scale, (zi - rz[j]) * scale
                    dx, dy, dz = (dxi - drx[j]) * scale, (dyi - dry[j]) * scale, (dzi - drz[j]) * scale
                    squared = x * x + y * y + z * z
                    s = x * dx + y * dy + z * dz
                    b0, b1, b2, b3, b4, b5, b6 = radial(squared, i == j, highest, limit, near, far, exponential)
                    q, dq_ = rq[j], drq[j]
                    # c_1 … c_4 and t_2 … t_4; first the changes of c_0 … c_3 and t_1 … t_3 but for those of the B_n
                    c1, c2, c3, c4 = q * b1, q * b2, q * b3, q * b4
                    dc0, dc1, dc2, dc3 = dq_ * b0, dq_ * b1, dq_ * b2, dq_ * b3
                    t1x, t1y, t1z, t2x, t2y, t2z = zero, zero, zero, zero, zero, zero
                    t3x, t3y, t3z, t4x, t4y, t4z = zero, zero, zero, zero, zero, zero
                    dt1x, dt1y, dt1z, dt2x, dt2y, dt2z = zero, zero, zero, zero, zero, zero
                    dt3x, dt3y, dt3z = zero, zero, zero
                    if order > 0:
                        mx, my, mz, dmx, dmy, dmz = ux[j], uy[j], uz[j], dux[j], duy[j], duz[j]
                        m = mx * x + my * y + mz * z
                        dm = dmx * x + dmy * y + dmz * z + mx * dx + my * dy + mz * dz
                        c1, c2, c3, c4 = c1 + m * b2, c2 + m * b3, c3 + m * b4, c4 + m * b5
                        dc0, dc1, dc2, dc3 = dc0 + dm * b1, dc1 + dm * b2, dc2 + dm * b3, dc3 + dm * b4
                        t1x, t1y, t1z, t2x, t2y, t2z = mx * b1, my * b1, mz * b1, mx * b2, my * b2, mz * b2
                        t3x, t3y, t3z, t4x, t4y, t4z = mx * b3, my * b3, mz * b3, mx * b4, my * b4, mz * b4
                        dt1x, dt1y, dt1z = dmx * b1, dmy * b1, dmz * b1
                        dt2x, dt2y, dt2z = dmx * b2, dmy * b2, dmz * b2
                        dt3x, dt3y, dt3z = dmx * b3, dmy * b3, dmz * b3
                    if order > 1:
                        qxx, qxy, qxz, qyy, qyz, qzz = txx[j], txy[j], txz[j], tyy[j], tyz[j], tzz[j]
                        dqxx, dqxy, dqxz, dqyy, dqyz, dqzz = dtxx[j], dtxy[j], dtxz[j], dtyy[j], dtyz[j], dtzz[j]
                        nx, ny, nz = (
                            qxx * x + qxy * y + qxz * z,
                            qxy * x + qyy * y + qyz * z,
                            qxz * x + qyz * y + qzz * z,
                        )
                        dnx = dqxx * x + dqxy * y + dqxz * z + qxx * dx + qxy * dy + qxz * dz
                        dny = dqxy * x + dqyy * y + dqyz * z + qxy * dx + qyy * dy + qyz * dz
                        dnz = dqxz * x + dqyz * y + dqzz * z + qxz * dx + qyz * dy + qzz * dz
                        n = half * (nx * x + ny * y + nz * z)
                        dn = half * (dnx * x + dny * y + dnz * z + nx * dx + ny * dy + nz * dz)
                        c1, c2, c3, c4 = c1 + n * b3, c2 + n * b4, c3 + n * b5, c4 + n * b6
                        dc0, dc1, dc2, dc3 = dc0 + dn * b2, dc1 + dn * b3, dc2 + dn * b4, dc3 + dn * b5
                        t1x, t1y, t1z = t1x + nx * b2, t1y + ny * b2, t1z + nz * b2
                        t2x, t2y, t2z = t2x + nx * b3, t2y + ny * b3, t2z + nz * b3
                        t3x, t3y, t3z = t3x + nx * b4, t3y + ny * b4, t3z + nz * b4
                        t4x, t4y, t4z = t4x + nx * b5, t4y + ny * b5, t4z + nz * b5
                        dt1x, dt1y, dt1z = dt1x + dnx * b2, dt1y + dny * b2, dt1z + dnz * b2
                        dt2x, dt2y, dt2z = dt2x + dnx * b3, dt2y + dny * b3, dt2z + dnz * b3
                        dt3x, dt3y, dt3z = dt3x + dnx * b4, dt3y + dny * b4, dt3z + dnz * b4
                    dc0, dc1, dc2, dc3 = dc0 - s * c1, dc1 - s * c2, dc2 - s * c3, dc3 - s * c4
                    dt1x, dt1y, dt1z = dt1x - s * t2x, dt1y - s * t2y, dt1z - s * t2z
                    dt2x, dt2y, dt2z = dt2x - s * t3x, dt2y - s * t3y, dt2z - s * t3z
                    dt3x, dt3y, dt3z = dt3x - s * t4x, dt3y - s * t4y, dt3z - s * t4z
                    v += dc0
                    if degree > 0:
                        vx += dt1x - x * dc1 - dx * c1
                        vy += dt1y - y * dc1 - dy * c1
                        vz += dt1z - z * dc1 - dz * c1
                    if degree > 1:
                        # (R c_2 − t_2) and its change
                        px, py, pz = x * c2 - t2x, y * c2 - t2y, z * c2 - t2z
                        dpx, dpy, dpz = x * dc2 + dx * c2 - dt2x, y * dc2 + dy * c2 - dt2y, z * dc2 + dz * c2 - dt2z
                        trace += dc1
                        vxx += x * (dpx - dt2x) + dx * (px - t2x)
                        vxy += x * dpy - y * dt2x + dx * py - dy * t2x
                        vxz += x * dpz - z * dt2x + dx * pz - dz * t2x
                        vyy += y * (dpy - dt2y) + dy * (py - t2y)
                        vyz += y * dpz - z * dt2y + dy * pz - dz * t2y
                        vzz += z * (dpz - dt2z) + dz * (pz - t2z)
                        if order > 1:
                            sb = s * b3
                            vxx += dqxx * b2 - qxx * sb
                            vxy += dqxy * b2 - qxy * sb
                            vxz += dqxz * b2 - qxz * sb
                            vyy += dqyy * b2 - qyy * sb
                            vyz += dqyz * b2 - qyz * sb
                            vzz += dqzz * b2 - qzz * sb
                    if degree > 2:
                        wx += dpx
                        wy += dpy
                        wz += dpz
                        c, dc = third * c3, third * dc3
                        ax, ay, az = t3x - x * c, t3y - y * c, t3z - z * c
                        dax, day, daz = dt3x - x * dc - dx * c, dt3y - y * dc - dy * c, dt3z - z * dc - dz * c
                        xx, xy, xz, yy, yz, zz = x * x, x * y, x * z, y * y, y * z, z * z
                        dxx, dyy, dzz = two * x * dx, two * y * dy, two * z * dz
                        dxy, dxz, dyz = x * dy + dx * y, x * dz + dx * z, y * dz + dy * z
                        vxxx += three * (xx * dax + dxx * ax)
                        vxxy += two * (xy * dax + dxy * ax) + xx * day + dxx * ay
                        vxxz += two * (xz * dax + dxz * ax) + xx * daz + dxx * az
                        vxyy += two * (xy * day + dxy * ay) + yy * dax + dyy * ax
                        vxyz += xy * daz + dxy * az + xz * day + dxz * ay + yz * dax + dyz * ax
                        vxzz += two * (xz * daz + dxz * az) + zz * dax + dzz * ax
                        vyyy += three * (yy * day + dyy * ay)
                        vyyz += two * (yz * day + dyz * ay) + yy * daz + dyy * az
                        vyzz += two * (yz * daz + dyz * az) + zz * day + dzz * ay
                        vzzz += three * (zz * daz + dzz * az)
                        if order > 1:
                            sb = s * b4
                            sxx, sxy, sxz = qxx * b3, qxy * b3, qxz * b3
                            syy, syz, szz = qyy * b3, qyz * b3, qzz * b3
                            dsxx, dsxy, dsxz = dqxx * b3 - qxx * sb, dqxy * b3 - qxy * sb, dqxz * b3 - qxz * sb
                            dsyy, dsyz, dszz = dqyy * b3 - qyy * sb, dqyz * b3 - qyz * sb, dqzz * b3 - qzz * sb
                            vxxx -= three * (x * dsxx + dx * sxx)
                            vxxy -= two * (x * dsxy + dx * sxy) + y * dsxx + dy * sxx
                            vxxz -= two * (x * dsxz + dx * sxz) + z * dsxx + dz * sxx
                            vxyy -= two * (y * dsxy + dy * sxy) + x * dsyy + dx * syy
                            vxyz -= x * dsyz + dx * syz + y * dsxz + dy * sxz + z * dsxy + dz * sxy
                            vxzz -= two * (z * dsxz + dz * sxz) + x * dszz + dx * szz
                            vyyy -= three * (y * dsyy + dy * syy)
                            vyyz -= two * (y * dsyz + dy * syz) + z * dsyy + dz * syy
                            vyzz -= two * (z * dsyz + dz * syz) + y * dszz + dy * szz
                            vzzz -= three * (z * dszz + dz * szz)
                o[0] = v
                if degree > 0:
                    o[1], o[2], o[3] = vx, vy, vz
                if degree > 1:
                    o[4], o[5], o[6] = vxx - trace, vxy, vxz
                    o[7], o[8], o[9] = vyy - trace, vyz, vzz - trace
                if degree > 2:
                    o[10], o[11], o[12] = vxxx + three * wx, vxxy + wy, vxxz + wz
                    o[13], o[14], o[15] = vxyy + wx, vxyz, vxzz + wx
                    o[16], o[17], o[18], o[19] = vyyy + three * wy, vyyz + wz, vyzz + wy, vzzz + three * wz
                _write(o, scale, degree)

    return kernel


@compiled
def add_energies(values, charges, dipoles, quadrupoles, order, out):  # type: ignore[no-untyped-def]
    """Add to ``out`` (members,) the energies ½ Σ (q φ + u·∇φ + ½ Q:∇∇φ) from fields up to the order."""
    members, slots = charges.shape
    for k in range(members):
        total = 0.0
        for i in range(slots):
            v = values[k, i]
            total += charges[k, i] * v[0]
            if order > 0:
                u = dipoles[k, i]
                total += u[0] * v[1] + u[1] * v[2] + u[2] * v[3]
            if order > 1:
                t = quadrupoles[k, i]
                mean = (t[0, 0] + t[1, 1] + t[2, 2]) / 3.0
                total += 0.5 * ((t[0, 0] - mean) * v[4] + (t[1, 1] - mean) * v[7] + (t[2, 2] - mean) * v[9])
                total += 0.5 * ((t[0, 1] + t[1, 0]) * v[5] + (t[0, 2] + t[2, 0]) * v[6] + (t[1, 2] + t[2, 1]) * v[8])
        out[k] += 0.5 * total


@compiled
def add_slopes(values, charges, dipoles, quadrupoles, order, out):  # type: ignore[no-untyped-def]
    """Add to ``out`` (members, slots, 3) the gradients q ∇φ + u·∇∇φ + ½ Q:∇∇∇φ from fields up to order + 1."""
    members, slots = charges.shape
    for k in range(members):
        for i in range(slots):
            v, o = values[k, i], out[k, i]
            q = charges[k, i]
            for a in range(3):
                o[a] += q * v[1 + a]
            if order > 0:
                x, y, z = dipoles[k, i, 0], dipoles[k, i, 1], dipoles[k, i, 2]
                o[0] += x * v[4] + y * v[5] + z * v[6]
                o[1] += x * v[5] + y * v[7] + z * v[8]
                o[2] += x * v[6] + y * v[8] + z * v[9]
            if order > 1:
                t = quadrupoles[k, i]
                mean = (t[0, 0] + t[1, 1] + t[2, 2]) / 3.0
                xx, yy, zz = 0.5 * (t[0, 0] - mean), 0.5 * (t[1, 1] - mean), 0.5 * (t[2, 2] - mean)
                xy, xz, yz = 0.5 * (t[0, 1] + t[1, 0]), 0.5 * (t[0, 2] + t[2, 0]), 0.5 * (t[1, 2] + t[2, 1])
                o[0] += xx * v[10] + xy * v[11] + xz * v[12] + yy * v[13] + yz * v[14] + zz * v[15]
                o[1] += xx * v[11] + xy * v[13] + xz * v[14] + yy * v[16] + yz * v[17] + zz * v[18]
                o[2] += xx * v[12] + xy * v[14] + xz * v[15] + yy * v[17] + yz * v[18] + zz * v[19]


@compiled
def unpack(values, degree, scale, potential, gradient, second):  # type: ignore[no-untyped-def]
    """Write potential, gradient and, times a scale, traceless second derivatives (members, slots, 3, 3) of fields."""
    members, slots = potential.shape
    for k in range(members):
        for i in range(slots):
            v = values[k, i]
            potential[k, i] = v[0]
            if degree > 0:
                for a in range(3):
                    gradient[k, i, a] = v[1 + a]
            if degree > 1:
                mean, o = (v[4] + v[7] + v[9]) / 3.0, second[k, i]
                o[0, 0], o[1, 1], o[2, 2] = scale * (v[4] - mean), scale * (v[7] - mean), scale * (v[9] - mean)
                o[0, 1] = o[1, 0] = scale * v[5]
                o[0, 2] = o[2, 0] = scale * v[6]
                o[1, 2] = o[2, 1] = scale * v[8]
