"""One HTML file that tells everything about an evaluation; nothing in it is loaded from elsewhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from farfield.evaluation.comparison import QUANTITIES
from farfield.evaluation.evaluate import Evaluation
from farfield.evaluation.parity import format_number, format_share, save_parity
from farfield.files import write_text

_CSS = """
:root { --ink: #1f2933; --muted: #616e7c; --line: #e4e7eb; --accent: #1f6f8b; --paper: #ffffff; --wash: #f5f7f8; }
* { box-sizing: border-box; }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  background: var(--wash); margin: 0; }
main { max-width: 1120px; margin: 0 auto; padding: 2.2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem; }
.lead { color: var(--muted); margin: 0 0 1.4rem; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem;
  overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .38rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--muted); font-size: .86rem; }
tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1rem; }
.plots figure { margin: 0; background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: .6rem; }
.plots img { width: 100%; height: auto; display: block; }
.notes { border-left: 4px solid #d97706; background: #fffaf0; padding: .7rem 1rem; border-radius: 0 8px 8px 0; }
.notes p { margin: .25rem 0; }
.muted { color: var(--muted); font-size: .88rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.4rem; margin: 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
dl dl { border-left: 2px solid var(--line); padding-left: .9rem; }
"""


def html_table(header: list[str], rows: list[list[str]]) -> str:
    """Make a table of plain text cells."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def embedded_picture(path: Path, text: str) -> str:
    """Make a figure whose picture travels inside the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<figure><img alt="{escape(text)}" src="data:image/png;base64,{data}"></figure>'


def html_page(title: str, body: str) -> str:
    """Wrap a body in the page's style."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_CSS}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def metrics_rows(evaluation: Evaluation) -> list[list[str]]:
    """Rows of the table of metrics: quantity, unit, MAE, RMSE, centred RMSE, R², r², number of values."""
    rows = []
    for comparison in evaluation.comparisons.values():
        metrics = comparison.metrics
        rows.append(
            [
                comparison.quantity.title,
                metrics.unit,
                format_number(metrics.mae),
                format_number(metrics.rmse),
                "" if metrics.rmse_centred is None else format_number(metrics.rmse_centred),
                format_share(metrics.r2),
                format_share(metrics.pearson_r2),
                f"{metrics.count}",
            ]
        )
    return rows


METRICS_HEADER = ["Quantity", "Unit", "MAE", "RMSE", "Centred", "R²", "r²", "Values"]


def element_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the RMSE by element, for every atomic quantity."""
    from ase.data import chemical_symbols

    atomic = {key: c for key, c in evaluation.comparisons.items() if len(c.numbers)}
    header = ["Element", "Atoms", *(f"{c.quantity.title}, RMSE ({c.quantity.unit})" for c in atomic.values())]
    numbers = sorted({number for c in atomic.values() for number in c.by_element})
    rows = []
    for number in numbers:
        count = max(int((c.numbers == number).sum()) for c in atomic.values())
        cells = [format_number(c.by_element[number].rmse) if number in c.by_element else "" for c in atomic.values()]
        rows.append([chemical_symbols[number], str(count), *cells])
    return header, rows


def worst_rows(evaluation: Evaluation, count: int = 10) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the structures with the largest force RMSE (or of the first quantity there is)."""
    shown = dict(sorted(evaluation.comparisons.items(), key=lambda item: item[0] != "forces"))
    errors = {key: comparison.rmse_of_systems() for key, comparison in shown.items()}
    leading = next(iter(errors.values()))
    worst = sorted(leading, key=lambda index: -leading[index])[:count]
    header = ["Structure", "Index", *(f"{c.quantity.title} ({c.quantity.unit})" for c in shown.values())]
    rows = [
        [
            evaluation.formulas[index] if index < len(evaluation.formulas) else "",
            str(index),
            *(format_number(values.get(index)) for values in errors.values()),
        ]
        for index in worst
    ]
    return header, rows


def _definitions(values: Mapping[str, Any]) -> str:
    items = []
    for key, value in values.items():
        if value is None or value in ("", {}, []):
            continue
        if isinstance(value, Mapping):
            shown = _definitions(value)
        elif isinstance(value, list | tuple):
            shown = escape(", ".join(str(item) for item in value))
        elif isinstance(value, float | np.floating):
            shown = escape(f"{value:.8g}")
        else:
            shown = escape(str(value))
        items.append(f"<dt>{escape(str(key).replace('_', ' '))}</dt><dd>{shown}</dd>")
    return f"<dl>{''.join(items)}</dl>"


def report_body(evaluation: Evaluation, pictures: Mapping[str, Path]) -> str:
    """Inner HTML of the report, given the pictures by key."""
    parts = [
        f"<h1>{escape(evaluation.model)} on {escape(evaluation.data)}</h1>",
        f'<p class="lead">{evaluation.n_systems} structures, {evaluation.n_atoms} atoms. Reference energies and the '
        "sign of the charges are those stored in the model; nothing was fitted to these data.</p>",
        html_table(METRICS_HEADER, metrics_rows(evaluation)),
        '<p class="muted">R² = 1 − SS<sub>res</sub>/SS<sub>tot</sub>; r² is the squared Pearson correlation, blind to '
        "scale and offset. All Cartesian components are pooled. Centred is the RMSE that is left without the mean "
        "error. Quadrupoles are traceless, about the geometric centre, six upper components.</p>",
    ]
    if evaluation.notes:
        notes = "".join(f"<p>{escape(note)}</p>" for note in evaluation.notes)
        parts.append(f'<h2>To be known</h2><div class="notes">{notes}</div>')
    figures = [
        embedded_picture(path, f"{QUANTITIES[key].title}: model against label") for key, path in pictures.items()
    ]
    parts.append(f'<h2>Model against label</h2><div class="plots">{"".join(figures)}</div>')
    header, rows = element_rows(evaluation)
    if rows:
        parts.append(f"<h2>By element</h2>{html_table(header, rows)}")
    header, rows = worst_rows(evaluation)
    parts.append(f"<h2>Worst structures</h2>{html_table(header, rows)}")
    parts.append(
        '<p class="muted">RMSE of each structure, sorted by the first column of errors; the index counts from 0 in the '
        "file.</p>"
    )
    if evaluation.card:
        parts.append(f'<h2>The model</h2><div class="card">{_definitions(evaluation.card)}</div>')
    record = json.dumps(evaluation.as_dict(), ensure_ascii=False).replace("<", "\\u003c")
    parts.append(f'<script type="application/json" id="metrics">{record}</script>')
    return "".join(parts)


def write_report(evaluation: Evaluation, directory: str | Path) -> Path:
    """Write ``index.html``, which holds everything, and beside it the pictures as PNG files.

    Returns
    -------
    Path
        The page.
    """
    directory = Path(directory)
    pictures = save_parity(evaluation.comparisons, directory)
    page = directory / "index.html"
    write_text(page, html_page(f"{evaluation.model} on {evaluation.data}", report_body(evaluation, pictures)))
    return page
