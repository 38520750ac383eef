"""Pareto hyper-parameter search for compressing convolutional networks.

A study, from the file to the front::

    config = StudyConfig.from_file("digits", trials=10)
    study = run_study(config)
    for point in study.front:
        print(point.flops, point.accuracy, point.settings)

One network, one setting::

    calibration = calibrate(network, images)
    compressed = compress(network, calibration, Setting(regions=4, clusters=1, energy=0.9))
"""

from hscc_search.compression.calibration import Calibration, calibrate
from hscc_search.compression.hscc import Compressed, LayerPlan, Setting, compress
from hscc_search.config import StudyConfig
from hscc_search.errors import HsccError
from hscc_search.export.bundle import load
from hscc_search.search.front import Point, knee, select
from hscc_search.search.study import Study, read_study, run_study

__all__ = [
    "Calibration",
    "Compressed",
    "HsccError",
    "LayerPlan",
    "Point",
    "Setting",
    "Study",
    "StudyConfig",
    "calibrate",
    "compress",
    "knee",
    "load",
    "read_study",
    "run_study",
    "select",
]
