import os

import pytest

from hscc_search.export.run import Refused
from hscc_search.export.runtimes import OPENERS

FILES = {
    "model.pt2": "pt2",
    "model-openvino.xml": "openvino",
    "model-openvino.bin": "openvino",
    "model.pte": "executorch",
}


def large(path):
    """A file of a terabyte, which takes no room."""
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("make", [os.mkfifo, large, lambda path: path.symlink_to("/dev/zero"), lambda path: None])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_or_larger_than_any_model_is_not_read(tmp_path, name, make):
    (tmp_path / "model-openvino.xml").touch()
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    path = (tmp_path / name).with_suffix(".xml") if name.endswith(".bin") else tmp_path / name
    with pytest.raises(Refused, match=rf"{name} is (missing|no regular file|larger than [\d,]+ bytes)$"):
        OPENERS[FILES[name]](path)
