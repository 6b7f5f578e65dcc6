"""Files that are there whole or not at all."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_PREFIX = ".tritonsoft-"
_temporary_files: set[Path] = set()


@contextlib.contextmanager
def atomic_write(file: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file in the same folder, for the block to write to; it becomes ``file`` when the block ends.

    Where the block raises, as on a full disk or an interrupt, the temporary file is removed, and what was in ``file``
    stays. The temporary name begins with ``.tritonsoft-`` and keeps the suffix, by which writers choose a format. If
    ``file`` is a symbolic link, what it leads to is written.

    Args:
        file: what to write, or to write anew.

    Raises:
        OSError: the folder is not there or cannot be written to.

    >>> with atomic_write("numbers.csv") as temporary:  # doctest: +SKIP
    ...     temporary.write_text("1,2,3")
    """
    file = Path(os.path.realpath(file))
    temporary = file.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{file.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less what the process's mask forbids
    _temporary_files.add(temporary)
    try:
        yield temporary
        if file.exists():
            temporary.chmod(stat.S_IMODE(file.stat().st_mode))
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        _temporary_files.discard(temporary)


def write_bytes(file: Path, content: bytes) -> None:
    """`atomic_write` of a new file in a folder of our own, which is made where it is missing; in half of the time.

    Raises:
        OSError: the folder cannot be made, or the file not be written.
    """
    temporary = file.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{file.suffix}")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    _temporary_files.add(temporary)
    try:
        try:
            handle = os.open(temporary, flags, 0o666)
        except FileNotFoundError:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(temporary, flags, 0o666)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        temporary.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        _temporary_files.discard(temporary)


def remove_temporary_files() -> None:
    """What `atomic_write` is writing in this process, for an end that skips its clean-up."""
    for temporary in list(_temporary_files):
        with contextlib.suppress(OSError):
            temporary.unlink()
