"""Engines: programs that run a model. For now ASE, through `farfield.Calculator`."""
