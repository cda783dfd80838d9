"""The error measures, against values worked out by hand and against their laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from farfield.evaluation.metrics import compute_metrics

NUMBERS = arrays(np.float64, 12, elements=st.floats(-100, 100, allow_subnormal=False))


def test_by_hand():
    # errors 1, 0, -2; the reference has mean 2 and SS_tot 2
    metrics = compute_metrics(np.array([2.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0]), "eV", centred=True)
    assert metrics.mae == pytest.approx(1.0)
    assert metrics.rmse == pytest.approx(np.sqrt(5 / 3))
    assert metrics.r2 == pytest.approx(1 - 5 / 2)
    # covariance -1, variances 2/3 and 2
    assert metrics.pearson_r2 == pytest.approx(1 / (2 / 3 * 2))
    # mean error -1/3
    assert metrics.rmse_centred == pytest.approx(np.sqrt(5 / 3 - 1 / 9))
    assert metrics.count == 3


def test_perfect_prediction():
    reference = np.linspace(-1, 2, 12).reshape(4, 3)
    metrics = compute_metrics(reference, reference, "e")
    assert (metrics.mae, metrics.rmse, metrics.r2) == (0.0, 0.0, 1.0)
    assert metrics.pearson_r2 == pytest.approx(1.0)


@given(NUMBERS, st.floats(0.1, 10), st.floats(-5, 5))
def test_pearson_is_blind_to_scale_and_offset(reference, scale, offset):
    noise = np.random.default_rng(1).normal(size=12)
    one = compute_metrics(reference + noise, reference, "e")
    other = compute_metrics(scale * (reference + noise) + offset, reference, "e")
    if one.pearson_r2 is None:
        assert other.pearson_r2 is None
    else:
        assert other.pearson_r2 == pytest.approx(one.pearson_r2, abs=1e-6)


@given(NUMBERS, st.floats(-5, 5))
def test_centred_error_is_blind_to_an_offset(reference, offset):
    predicted = reference + np.random.default_rng(1).normal(size=12)
    one = compute_metrics(predicted, reference, "meV", centred=True)
    other = compute_metrics(predicted + offset, reference, "meV", centred=True)
    assert other.rmse_centred == pytest.approx(one.rmse_centred, abs=1e-9)
    assert one.rmse_centred <= one.rmse + 1e-12


def test_constant_reference_has_no_share_explained():
    metrics = compute_metrics(np.array([1.0, 2.0]), np.array([3.1, 3.1]), "e")
    assert metrics.r2 is None
    assert metrics.pearson_r2 is None
    assert metrics.rmse > 0


@pytest.mark.parametrize(
    ("predicted", "reference", "message"),
    [
        (np.zeros(3), np.zeros(4), "shape"),
        (np.zeros(0), np.zeros(0), "empty"),
        (np.array([np.nan, 0.0]), np.zeros(2), "not finite"),
    ],
)
def test_refused(predicted, reference, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(predicted, reference, "e")
