"""Which frames go where: training, validation, and what is held back."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from demo_data.contents import CLUSTERS, CURVES, MOLECULES, SEED, TRAINED_RANGE, UNSEEN, charge_class, pairs
from demo_data.geometries import Pool, assemble


def plan(pool: Pool, scale: float) -> dict[str, list[Atoms]]:
    """Frames of each split, without labels."""

    def number(full: int) -> int:
        return max(1, round(full * scale))

    splits: dict[str, list[Atoms]] = {"train": [], "val": [], "test": []}
    for index, pair in enumerate(pairs()):
        held = pair in UNSEEN or pair[::-1] in UNSEEN
        count = {"CC": 16, "CP": 11, "PP": 11}[charge_class(pair)]
        for split, frames, largest in (
            ("train", 0 if held else number(count), TRAINED_RANGE),
            ("val", 0 if held else 1, TRAINED_RANGE),
            ("test", 2 if held else int(index % 4 == 1), 15.0),
        ):
            for k in range(frames):
                rng = np.random.default_rng([SEED, 2, len(split), index, k])
                splits[split].append(pool.dimer(pair, rng, largest))
    for index, name in enumerate(MOLECULES):
        rng = np.random.default_rng([SEED, 3, index])
        for split, frames in (("train", number(8)), ("val", 1)):
            single = [assemble([pool.draw(name, rng)], [name], kind="molecule") for _ in range(frames)]
            splits[split].extend(single)
    for index, (ion, waters) in enumerate(CLUSTERS):
        rng = np.random.default_rng([SEED, 4, index])
        count = number(8)
        # One trajectory: training first, then a gap, then what is held back.
        frames = pool.cluster(ion, waters, count + 7, rng)
        for split, chosen in (("train", frames[:count]), ("val", frames[-4:-3]), ("test", frames[-1:])):
            splits[split].extend(chosen)
    for index, pair in enumerate(CURVES):
        rng = np.random.default_rng([SEED, 5, index])
        splits["test"].extend(pool.curve(pair, rng, f"{pair[0]}-{pair[1]}"))
    return splits
