"""Ctrl-C ends the command within a second, whatever it is doing, and leaves no half file."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from tritonsoft.data.saving import remove_temporary_files

EXIT_CODE = 130  # what shells give a program that SIGINT ended
SECONDS_TO_UNWIND = 0.3


@contextlib.contextmanager
def ending_on_interrupt() -> Iterator[None]:
    """For a block that is all of a program: after SIGINT the program ends with exit code 130.

    Python raises KeyboardInterrupt when native code returns, and ends a program when its threads have ended: either may
    take long. So a thread of its own hears of the signal, and ends the process where a moment was too short for that.
    """
    interrupted = threading.Event()

    def interrupt(*_: Any) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    hears, tells = os.pipe()
    os.set_blocking(tells, False)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)  # gets a byte as soon as a signal comes
    handler = signal.signal(signal.SIGINT, interrupt)
    threading.Thread(target=_end_late, args=(hears,), name="interrupt", daemon=True).start()
    try:
        yield
    finally:
        if interrupted.is_set():
            _say_interrupted()
            raise SystemExit(EXIT_CODE)
        signal.signal(signal.SIGINT, handler)
        signal.set_wakeup_fd(-1)
        os.close(tells)  # ends the thread


def _end_late(hears: int) -> None:
    while received := os.read(hears, 64):
        if signal.SIGINT in received:
            time.sleep(SECONDS_TO_UNWIND)
            for process in multiprocessing.active_children():  # they would wait for ever
                process.kill()
            remove_temporary_files()
            _say_interrupted()
            os._exit(EXIT_CODE)
    os.close(hears)


def _say_interrupted() -> None:
    """Past all buffers and their locks; a terminal gets back the cursor that progress bars hide."""
    with contextlib.suppress(OSError):
        os.write(2, b"\r\x1b[K\x1b[?25hinterrupted\n" if os.isatty(2) else b"interrupted\n")
