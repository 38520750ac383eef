import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hscc_search.data import rows as module
from hscc_search.data.rows import Rows

VALUES = np.arange(60, dtype=np.uint8).reshape(20, 3)


@given(st.lists(st.integers(0, 19), max_size=12), st.data())
def test_rows_are_those_of_the_array_at_the_chosen_indices(indices, data):
    chosen = np.array(indices, np.int64)
    rows, expected = Rows(VALUES, chosen), VALUES[chosen]
    assert (len(rows), rows.shape, rows.dtype) == (len(expected), expected.shape, expected.dtype)
    key = data.draw(st.slices(len(indices)))
    np.testing.assert_array_equal(rows[key], expected[key])
    np.testing.assert_array_equal(np.asarray(rows), expected)
    np.testing.assert_array_equal(list(rows), list(expected))
    if indices:
        positions = np.array(data.draw(st.lists(st.integers(0, len(indices) - 1))), np.int64)
        np.testing.assert_array_equal(rows[positions], expected[positions])
        np.testing.assert_array_equal(rows[-1], expected[-1])


def resident():
    """Bytes of this process that are in memory, mapped files included."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="this system has no such advice")
def test_what_was_read_of_a_large_map_leaves_the_memory_again(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.uint8, (200, 1 << 20))
    array[:] = 7
    array.flush()
    assert array.nbytes >= module._LARGE
    rows = Rows(np.load(tmp_path / "large.npy", mmap_mode="r"), np.arange(200))
    del array
    before = resident()
    assert sum(int(rows[first : first + 10].sum(dtype=np.int64)) for first in range(0, 200, 10)) == 7 * 200 << 20
    assert resident() - before < 50 << 20  # a batch, not the whole map of 200 MB
