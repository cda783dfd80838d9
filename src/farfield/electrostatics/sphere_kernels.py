r"""Compiled kernels of the sums over the waves inside the cutoff: structure factors in octants, and their transpose.

They do what `farfield.electrostatics.separable` does, for a list of waves in place of a whole box of indices. Waves
come in blocks: `WIDTH` neighbouring h₁ with one h₂, and all h₃ up to where the last of them leaves the cutoff. Blocks
are sorted by that height, so that at each h₃ the blocks which still have waves are the first ones: the planes of the
atoms, all blocks one after the other, times cos 2πh₃s₃ and sin 2πh₃s₃ are added up in loops as long as the blocks that
are left. A block holds the products of cosines and sines along the second and first axis in the order (cosine, sine),
(cosine, sine), h₁.

Atoms are taken few at a time and blocks in tiles, so that planes, and the sums they are added to, stay in the
processor's second-level cache. The tables along the axes are made on the spot, from the cosine and sine of 2πs alone.
"""

from __future__ import annotations

import numpy as np

from farfield.electrostatics.compiled import compiled

#: Neighbouring h₁ in a block.
WIDTH = 4

#: Blocks in a tile and atoms in a group.
_TILE = 32
_GROUP = 8


@compiled
def _waves(turn, cosine, sine):  # type: ignore[no-untyped-def]
    """Set cosine[h], sine[h] of 2πh·turn from those of half the angle, twice: rounding grows as the logarithm of h."""
    cosine[0], sine[0] = 1.0, 0.0
    angle = 2.0 * np.pi * turn
    cosine[1], sine[1] = np.cos(angle), np.sin(angle)
    for h in range(2, len(cosine)):
        low = h // 2
        high = h - low
        cosine[h] = cosine[low] * cosine[high] - sine[low] * sine[high]
        sine[h] = sine[low] * cosine[high] + cosine[low] * sine[high]


@compiled
def _derivative(value, slope, p):  # type: ignore[no-untyped-def]
    """∂^p of a cosine or sine in its angle, from its value and first derivative."""
    result = value if p % 2 == 0 else slope
    return result if p % 4 < 2 else -result


