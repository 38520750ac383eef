"""How this process keeps its memory."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# glibc, malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Have freed memory kept for the next request instead of given back to the system.

    glibc gives every large block back at once, and the system clears it page by page when the next tensor of the same
    size asks for it. On a CPU that costs a quarter of the time of training and of compressing. The process then stays
    as large as it once was, so only programs may ask for this, not libraries.

    Returns:
        Whether the C library of this process can do that; elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # musl has no such function, and others that have one may not know these parameters.
    return mallopt is not None and all(
        [mallopt(_M_MMAP_MAX, 0) == 1, mallopt(_M_TRIM_THRESHOLD, -1) == 1],
    )


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave out the search for garbage that refers to itself, for work that is short and reads much.

    Python goes through all that it holds again and again while more comes in, which takes up to a third of the time of
    reading a study with ten thousand trials.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
