"""Atoms as tensors: the batch of systems that every part takes, neighbour lists, reading and checking of structures.

`AtomicBatch` holds positions, atomic numbers, cells and periodicity of several systems laid end to end. Positions and
cell are the only differentiable leaves. Reading structures needs ASE (`farfield.atoms.structures`) and neighbour lists
need vesin; both are loaded when used.
"""

from farfield.atoms.batch import AtomicBatch, Neighbors, concatenate
from farfield.atoms.neighbors import bond_vectors, find_neighbors

__all__ = ["AtomicBatch", "Neighbors", "bond_vectors", "concatenate", "find_neighbors"]
