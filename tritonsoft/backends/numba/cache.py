"""Compiled functions on disk: the next process loads in a moment what takes a minute to compile.

Nothing depends on them: what cannot be read is compiled anew, and what cannot be written is compiled by every process.
"""

import contextlib
import functools
import hashlib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core import serialize
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache

_PACKAGE = Path(__file__).parent
_warned: list[str] = []  # the warning of this process, once it was given


@functools.cache
def source_stamp() -> str:
    """A digest of all that compiled functions are made from; empty where there are no such files, as in an archive.

    What is kept holds inlined functions of other files and their constants, while Numba looks at one file alone.
    """
    digest = hashlib.sha256()
    files = sorted([*_PACKAGE.glob("*.py"), *_PACKAGE.parents[1].glob("geometry.py")])
    for file in files:
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest() if files else ""


def _warn_once(directory: str, reason: str) -> None:
    """Warns once, however many functions meet the same trouble."""
    if not _warned:
        _warned.append(
            f"the Numba cache in {directory} cannot be used ({reason}): tritonsoft compiles its functions anew, which "
            "takes up to a minute. NUMBA_CACHE_DIR names another directory"
        )
        warnings.warn(_warned[0], RuntimeWarning, stacklevel=2)


class _StampedImpl(CompileResultCacheImpl):  # type: ignore[misc]  # Numba is not typed
    """Keeps beside a function what it was made from, and a digest of it: of damaged code Numba would run what is left.

    The stamp stands here, in what is loaded itself, so that no change of Numba's can keep it from being looked at.
    """

    def reduce(self, data: Any) -> Any:
        payload = serialize.dumps(super().reduce(data))
        return source_stamp(), hashlib.sha256(payload).digest(), payload

    def rebuild(self, target_context: Any, reduced_data: Any) -> Any:
        stamp, digest, payload = reduced_data
        if stamp != source_stamp():
            return None  # as if there were none
        if digest != hashlib.sha256(payload).digest():
            raise ValueError("a file is damaged")
        return super().rebuild(target_context, pickle.loads(payload))


class _Cache(FunctionCache):  # type: ignore[misc]  # Numba is not typed
    """Numba's cache of one function, without its errors."""

    _impl_class = _StampedImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with self._without_errors():
            return super().load_overload(sig, target_context)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with self._without_errors():
            super().save_overload(sig, data)

    @contextlib.contextmanager
    def _without_errors(self) -> Any:
        try:
            yield
        except Exception as failure:  # whatever a file holds: unpickling it may raise anything
            _warn_once(self.cache_path, f"{type(failure).__name__}: {failure}")
            # Files that no longer fit each other must not be read again, and deleting needs no room on the disk.
            with contextlib.suppress(OSError):
                for file in Path(self.cache_path).glob(f"{self._impl.filename_base}.*"):
                    file.unlink(missing_ok=True)


def cache_of(function: Callable[..., Any]) -> Any:
    """Where a dispatcher of Numba's finds what earlier processes have compiled of a function."""
    try:
        cache = _Cache(function)
    except (RuntimeError, OSError) as failure:  # no directory that can be written to
        _warn_once("__pycache__", str(failure))
        return NullCache()
    # What would be kept without a stamp must not be used: it could be that of another version of this package.
    return cache if source_stamp() and isinstance(cache._impl, _StampedImpl) else NullCache()
