"""Pareto hyper-parameter search for compressing convolutional networks.

A study, from the file to the front::

    config = StudyConfig.from_file("digits", trials=10)
    study = run_study(config)
    for point in study.front:
        print(point["flops"], point["accuracy"], point.settings)

One network, one setting::

    network, images = load_dense(config)
    compressed = compress(calibrate(network, images), Setting(budget=3))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hscc_search.compression.calibration.calibrate import Calibration, calibrate
    from hscc_search.compression.compress import Compressed, compress
    from hscc_search.compression.plan import LayerPlan
    from hscc_search.compression.setting import Setting
    from hscc_search.config import StudyConfig
    from hscc_search.errors import HsccError
    from hscc_search.export.bundle import load
    from hscc_search.pareto.front import knee
    from hscc_search.pareto.points import Point
    from hscc_search.pareto.selection import select
    from hscc_search.search.stored_study import Study, read_study
    from hscc_search.search.study import load_dense, run_study, work_on

# torch and Optuna take seconds to import, so a name is fetched when it is first used: `hscc-search --help` and a
# mistyped study file answer at once.
_HOME = {
    "Calibration": "compression.calibration.calibrate",
    "Compressed": "compression.compress",
    "HsccError": "errors",
    "LayerPlan": "compression.compress",
    "Point": "pareto.points",
    "Setting": "compression.setting",
    "Study": "search.record",
    "StudyConfig": "config",
    "calibrate": "compression.calibration.calibrate",
    "compress": "compression.compress",
    "knee": "pareto.front",
    "load": "export.bundle",
    "load_dense": "search.study",
    "read_study": "search.record",
    "run_study": "search.study",
    "select": "pareto.front",
    "work_on": "search.study",
}

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
    "load_dense",
    "read_study",
    "run_study",
    "select",
    "work_on",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
