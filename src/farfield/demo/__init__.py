"""``farfield demo``: train a short-range and a long-range model on shipped data and compare them.

The two models are twins: the same backbone, data, loss and seed; one has a `LongRange` on top. Neither is shown a
charge, a dipole or a Born charge.
"""

from farfield.demo.run import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