@compiled
def _tables(s, cosine, sine, x, y, z, first):  # type: ignore[no-untyped-def]
    """Set derivatives along the axes: x[column, p, (cosine, sine) of h₁], y[kind, h₂, p], z[h₃, kind, first + p]."""
    width, levels = x.shape[2] // 2, x.shape[1]
    n1, n2, n3 = x.shape[0] * width, y.shape[1], z.shape[0]
    _waves(s[0], cosine[:n1], sine[:n1])
    for h in range(n1):
        factor = 1.0
        for p in range(levels):
            x[h // width, p, h % width] = factor * _derivative(cosine[h], -sine[h], p)
            x[h // width, p, width + h % width] = factor * _derivative(sine[h], cosine[h], p)
            factor *= 2.0 * np.pi * h
    _waves(s[1], cosine[:n2], sine[:n2])
    for h in range(n2):
        factor = 1.0
        for p in range(levels):
            y[0, h, p] = factor * _derivative(cosine[h], -sine[h], p)
            y[1, h, p] = factor * _derivative(sine[h], cosine[h], p)
            factor *= 2.0 * np.pi * h
    _waves(s[2], cosine[:n3], sine[:n3])
    for h in range(n3):
        factor = 1.0
        for p in range(levels):
            z[h, 0, first + p] = factor * _derivative(cosine[h], -sine[h], p)
            z[h, 1, first + p] = factor * _derivative(sine[h], cosine[h], p)
            factor *= 2.0 * np.pi * h


@compiled
def _fold(c, place, p3, y, folded):  # type: ignore[no-untyped-def]
    """Σ_{p₂} c^p Y^{p₂}: folded[kind, h₂, p₁]."""
    levels = place.shape[0] - p3
    for kind in range(2):
        for h in range(y.shape[1]):
            for p1 in range(levels):
                total = c[place[p1, 0, p3]] * y[kind, h, 0]
                for p2 in range(1, levels - p1):
                    total += c[place[p1, p2, p3]] * y[kind, h, p2]
                folded[kind, h, p1] = total


@compiled
def _make_plane(folded, levels, x, h2, column_of, plane):  # type: ignore[no-untyped-def]
    """Plane of an atom: plane[block, kind, (cosine, sine) of h₁] = Σ_{p₁} folded X^{p₁}."""
    lanes = x.shape[2]
    for block in range(len(plane)):
        table = x[column_of[block]]
        for kind in range(2):
            f, row = folded[kind, h2[block]], plane[block, kind]
            # Sums written out up to the third order: a loop around so short ones would take most of the time.
            if levels == 1:
                for i in range(lanes):
                    row[i] = f[0] * table[0, i]
            elif levels == 2:
                for i in range(lanes):
                    row[i] = f[0] * table[0, i] + f[1] * table[1, i]
            elif levels == 3:
                for i in range(lanes):
                    row[i] = f[0] * table[0, i] + f[1] * table[1, i] + f[2] * table[2, i]
            else:
                for i in range(lanes):
                    row[i] = f[0] * table[0, i] + f[1] * table[1, i] + f[2] * table[2, i] + f[3] * table[3, i]
                for p1 in range(4, levels):
                    for i in range(lanes):
                        row[i] += f[p1] * table[p1, i]


@compiled
def _add_products(z, planes, heads, total):  # type: ignore[no-untyped-def]
    """Add Z times planes: total[h₃, kind, :heads[h₃]] += Σ_k z[h₃, kind, k] planes[k], eight k at a time."""
    for k in range(0, len(planes), 8):
        p0, p1, p2, p3 = planes[k], planes[k + 1], planes[k + 2], planes[k + 3]
        p4, p5, p6, p7 = planes[k + 4], planes[k + 5], planes[k + 6], planes[k + 7]
        for h in range(len(heads)):
            a, b = z[h, 0, k : k + 8], z[h, 1, k : k + 8]
            a0, a1, a2, a3, a4, a5, a6, a7 = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
            b0, b1, b2, b3, b4, b5, b6, b7 = b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]
            cosines, sines = total[h, 0], total[h, 1]
            for j in range(heads[h]):
                v0, v1, v2, v3, v4, v5, v6, v7 = p0[j], p1[j], p2[j], p3[j], p4[j], p5[j], p6[j], p7[j]
                cosines[j] += a0 * v0 + a1 * v1 + a2 * v2 + a3 * v3 + a4 * v4 + a5 * v5 + a6 * v6 + a7 * v7
                sines[j] += b0 * v0 + b1 * v1 + b2 * v2 + b3 * v3 + b4 * v4 + b5 * v5 + b6 * v6 + b7 * v7


@compiled
def _take_products(z, amplitudes, heads, planes):  # type: ignore[no-untyped-def]
    """Take Z's part of amplitudes: planes[k] = Σ_{h₃, kind} z[h₃, kind, k] amplitudes[h₃, kind], two h₃ at a time."""
    planes[:, : heads[0]] = 0.0
    for k in range(0, len(planes), 4):
        p0, p1, p2, p3 = planes[k], planes[k + 1], planes[k + 2], planes[k + 3]
        for h in range(0, len(heads), 2):
            a, b, c, d = (z[h, 0, k : k + 4], z[h, 1, k : k + 4], z[h + 1, 0, k : k + 4], z[h + 1, 1, k : k + 4])
            a0, a1, a2, a3, b0, b1, b2, b3 = a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]
            c0, c1, c2, c3, d0, d1, d2, d3 = c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]
            g0, g1, g2, g3 = amplitudes[h, 0], amplitudes[h, 1], amplitudes[h + 1, 0], amplitudes[h + 1, 1]
            for j in range(heads[h]):
                v0, v1, v2, v3 = g0[j], g1[j], g2[j], g3[j]
                p0[j] += a0 * v0 + b0 * v1 + c0 * v2 + d0 * v3
                p1[j] += a1 * v0 + b1 * v1 + c1 * v2 + d1 * v3
                p2[j] += a2 * v0 + b2 * v1 + c2 * v2 + d2 * v3
                p3[j] += a3 * v0 + b3 * v1 + c3 * v2 + d3 * v3


@compiled
def _read_plane(plane, levels, x, y, h2, column_of, summed):  # type: ignore[no-untyped-def]
    """Transpose of `_make_plane`, as far as Y: summed[column, p₂] = Σ_{kind, h₂} Y^{p₂} plane."""
    lanes = x.shape[2]
    summed[:, :levels] = 0.0
    for block in range(len(plane)):
        cosines, sines = plane[block, 0], plane[block, 1]
        f, g, rows = y[0, h2[block]], y[1, h2[block]], summed[column_of[block]]
        for p2 in range(levels):
            c, s, row = f[p2], g[p2], rows[p2]
            for i in range(lanes):
                row[i] += c * cosines[i] + s * sines[i]


