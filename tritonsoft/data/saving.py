"""Files that are there whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(file: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file in the same folder, for the block to write to; it takes the name ``file`` when the block ends.

    Where the block raises, as on a full disk or an interrupt, the temporary file is removed, and a file of that name
    stays as it was. The temporary name begins with a dot and keeps the suffix, by which writers choose a format.

    Raises:
        OSError: the folder is not there or cannot be written to.

    >>> with atomic_write("numbers.csv") as temporary:  # doctest: +SKIP
    ...     temporary.write_text("1,2,3")
    """
    file = Path(file)
    handle, name = tempfile.mkstemp(prefix=f".{file.stem[:100]}.", suffix=file.suffix, dir=file.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        # mkstemp lets nobody else read; a result gets the rights that any new file of this process gets.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        yield temporary
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
