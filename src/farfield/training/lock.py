"""One training at a time in the folder of a run."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

#: Name of the file that is locked while a training runs; it says which process that is.
LOCK = ".lock"


class RunInUseError(OSError):
    """Another process trains in the folder of this run."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made where it is missing.

    The lock is one of the operating system (`flock <https://man7.org/linux/man-pages/man2/flock.2.html>`_): it ends
    with the process that holds it, however that dies, so that a killed run can be resumed at once. Where the system or
    the file system has no such locks, a warning says so and nothing is held.

    Parameters
    ----------
    directory
        Folder of the run. If nothing was written there, it is gone afterwards.

    Raises
    ------
    RunInUseError
        If another process holds the lock.
    """
    if sys.platform == "win32":
        warnings.warn("no lock of the run's folder on Windows: start no second training in it", stacklevel=3)
        yield
        return
    path = directory / LOCK
    handle = _acquired(path)
    try:
        yield
    finally:
        # Deleted before it is let go: whoever opens the path afterwards makes a new file.
        path.unlink(missing_ok=True)
        os.close(handle)
        with suppress(OSError):  # not empty: something was written
            directory.rmdir()


def _acquired(path: Path) -> int:
    """Open and lock a file; return its descriptor, which child processes do not inherit."""
    failure: OSError = RunInUseError(f"{path.parent} is being used by other processes: try again")
    # Whoever lets go deletes the file, and an empty folder: that may happen between any two of these steps.
    for _ in range(100):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, FileExistsError) as error:
            failure = error
            continue
        try:
            _lock(handle, path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(handle)):
                    os.truncate(handle, 0)
                    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # a file that was deleted meanwhile is nobody's lock
    raise failure


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 200).decode(errors="replace") or "another process"
        raise RunInUseError(
            f"a training is running in {path.parent} already ({holder}): wait for its end or stop it, or choose "
            "another `name`"
        ) from None
    except OSError as error:  # a network file system without locks
        warnings.warn(f"{path.parent} cannot be locked ({error}): start no second training in it", stacklevel=5)
