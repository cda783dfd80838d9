"""The report: one file that needs no other, with everything in it."""

import dataclasses
import re

import numpy as np
import pytest
from labelled_structures import Oracle, water_dimers

from farfield.datasets.dataset import label_structures
from farfield.evaluation.comparison import QUANTITIES, Comparison
from farfield.evaluation.evaluate import evaluate
from farfield.evaluation.parity import DENSITY_FROM, format_number, format_share, parity_figure
from farfield.evaluation.report import write_report


@pytest.fixture(scope="module")
def evaluation():
    frames = water_dimers(30)
    model = Oracle(label_structures(frames), forces=lambda label: 0.99 * label)
    return evaluate(model, frames, name="<b>toy</b> & model")


@pytest.fixture(scope="module")
def page(evaluation, tmp_path_factory):
    return write_report(evaluation, tmp_path_factory.mktemp("here") / "report")


@pytest.fixture
def text(page):
    return page.read_text(encoding="utf-8")


def test_self_contained(evaluation, page, text):
    assert page.name == "index.html"
    # nothing is fetched: every source is inside, and there are no style sheets, scripts or fonts from elsewhere
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', text))
    assert not re.search(r"<link|@import|url\(|https?://", text)
    assert text.count("<figure>") == len(evaluation.comparisons)
    pictures = sorted(path.name for path in page.parent.glob("*.png"))
    assert pictures == sorted(f"parity_{key}.png" for key in evaluation.comparisons)


@pytest.mark.parametrize("key", QUANTITIES)
def test_one_quantity_makes_a_report(evaluation, tmp_path, key):
    reference = np.random.default_rng(0).normal(size=(30, 3))
    only = Comparison(key, 1.1 * reference, reference, np.arange(30))
    text = write_report(dataclasses.replace(evaluation, comparisons={key: only}), tmp_path).read_text(encoding="utf-8")
    worst = int(np.square(reference).sum(axis=1).argmax())
    title = f"{QUANTITIES[key].title} ({QUANTITIES[key].unit})"
    first = re.search(r"<h2>Worst structures</h2>.*?<tbody>.*?<td>H4O2</td>\s*<td[^>]*>(\d+)</td>", text, re.DOTALL)
    assert title in text
    assert first is not None
    assert int(first[1]) == worst


def test_names_are_escaped(text):
    assert "<b>toy</b>" not in text
    assert "&lt;b&gt;toy&lt;/b&gt; &amp; model" in text


def test_tables(text):
    for title in ("Energy per atom", "Forces", "Dipole", "Quadrupole", "Charges", "Born charges"):
        assert f"<td>{title}</td>" in text
    assert "By element" in text
    assert "Worst structures" in text
    assert "<td>H4O2</td>" in text


def test_many_points_make_a_density(evaluation):
    from matplotlib.collections import PolyCollection

    kinds = {}
    for key in ("born_charges", "dipole"):
        comparison = evaluation.comparisons[key]
        kinds[key] = any(isinstance(part, PolyCollection) for part in parity_figure(comparison).axes[0].collections)
        assert kinds[key] == (comparison.reference.size > DENSITY_FROM)
    assert kinds == {"born_charges": True, "dipole": False}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (12.3456, "12.3"), (1234.5, "1234"), (-0.5, "−0.500"), (0.0, "0.00"), (1e-7, "1.00e-07")],
)
def test_numbers(value, text):
    assert format_number(value) == text


def test_shares_are_never_rounded_up_to_one():
    assert format_share(0.99999) == "0.9999"
    assert format_share(1.0) == "1.0000"
    assert format_share(None) == "–"
