import json
import os

import pytest

from hscc_search.errors import ExportError
from hscc_search.export.index import FORMAT, INDEX, Asked, Index

EMPTY = Index(Asked("digits", "data", "weights", 0, False, ()), (), ("a", "b"), ("accuracy",), None)


def large(path):
    """A file of a gigabyte, which takes no room."""
    path.touch()
    os.truncate(path, 1 << 30)


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        large,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(json.dumps({"format": FORMAT, "asked": 7})),
    ],
    ids=["a pipe", "a folder", "large", "a device", "nested", "a list", "a number"],
)
def test_an_index_that_is_none_is_refused_in_one_line_and_not_read(tmp_path, make):
    make(tmp_path / INDEX)
    with pytest.raises(ExportError, match="exists and holds no export of a front: name one that does not") as refused:
        EMPTY.claim(tmp_path)
    assert "\n" not in str(refused.value)


def test_the_index_of_the_same_front_is_taken(tmp_path):
    EMPTY.claim(tmp_path / "front")
    EMPTY.claim(tmp_path / "front")
