"""What a training shows: a progress bar on terminals, sparse lines elsewhere, CSV and TensorBoard logs, a table."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from farfield.files import write_text

#: Units of the metrics, by the part they belong to: thousandths of those of the loss.
UNITS = {
    "energy": "meV/atom",
    "forces": "meV/Å",
    "stress": "meV/Å³",
    "total_charge": "me",
    "dipole": "me·Å",
    "charges": "me",
    "polarizability": "10⁻³ Å³",
    "born_charges": "me",
    "interaction_energy": "meV",
    "interaction_forces": "meV/Å",
}


class History:
    """Figures of all epochs: one row of named numbers each.

    Kept as a table of numbers, since it goes into every checkpoint: thousands of rows cost nothing there.
    """

    def __init__(self, columns: Sequence[str] = ()) -> None:
        self.columns = list(columns)
        self.rows: list[list[float]] = []

    def add(self, row: dict[str, float]) -> None:
        """Add the figures of an epoch; those that it lacks are NaN."""
        self.rows.append([float(row.get(name, math.nan)) for name in self.columns])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, float]:
        pairs = zip(self.columns, self.rows[index], strict=True)
        return {name: value for name, value in pairs if not math.isnan(value)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state: names, and a tensor of numbers."""
        values = torch.tensor(self.rows, dtype=torch.float64).reshape(len(self.rows), len(self.columns))
        return {"columns": list(self.columns), "values": values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        self.columns, self.rows = list(state["columns"]), state["values"].tolist()


class CsvTable:
    """``metrics.csv``: written anew when opened, then a line for each epoch.

    A killed process may leave a last line that is cut off, or lines of epochs that will be repeated: opening the table
    with the history of the checkpoint mends both.
    """

    def __init__(self, path: Path, history: History) -> None:
        self.columns = history.columns
        lines = [",".join(self.columns), *(self._line(history[i]) for i in range(len(history)))]
        write_text(path, "\n".join(lines) + "\n")
        self.file = path.open("a", encoding="utf-8")

    def _line(self, row: dict[str, float]) -> str:
        return ",".join(_number(row[name]) if name in row else "" for name in self.columns)

    def add(self, row: dict[str, float]) -> None:
        """Add a line."""
        self.file.write(self._line(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.8g}"


class Reporter:
    """Shows progress and writes logs; does nothing on any process but the first.

    Parameters
    ----------
    directory
        Directory of the run.
    epochs, steps
        Length of the training and of an epoch.
    active
        Whether this is the first process.
    quiet
        Show nothing; by default the bar is shown only where standard error is a terminal, and a line at most every
        30 seconds elsewhere.
    """

    def __init__(self, directory: Path, epochs: int, steps: int, *, active: bool = True, quiet: bool = False) -> None:
        self.directory, self.active, self.quiet = directory, active, quiet
        self.console = Console(file=sys.stderr, quiet=quiet or not active, soft_wrap=True)
        self.epochs, self.steps = epochs, steps
        self.progress: Progress | None = None
        self.task: Any = None
        self.writer: Any = None
        self.table: CsvTable | None = None
        self.last_line = 0.0

    def start(self, epoch: int, history: History) -> None:
        """Open the bar and the logs; entries from ``epoch`` on are those of a killed run and are dropped."""
        if not self.active:
            return
        self.table = CsvTable(self.directory / "metrics.csv", history)
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.directory / "tensorboard"), purge_step=epoch)
        if self.console.is_terminal and not self.quiet:
            self.progress = Progress(
                TextColumn("epoch"),
                MofNCompleteColumn(),
                BarColumn(bar_width=30),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
            )
            self.progress.start()
            self.task = self.progress.add_task("training", total=self.epochs, completed=epoch, figures="")

    def batch(self, epoch: int, done: int) -> None:
        """Move the bar within an epoch."""
        if self.progress is not None:
            self.progress.update(self.task, completed=epoch + done / self.steps)

    def epoch(self, row: dict[str, float]) -> None:
        """Take the figures of an epoch."""
        if not self.active:
            return
        for key, value in row.items():
            if key != "epoch":
                self.writer.add_scalar(key, value, row["epoch"])
        if self.table is not None:
            self.table.add(row)
        part = "validation" if "validation/loss" in row else "train"
        figures = "  ".join(
            f"{symbol} {row[key]:.3g} {UNITS[quantity]}"
            for symbol, quantity in (("E", "energy"), ("F", "forces"))
            if (key := f"{part}/{quantity}_rmse") in row
        )
        if self.progress is not None:
            self.progress.update(self.task, completed=row["epoch"] + 1, figures=figures)
        elif time.monotonic() - self.last_line > 30 or row["epoch"] + 1 == self.epochs:
            self.last_line = time.monotonic()
            self.console.print(
                f"epoch {row['epoch'] + 1}/{self.epochs}  loss {row['train/loss']:.4g}  {figures}  "
                f"lr {row['learning_rate']:.2g}  {row['seconds']:.0f} s",
                highlight=False,
            )

    def say(self, message: str) -> None:
        """Print a line."""
        self.console.print(message, highlight=False, markup=False)

    def close(self) -> None:
        """Close bar and logs."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
        if self.writer is not None:
            self.writer.close()
            self.writer = None
        if self.table is not None:
            self.table.close()
            self.table = None

    def summary(self, title: str, columns: dict[str, dict[str, float]], notes: list[str]) -> None:
        """Print the table at the end on standard output: one row per metric, one column per part of the data."""
        if not self.active:
            return
        table = Table(title=title)
        table.add_column("metric")
        for name in columns:
            table.add_column(name, justify="right")
        keys = list(dict.fromkeys(key for metrics in columns.values() for key in metrics))
        for key in keys:
            part, _, kind = key.rpartition("_")
            cells = [f"{metrics[key]:.3f}" if key in metrics else "–" for metrics in columns.values()]
            table.add_row(f"{part} {kind.upper()} ({UNITS[part]})", *cells)
        output = Console(quiet=self.quiet)
        output.print(table)
        for note in notes:
            output.print(note, highlight=False, markup=False, soft_wrap=True)
