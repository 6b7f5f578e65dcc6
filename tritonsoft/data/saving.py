"""Files that are there whole or not at all."""

import contextlib
import os
import secrets
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
    temporary = file.with_name(f".{file.stem[:100]}.{secrets.token_hex(4)}{file.suffix}")
    # Made by `open`, it gets the rights that any new file of this process gets, whatever other threads do meanwhile.
    temporary.open("xb").close()
    try:
        yield temporary
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
