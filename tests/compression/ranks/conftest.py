import pytest
from geometry import SIDE, Residual, seeded, smooth_images

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.dense.networks import DigitsCNN


@pytest.fixture(scope="package")
def digits_cnn():
    return calibrate(seeded(lambda: DigitsCNN(5, SIDE)), smooth_images(48))


@pytest.fixture(scope="package")
def residual():
    return calibrate(seeded(Residual), smooth_images(48))


@pytest.fixture(params=["digits_cnn", "residual"])
def calibration(request):
    return request.getfixturevalue(request.param)
