"""Data sets: a registry of the public benchmark sets, how to read each, and the small sets made for this package.

Sets are found by name in ``$FARFIELD_DATA``; those made for this package are shipped in ``data/``, with the scripts
that made them in the repository.
"""
