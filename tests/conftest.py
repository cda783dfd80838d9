"""What all tests share: shape checks, threads, tolerances, and where the shared data lie.

Shape checks: every function and dataclass of farfield is checked against its jaxtyping annotations while tests run.
``FARFIELD_SHAPE_CHECKS=0`` switches that off, for instance to debug or to test compiled models.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # no test opens a window

SHAPE_CHECKS = os.environ.get("FARFIELD_SHAPE_CHECKS", "1") != "0"
if SHAPE_CHECKS:  # before anything imports farfield
    from jaxtyping import install_import_hook

    install_import_hook("farfield", "shape_checks.checked")

import hypothesis  # noqa: E402
import torch  # noqa: E402

# more threads than one would make processes of pytest-xdist fight for the cores, and change sums from run to run
torch.set_num_threads(1)

# the same examples on every run: a red test must be red for everybody
hypothesis.settings.register_profile("farfield", deadline=None, derandomize=True, max_examples=25, database=None)
hypothesis.settings.load_profile("farfield")


class Tolerance(NamedTuple):
    """How closely two ways of computing the same thing must agree."""

    rtol: float
    atol: float


#: Rounding of a few thousand additions. Discretization errors are a matter of the test that has them.
TOLERANCES = {
    torch.float64: Tolerance(rtol=1e-9, atol=1e-10),
    torch.float32: Tolerance(rtol=1e-4, atol=1e-5),
}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Both precisions, for tests that take this fixture."""
    return request.param


@pytest.fixture
def close() -> Callable[..., None]:
    """``close(actual, expected)``: equal to the rounding of the less precise dtype; ``rtol``/``atol`` override."""

    def check(actual: object, expected: object, *, rtol: float | None = None, atol: float | None = None) -> None:
        actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
        precision = torch.float32 if torch.float32 in (actual.dtype, expected.dtype) else torch.float64
        default = TOLERANCES[precision]
        torch.testing.assert_close(
            actual.double(),
            expected.double(),
            rtol=default.rtol if rtol is None else rtol,
            atol=default.atol if atol is None else atol,
        )

    return check


REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the benchmark data: ``$FARFIELD_DATA``, else ``../shared/data`` beside the repository, else a skip."""
    given = os.environ.get("FARFIELD_DATA")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no benchmark data: {folder} is no folder; set FARFIELD_DATA")
    return folder


@pytest.fixture(scope="session")
def oracle() -> Path:
    """Reference values: ``$FARFIELD_ORACLE`` (a file or folder), else ``../shared/oracle``, else a skip."""
    given = os.environ.get("FARFIELD_ORACLE")
    place = Path(given) if given else REPOSITORY.parent / "shared" / "oracle"
    if not place.exists():
        pytest.skip(f"no reference values: {place} does not exist; set FARFIELD_ORACLE")
    return place
