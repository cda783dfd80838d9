"""What a training shows: a progress bar on terminals, sparse lines elsewhere, CSV and TensorBoard logs, a table."""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from farfield.training.checkpoint import write_text

#: Units of the metrics, by the part they belong to.
UNITS = {"energy": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}


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
        self.last_line = 0.0

    def start(self, epoch: int) -> None:
        """Open the bar and the logs; entries of TensorBoard from ``epoch`` on are those of a killed run: dropped."""
        if not self.active:
            return
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

    def epoch(self, row: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """Take the figures of an epoch."""
        if not self.active:
            return
        for key, value in row.items():
            if key != "epoch":
                self.writer.add_scalar(key, value, row["epoch"])
        self.write_csv(history)
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

    def write_csv(self, history: list[dict[str, Any]]) -> None:
        """Write all epochs to ``metrics.csv``: whole each time, so that a resumed run has no row twice."""
        columns = list(dict.fromkeys(key for row in history for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_text(self.directory / "metrics.csv", text.getvalue())

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
            part, _, kind = key.partition("_")
            cells = [f"{metrics[key]:.3f}" if key in metrics else "–" for metrics in columns.values()]
            table.add_row(f"{part} {kind.upper()} ({UNITS[part]})", *cells)
        output = Console(quiet=self.quiet)
        output.print(table)
        for note in notes:
            output.print(note, highlight=False, markup=False, soft_wrap=True)
