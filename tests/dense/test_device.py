import pytest
import torch

from hscc_search.dense.device import choose_device
from hscc_search.errors import ModelError


def test_the_device_is_what_is_there():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match="--device cpu"):
        choose_device("cuda")
