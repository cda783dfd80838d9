"""Splits and the order of frames, as functions of seeds and epoch numbers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from farfield.training.config import ConfigError, SplitConfig


def split_indices(n: int, config: SplitConfig) -> tuple[list[int], list[int]]:
    """Split ``n`` frames into those for training and those for validation, both in ascending order.

    Raises
    ------
    ConfigError
        If nothing is left on either side.
    """
    count = config.count if config.count is not None else round((config.fraction or 0.0) * n)
    if not 0 < count < n:
        raise ConfigError(f"data.split takes {count} of {n} frames for validation, but both parts need at least one")
    if config.method == "contiguous":
        chosen = set(range(n - count, n))
    else:
        chosen = set(np.random.default_rng(config.seed).permutation(n)[:count].tolist())
    return [i for i in range(n) if i not in chosen], sorted(chosen)


class EpochBatches(Sampler[list[int]]):
    """Batches of shuffled indices; the order of an epoch follows from the seed and the epoch's number alone.

    With several processes each takes every ``world``-th batch; the last ones are filled up from the front, so that
    all take the same number of steps.

    Parameters
    ----------
    n
        Number of samples.
    batch_size
        Samples per batch; the last batch may be smaller.
    seed
        Seed of the order.
    rank, world
        Number of this process and of all.
    """

    def __init__(self, n: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.n, self.batch_size, self.seed, self.rank, self.world = n, batch_size, seed, rank, world
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch; ``start`` batches of this process are left out, where they were done before."""
        self.epoch, self.start = epoch, start

    def batches(self) -> Sequence[list[int]]:
        """All batches of this process in this epoch."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n).tolist()
        every = [order[i : i + self.batch_size] for i in range(0, self.n, self.batch_size)]
        mine = every[self.rank :: self.world]
        return mine if len(mine) == len(self) else [*mine, every[0]]

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches()[self.start :]

    def __len__(self) -> int:
        """Batches of this process in a whole epoch."""
        return math.ceil(math.ceil(self.n / self.batch_size) / self.world)
