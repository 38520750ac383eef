"""Pareto hyper-parameter search for compressing convolutional networks.

A study, from the file to the front::

    config = StudyConfig.from_file("digits", trials=10)
    study = run_study(config)
    for point in study.front:
        print(point["flops"], point["accuracy"], point.sample)

One network, one setting::

    network, images = load_dense(config)
    compressed = compress(calibrate(network, images), Setting(budget=3))
"""

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hscc_search.compression.calibration.calibrate import Calibration as Calibration
    from hscc_search.compression.calibration.calibrate import calibrate as calibrate
    from hscc_search.compression.calibration.examination import inspect as inspect
    from hscc_search.compression.compress import Compressed as Compressed
    from hscc_search.compression.compress import compress as compress
    from hscc_search.compression.inspection import Inspection as Inspection
    from hscc_search.compression.plan import LayerPlan as LayerPlan
    from hscc_search.compression.setting import Refinement as Refinement
    from hscc_search.compression.setting import Setting as Setting
    from hscc_search.config import StudyConfig as StudyConfig
    from hscc_search.errors import HsccError as HsccError
    from hscc_search.export.loading import load as load
    from hscc_search.pareto.front import knee as knee
    from hscc_search.pareto.points import Measured as Measured
    from hscc_search.pareto.points import Point as Point
    from hscc_search.pareto.selection import select as select
    from hscc_search.session import Study as Study
    from hscc_search.session import read_study as read_study
    from hscc_search.session import run_study as run_study
    from hscc_search.session import search as search
    from hscc_search.study.study import work_on as work_on
    from hscc_search.study.trial import load_dense as load_dense

# The module of each public name. torch and Optuna take seconds to import, so a name is imported when it is first used:
# `hscc-search --help` and a mistyped study file answer at once. Type checkers read the imports above instead.
_MODULES = {
    "Calibration": "hscc_search.compression.calibration.calibrate",
    "Compressed": "hscc_search.compression.compress",
    "HsccError": "hscc_search.errors",
    "Inspection": "hscc_search.compression.inspection",
    "LayerPlan": "hscc_search.compression.plan",
    "Measured": "hscc_search.pareto.points",
    "Point": "hscc_search.pareto.points",
    "Refinement": "hscc_search.compression.setting",
    "Setting": "hscc_search.compression.setting",
    "Study": "hscc_search.session",
    "StudyConfig": "hscc_search.config",
    "calibrate": "hscc_search.compression.calibration.calibrate",
    "compress": "hscc_search.compression.compress",
    "inspect": "hscc_search.compression.calibration.examination",
    "knee": "hscc_search.pareto.front",
    "load": "hscc_search.export.loading",
    "load_dense": "hscc_search.study.trial",
    "read_study": "hscc_search.session",
    "run_study": "hscc_search.session",
    "search": "hscc_search.session",
    "select": "hscc_search.pareto.selection",
    "work_on": "hscc_search.study.study",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("hscc-search")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
