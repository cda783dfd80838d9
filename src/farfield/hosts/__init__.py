"""Adapters for potentials of other packages, one file per package, each imported only when asked for.

An adapter builds its host's inputs from an `AtomicBatch`, converts the host's features to Cartesian ones and declares
the cutoff, the receptive radius and how to rebuild itself (`farfield.hosts.base`). `farfield.hosts.registry` lists them
and finds the one of a model; `farfield.augment` gives a model of another package its far field.
"""
