"""The study file: YAML, checked into one immutable object, and stored with the study it describes.

``yaml_file`` reads it as a tree of plain values and ``study_file`` resolves its paths, the sections say what is allowed
(``data`` with ``pictures``, ``dense``, ``space`` and ``metrics``, by the rules of ``section``), ``study`` puts them
together, ``explain`` words an error, and ``reference`` writes ``REFERENCE.md``.
"""

from hscc_search.config.data import LEAKS, ColumnsConfig, CopyKind, DataConfig, SplitConfig
from hscc_search.config.dense import IN_MEMORY, FinetuningConfig, ModelConfig, TrainingConfig
from hscc_search.config.metrics import ConstraintConfig, LatencyConfig
from hscc_search.config.pictures import Resize, Shape, shape_of, sized, window_bounds
from hscc_search.config.space import (
    BudgetRange,
    ClusterStrategy,
    CompressionConfig,
    EnergyRange,
    IntegerRange,
    Precision,
    RegionStrategy,
    SpaceConfig,
)
from hscc_search.config.study import DEFAULT_STORAGE, StudyConfig
from hscc_search.config.study_file import find_study_file

__all__ = [
    "DEFAULT_STORAGE",
    "IN_MEMORY",
    "LEAKS",
    "BudgetRange",
    "ClusterStrategy",
    "ColumnsConfig",
    "CompressionConfig",
    "ConstraintConfig",
    "CopyKind",
    "DataConfig",
    "EnergyRange",
    "FinetuningConfig",
    "IntegerRange",
    "LatencyConfig",
    "ModelConfig",
    "Precision",
    "RegionStrategy",
    "Resize",
    "Shape",
    "SpaceConfig",
    "SplitConfig",
    "StudyConfig",
    "TrainingConfig",
    "find_study_file",
    "shape_of",
    "sized",
    "window_bounds",
]
