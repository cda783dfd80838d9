"""The kernels for GPUs, in Triton's interpreter where there is no GPU; skipped where Triton is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from farfield.electrostatics.spreading import spline_weights

SCRIPT = Path(__file__).parents[1] / "support" / "triton_interpreted.py"


def test_kernels_for_gpus_spread_and_gather_as_the_plain_ones():
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    pytest.importorskip("triton.language")
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for case, (epsilon, spread, gathered) in json.loads(done.stdout.splitlines()[-1]).items():
        assert spread < 30 * epsilon, case
        assert gathered < 30 * epsilon, case


@pytest.mark.parametrize("order", [4, 5, 6, 7, 8])
def test_polynomials_between_points_are_the_splines(order):
    pytest.importorskip("triton.language")
    from farfield.electrostatics.spline_triton import spline_polynomials

    x = torch.rand(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = torch.tensor(spline_polynomials(order, order - 1), dtype=torch.float64).view(order, order, order)
    powers = (x - 0.5)[:, None] ** torch.arange(order)
    for derivative, weights in enumerate(spline_weights(x, order, order - 1)):
        torch.testing.assert_close(powers @ table[derivative].T, weights, rtol=1e-12, atol=1e-12)
