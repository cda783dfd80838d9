"""Potentials: heads, the long range as an add-on, the built-in backbone, and the two put together.

A backbone turns a batch into an energy and features; `LongRange` turns the features into latent multipoles and sums
them; `AugmentedPotential` adds the two energies and differentiates them. Backbones of other packages are found through
the entry point group ``farfield.backbones``.
"""