@compiled
def _add_moments(summed, place, p3, x, moments):  # type: ignore[no-untyped-def]
    """Add Σ_{h₁} X^{p₁} summed to the moments (p₁, p₂, p₃) of an atom."""
    levels = place.shape[0] - p3
    for p2 in range(levels):
        for p1 in range(levels - p2):
            total = moments[place[p1, p2, p3]]
            for column in range(len(x)):
                row, table = summed[column, p2], x[column, p1]
                for i in range(x.shape[2]):
                    total += row[i] * table[i]
            moments[place[p1, p2, p3]] = total


@compiled
def _to_octants(total, heads, starts, first, width, out):  # type: ignore[no-untyped-def]
    """Re S, Im S in the four octants, of the sums of one tile of blocks, the first of which is ``first``."""
    for h in range(len(heads)):
        for block in range(heads[h] // (4 * width)):
            t, u = total[h, 0, block * 4 * width :], total[h, 1, block * 4 * width :]
            wave = starts[h] + (first + block) * width
            for i in range(width):
                # products of cosines (c) and sines (s) along the third, second and first axis
                ccc, ccs, csc, css = t[i], t[width + i], t[2 * width + i], t[3 * width + i]
                scc, scs, ssc, sss = u[i], u[width + i], u[2 * width + i], u[3 * width + i]
                j = wave + i
                out[0, j] = ccc - ssc - css - scs
                out[1, j] = ccc + ssc - css + scs
                out[2, j] = ccc + ssc + css - scs
                out[3, j] = ccc - ssc + css + scs
                out[4, j] = ccs + csc + scc - sss
                out[5, j] = ccs + csc - scc + sss
                out[6, j] = ccs - csc + scc + sss
                out[7, j] = ccs - csc - scc - sss


@compiled
def _from_octants(adjoint, heads, starts, first, width, amplitudes):  # type: ignore[no-untyped-def]
    """Transpose of `_to_octants`; amplitudes beyond the heads are zero."""
    amplitudes[:] = 0.0
    for h in range(len(heads)):
        for block in range(heads[h] // (4 * width)):
            t, u = amplitudes[h, 0, block * 4 * width :], amplitudes[h, 1, block * 4 * width :]
            wave = starts[h] + (first + block) * width
            for i in range(width):
                j = wave + i
                a, b, c, d = adjoint[0, j], adjoint[1, j], adjoint[2, j], adjoint[3, j]
                t[i], u[2 * width + i] = a + b + c + d, b + c - a - d
                t[3 * width + i], u[width + i] = c + d - a - b, b + d - a - c
                a, b, c, d = adjoint[4, j], adjoint[5, j], adjoint[6, j], adjoint[7, j]
                t[width + i], t[2 * width + i] = a + b + c + d, a + b - c - d
                u[i], u[3 * width + i] = a + c - b - d, b + c - a - d


@compiled
def _heads_of_tile(blocks, first, count, lanes, heads):  # type: ignore[no-untyped-def]
    """Set how many numbers of a tile are inside the cutoff at each h₃."""
    for h in range(len(heads)):
        inside = blocks[h] - first if h < len(blocks) else 0
        heads[h] = max(0, min(inside, count)) * lanes


@compiled
def structure_factors(s, c, place, pieces, chosen, n2, h2, column_of, blocks, starts, width, out):  # type: ignore[no-untyped-def]
    """Set structure factors of some pieces of systems.

    Parameters
    ----------
    s, c
        Fractional coordinates (atoms, 3), float64, and coefficients (atoms, coefficients).
    place
        Place of the multi-index (p₁, p₂, p₃) among the coefficients, shape (levels, levels, levels).
    pieces, chosen
        First and last atom of each piece (pieces, 2), and the pieces to be done.
    n2, h2, column_of, blocks, starts, width
        The waves: number of h₂ along the second axis; h₂ and h₁/width of each block, sorted by height; for each h₃ the
        number of blocks that have it and the place of its first wave.
    out
        Re S, Im S in the octants, shape (pieces, 8, waves).
    """
    levels, lanes, number = place.shape[0], 4 * width, out.dtype
    n1, n3 = 1 + column_of.max(), len(blocks)
    tile = min(_TILE, len(h2))
    rows = 8 * ((_GROUP * levels + 7) // 8)
    cosine, sine = np.empty(max(n1 * width, n2, n3, 2)), np.empty(max(n1 * width, n2, n3, 2))
    x, y = np.empty((n1, levels, 2 * width), number), np.empty((2, n2, levels), number)
    z, folded = np.zeros((n3, 2, rows), number), np.empty((2, n2, levels), number)
    planes = np.zeros((rows, tile, 2, 2 * width), number)
    flat, total = planes.reshape(rows, tile * lanes), np.empty((n3, 2, tile * lanes), number)
    heads = np.empty(n3, np.int64)
    for piece in chosen:
        for first in range(0, len(h2), tile):
            count = min(tile, len(h2) - first)
            _heads_of_tile(blocks, first, count, lanes, heads)
            total[:] = 0.0
            for start in range(pieces[piece, 0], pieces[piece, 1], _GROUP):
                atoms = min(_GROUP, pieces[piece, 1] - start)
                # as many rows as are multiplied at a time; those of no atom are multiplied by zero
                used = 8 * ((atoms * levels + 7) // 8)
                z[:, :, atoms * levels : used] = 0.0
                for atom in range(atoms):
                    _tables(s[start + atom], cosine, sine, x, y, z, atom * levels)
                    for p3 in range(levels):
                        _fold(c[start + atom], place, p3, y, folded)
                        plane = planes[atom * levels + p3, :count]
                        _make_plane(
                            folded, levels - p3, x, h2[first : first + count], column_of[first : first + count], plane
                        )
                _add_products(z, flat[:used], heads, total)
            _to_octants(total, heads, starts, first, width, out[piece])


@compiled
def moments(s, g, place, pieces, systems, chosen, n2, h2, column_of, blocks, starts, width, out):  # type: ignore[no-untyped-def]
    """Set moments of the atoms of some pieces of systems: the transpose of `structure_factors`.

    ``g`` are amplitudes (systems, 8, waves), ``systems`` the system of each piece, ``out`` the moments (atoms,
    coefficients); all else as there.
    """
    levels, lanes, number = place.shape[0], 4 * width, out.dtype
    n1, n3 = 1 + column_of.max(), 2 * ((len(blocks) + 1) // 2)
    tile = min(_TILE, len(h2))
    rows = 4 * ((_GROUP * levels + 3) // 4)
    cosine, sine = np.empty(max(n1 * width, n2, n3, 2)), np.empty(max(n1 * width, n2, n3, 2))
    x = np.empty((_GROUP, n1, levels, 2 * width), number)
    y = np.empty((_GROUP, 2, n2, levels), number)
    z = np.zeros((n3, 2, rows), number)
    planes = np.empty((rows, tile, 2, 2 * width), number)
    flat, amplitudes = planes.reshape(rows, tile * lanes), np.empty((n3, 2, tile * lanes), number)
    summed = np.empty((n1, levels, 2 * width), number)
    heads = np.empty(n3, np.int64)
    for piece in chosen:
        out[pieces[piece, 0] : pieces[piece, 1]] = 0.0
        for first in range(0, len(h2), tile):
            count = min(tile, len(h2) - first)
            _heads_of_tile(blocks, first, count, lanes, heads)
            _from_octants(g[systems[piece]], heads, starts, first, width, amplitudes)
            for start in range(pieces[piece, 0], pieces[piece, 1], _GROUP):
                atoms = min(_GROUP, pieces[piece, 1] - start)
                used = 4 * ((atoms * levels + 3) // 4)
                z[:, :, atoms * levels : used] = 0.0
                for atom in range(atoms):
                    _tables(s[start + atom], cosine, sine, x[atom], y[atom], z, atom * levels)
                _take_products(z, amplitudes, heads, flat[:used])
                for atom in range(atoms):
                    for p3 in range(levels):
                        plane = planes[atom * levels + p3, :count]
                        _read_plane(
                            plane,
                            levels - p3,
                            x[atom],
                            y[atom],
                            h2[first : first + count],
                            column_of[first : first + count],
                            summed,
                        )
                        _add_moments(summed, place, p3, x[atom], out[start + atom])
