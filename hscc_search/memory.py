"""Settings of the C library's allocator and of Python's garbage collector that save time."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Keep freed memory for later requests instead of giving it back to the system.

    By default glibc gives every large block back at once, and the system clears its pages again for the next tensor of
    the same size, which on a CPU costs a quarter of the time of training and of compressing. A process that keeps its
    memory never shrinks, so this is for programs to call and not for libraries.

    Returns:
        Whether the C library can do that; where it cannot, nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # musl has no such function, and other C libraries may have one that does not know these parameters.
    return mallopt is not None and all(
        [mallopt(_M_MMAP_MAX, 0) == 1, mallopt(_M_TRIM_THRESHOLD, -1) == 1],
    )


@contextmanager
def uncollected() -> Iterator[None]:
    """Switch Python's garbage collector off for short work that makes many objects.

    The collector traverses all objects again and again while their number grows, which takes up to a third of the time
    of reading a study with ten thousand trials.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
