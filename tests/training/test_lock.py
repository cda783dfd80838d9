"""One training at a time in a folder, and no lock that outlives its process."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from lightning.fabric.utilities import rank_zero_only
from small_training import small_config, write_clusters

from farfield.training.lock import LOCK, RunInUseError, locked
from farfield.training.run import finish, train

HOLDER = """
import sys
from pathlib import Path
from farfield.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock of the run `small_config` makes in ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "small")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_training_in_a_folder_is_refused(holder: subprocess.Popen, tmp_path: Path) -> None:
    config = small_config(write_clusters(tmp_path), tmp_path, epochs=1)
    folder = str(tmp_path / "small")
    for start in (train, lambda c: train(c, resume=True), finish):
        with pytest.raises(RunInUseError, match=rf"{folder}.*process {holder.pid} on .*another `name`"):
            start(config)
    assert [path.name for path in (tmp_path / "small").iterdir()] == [LOCK]  # the refused ones wrote nothing
    holder.communicate("")  # it ends
    assert train(config, quiet=True).model is not None
    assert not (tmp_path / "small" / LOCK).exists()


def test_a_killed_process_leaves_no_lock(holder: subprocess.Popen, tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / "small" / LOCK).exists()  # the file stays, the lock does not
    with locked(tmp_path / "small"):
        pass


def test_only_the_first_of_several_processes_locks(
    holder: subprocess.Popen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with pytest.raises(FileNotFoundError, match="checkpoint"):  # and not that the folder is in use
        finish(small_config(tmp_path / "data", tmp_path))


def test_a_run_that_never_starts_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        train(small_config(tmp_path / "no-such-data.xyz", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_start_at_once_one_at_a_time_holds_the_lock(tmp_path: Path) -> None:
    """The file is deleted and made anew all the time: no two may hold two files of the same name."""
    inside, most, held = 0, 0, 0
    guard = threading.Lock()

    def worker() -> None:
        nonlocal inside, most, held
        for _ in range(200):
            try:
                with locked(tmp_path / "run"):
                    with guard:
                        inside, held = inside + 1, held + 1
                        most = max(most, inside)
                    with guard:
                        inside -= 1
            except RunInUseError:
                pass

    threads = [threading.Thread(target=worker) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert held > 1


def test_a_file_system_without_locks_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match="No locks available.*no second training"), locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
