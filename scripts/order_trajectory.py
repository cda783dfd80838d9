"""Put the shuffled frames of one trajectory back into the order of time.

    python scripts/order_trajectory.py DATA OUTPUT [--width 0.7]

DATA is a registered set (``water/pbe0ts``) or a file whose frames are of the same atoms in one cell, in any order.
Where atoms diffuse, the distance between two frames (RMS displacement of the atoms, nearest image) grows with the time
between them, so that the order can be found from the frames alone. Only then is a block of frames a stretch of time,
and an error on the last block one on configurations that were not trained on. Which end comes first cannot be known:
here the half that the file's first frame is in.

The order is that of the second eigenvector of the graph Laplacian of exp(−(d/width)²) (spectral seriation; Atkins,
Boman and Hendrickson, SIAM J. Comput. 28, 297 (1998)), in which stretches are then turned round while that shortens the
path (2-opt). The mean square displacement by the distance in the order is printed: linear for a trajectory of a liquid.
"""

from __future__ import annotations

import argparse

import ase.io
import numpy as np

from farfield.atoms.structures import read_structures
from farfield.datasets.registry import resolve_data


def distances(positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """RMS displacement of the atoms between all pairs of frames (Å), from positions (frames, atoms, 3)."""
    fractional = positions @ np.linalg.inv(cell)
    found = np.zeros((len(positions), len(positions)))
    for i, frame in enumerate(fractional):
        moved = fractional - frame
        moved = (moved - np.round(moved)) @ cell
        found[i] = np.sqrt((moved**2).sum(2).mean(1))
    return found


def seriation(d: np.ndarray, width: float) -> np.ndarray:
    """Order of the frames by the second eigenvector of the normalized graph Laplacian."""
    near = np.exp(-((d / width) ** 2))
    np.fill_diagonal(near, 0.0)
    root = 1.0 / np.sqrt(near.sum(1))
    _, vectors = np.linalg.eigh(np.eye(len(d)) - root[:, None] * near * root)
    order = np.argsort(vectors[:, 1] * root)
    return order if 2 * int(np.flatnonzero(order == 0)[0]) < len(d) else order[::-1].copy()


def shortened(path: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Turn stretches of the path round while that makes it shorter."""
    path = path.copy()
    n = len(path)
    improved = True
    while improved:
        improved = False
        for i in range(n - 1):
            for j in range(i + 2, n + 1):
                before = after = 0.0
                if i > 0:
                    before, after = d[path[i - 1], path[i]], d[path[i - 1], path[j - 1]]
                if j < n:
                    before, after = before + d[path[j - 1], path[j]], after + d[path[i], path[j]]
                if after < before - 1e-9:
                    path[i:j] = path[i:j][::-1]
                    improved = True
    return path


def main() -> None:
    """Read the frames, order them, say how well that went, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="registered set or file")
    parser.add_argument("output", help="extended XYZ file to write")
    parser.add_argument("--width", type=float, default=0.7, help="distance up to which frames count as near (Å)")
    options = parser.parse_args()

    frames = read_structures(resolve_data(options.data))
    first = frames[0]
    for index, frame in enumerate(frames):
        same = np.array_equal(frame.numbers, first.numbers) and np.allclose(frame.cell, first.cell)
        if not same or not frame.pbc.all():
            parser.error(f"frame {index} has other atoms or another cell than frame 0, or is not periodic")
    d = distances(np.array([frame.positions for frame in frames]), np.asarray(first.cell))
    path = shortened(seriation(d, options.width), d)
    steps = d[path[:-1], path[1:]]
    print(f"{len(frames)} frames; RMS step (Å) {steps.mean():.2f}, at most {steps.max():.2f}")
    print(f"in the order of the file {np.diagonal(d, 1).mean():.2f}")
    for lag in (1, 3, 10, 30, 100):
        if lag < len(frames):
            print(f"mean square displacement over {lag:3d} frames {(d[path[:-lag], path[lag:]] ** 2).mean():7.3f} Å²")
    ase.io.write(options.output, [frames[i] for i in path], format="extxyz")


if __name__ == "__main__":
    main()
