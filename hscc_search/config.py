"""The study file: YAML, checked into one immutable object, and stored with the study it describes."""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hscc_search.errors import ConfigError

# Fields that say how long, where and from where; a study goes on when they change. What the places hold is
# compared by content instead: the data's fingerprint and the dense network's.
HARMLESS = ("trials", "timeout", "patience", "sampler", "start", "storage", "data.path", "model.checkpoint")

DEFAULT_STORAGE = "sqlite:///hscc-studies.db"

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(_Section):
    """Which images, at which size, divided how."""

    source: Literal["folder", "digits"] = "folder"
    path: Path | None = Field(None, strict=False, description="folder with one folder of images per class")
    image_size: int = Field(224, ge=8, le=1024, description="side of the square images, in pixels")
    validation: float = Field(0.15, gt=0, lt=0.5, description="share of the images that the search measures on")
    test: float = Field(0.15, gt=0, lt=0.5, description="share of the images kept for the export")
    split_seed: int = Field(0, ge=0, lt=2**32)
    mean: tuple[float, ...] = Field(
        (0.485, 0.456, 0.406), strict=False, min_length=3, max_length=3, description="per channel, of 0..1"
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.229, 0.224, 0.225), strict=False, min_length=3, max_length=3
    )

    @model_validator(mode="after")
    def _path_fits_source(self) -> "DataConfig":
        if self.source == "folder" and self.path is None:
            raise ValueError("source 'folder' needs a path here or --data DIR on the command line")
        if self.source == "digits" and self.path is not None:
            raise ValueError("source 'digits' takes no path: use source 'folder' for your own images")
        return self


class ModelConfig(_Section):
    """Which dense network."""

    name: str = Field(description="'digits_cnn', a torchvision or timm classifier, or your own 'module:function'")
    weights: str | None = Field(None, description="published weights to start from, such as DEFAULT")
    checkpoint: Path | None = Field(
        None, strict=False, description="trained weights; without it the network is trained"
    )


class TrainingConfig(_Section):
    """How the dense network is trained: SGD with Nesterov momentum under a one-cycle schedule."""

    epochs: int = Field(45, ge=1)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(0.005, gt=0, description="the highest of the schedule")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    flip: bool = Field(True, description="mirror half of the images left to right")
    affine: bool = Field(True, description="turn by up to 15 degrees, shift by up to 10 %, scale by 0.85 to 1.15")
    mixup: float = Field(0.0, ge=0, description="parameter of the Beta distribution; 0 mixes nothing")


class FinetuningConfig(_Section):
    """How a compressed network is trained further, with the dense network as its teacher.

    Everything that is not said here is as in the training of the dense network.
    """

    epochs: int = Field(0, ge=0, description="0 leaves compressed networks as they are")
    learning_rate: float = Field(0.002, gt=0, description="the highest of the schedule")
    distillation: float = Field(0.5, ge=0, le=1, description="weight of the teacher's scores against the labels")
    temperature: float = Field(2.0, gt=0, description="that softens the scores of both")


RegionStrategy = Literal["grid", "bands", "kmeans", "slic", "random", "none"]
ClusterStrategy = Literal["coactivation", "contiguous", "random", "none"]


class CompressionConfig(_Section):
    """What all trials of a study have in common."""

    region_strategy: RegionStrategy = "grid"
    cluster_strategy: ClusterStrategy = "coactivation"
    region_gain: float = Field(
        0.1, ge=0, le=1, description="with a budget: a layer whose regions gain less stays in one piece; 0 divides all"
    )
    rank_multiple: int = Field(1, ge=1, le=64, description="total ranks are multiples of it; 8 and 16 suit kernels")
    calibration_images: int = Field(512, ge=8, description="taken from the train part")


class _Range(_Section):
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class IntegerRange(_Range):
    """Whole numbers from low to high."""

    low: int = Field(ge=1)
    high: int = Field(ge=1)


class EnergyRange(_Range):
    """Shares of variance from low to high."""

    low: float = Field(gt=0, le=1)
    high: float = Field(gt=0, le=1)
    levels: int | None = Field(None, ge=2, le=1000, description="evenly spaced values; without it all between count")


class BudgetRange(_Range):
    """How many times fewer FLOPs, from low to high."""

    low: float = Field(gt=1)
    high: float = Field(gt=1)
    levels: int | None = Field(None, ge=2, le=1000, description="values in equal ratios; without it all between count")


class SpaceConfig(_Section):
    """What the study samples: regions, clusters, and either energies or a budget for the network.

    Regions, clusters and energy hold for the whole network, or are sampled for each stage (layers in a row whose output
    maps have one size) or each layer. A budget is always one for the network, which divides it over the layers.
    """

    per: Literal["network", "stage", "layer"] = "network"
    regions: IntegerRange = IntegerRange(low=1, high=9)
    clusters: IntegerRange = IntegerRange(low=1, high=3)
    energy: EnergyRange | None = None
    budget: BudgetRange | None = None
    region_strategy: tuple[RegionStrategy, ...] = Field(
        (), strict=False, description="choices; without any that of the compression"
    )
    cluster_strategy: tuple[ClusterStrategy, ...] = Field((), strict=False)
    rank_multiple: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field((), strict=False)

    @model_validator(mode="before")
    @classmethod
    def _energy_unless_budget(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("energy") is None and given.get("budget") is None:
            return {**given, "energy": {"low": 0.6, "high": 0.99}}
        return given

    @model_validator(mode="after")
    def _one_rule(self) -> "SpaceConfig":
        if self.energy is not None and self.budget is not None:
            raise ValueError("give energy or budget, not both: each decides the ranks")
        for name in ("region_strategy", "cluster_strategy", "rank_multiple"):
            choices = getattr(self, name)
            if len(set(choices)) < len(choices):
                raise ValueError(f"{name}: every choice once, not {list(choices)}")
        return self


_METRICS = ("flops", "macs", "parameters", "megabytes", "latency", "accuracy", "macro_f1")


def _check_metric(name: str) -> str:
    if name in _METRICS or re.fullmatch(r"recall:.+", name):
        return name
    raise ValueError(f"there is no metric {name!r}: use {', '.join(_METRICS)} or recall:CLASS")


Metric = Annotated[str, AfterValidator(_check_metric)]


class ConstraintConfig(_Section):
    """What a trial must keep to be taken: a bound of one metric."""

    metric: Metric
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> "ConstraintConfig":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.metric} needs either at_least or at_most")
        return self


class LatencyConfig(_Section):
    """How latency is measured where it is an objective or a constraint: in milliseconds, with one thread."""

    runtime: Literal["onnxruntime", "torch"] = "onnxruntime"
    batch_size: int = Field(1, ge=1, le=1024)


class StudyConfig(_Section):
    """One study: the content of a study file with every default filled in."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = Field(0, ge=0, lt=2**32)
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    compression: CompressionConfig = CompressionConfig()
    finetuning: FinetuningConfig = FinetuningConfig()
    space: SpaceConfig = SpaceConfig()
    objectives: tuple[Metric, ...] = Field(("flops", "accuracy"), strict=False, min_length=2, max_length=4)
    constraints: tuple[ConstraintConfig, ...] = Field((), strict=False)
    latency: LatencyConfig = LatencyConfig()
    sampler: Literal["auto", "gp", "tpe", "nsga2", "random", "grid"] = "auto"
    start: tuple[dict[str, int | float | str], ...] = Field(
        (), strict=False, description="settings that are tried first, each with a value for all that is sampled"
    )
    trials: int = Field(40, ge=1, description="finished trials that the study shall have in all")
    timeout: float | None = Field(None, gt=0, description="seconds after which a run starts no more trials")
    patience: int | None = Field(
        None, ge=1, description="stop when so many trials did not raise the hypervolume by a thousandth"
    )
    storage: str = Field(DEFAULT_STORAGE, description="SQLAlchemy URL of the database")

    @model_validator(mode="after")
    def _every_objective_once(self) -> "StudyConfig":
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives: every objective once, not {list(self.objectives)}")
        if self.sampler == "grid" and (self.space.energy or self.space.budget).levels is None:  # type: ignore[union-attr]
            raise ValueError("sampler grid needs levels: say how many in space.energy or space.budget")
        return self

    @classmethod
    def from_file(cls, study: str | Path, **overrides: Any) -> "StudyConfig":
        """Read a study file.

        Args:
            study: a path, or the name of a study that comes with the package.
            overrides: values that replace those of the file, by dotted key with ``__`` for the dot, such as
                ``data__path``; None replaces nothing.

        Raises:
            ConfigError: no such file, malformed YAML, or a key or value that is not allowed.
        """
        path = find_study_file(study)
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        # PyYAML lets errors of its number and date readers, and of deep nesting, through as they are.
        except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
            raise ConfigError(f"study file {path} is no YAML: {' '.join(str(error).split())}") from error
        except OSError as error:
            raise ConfigError(f"cannot read study file {path}: {error.strerror}") from error
        if not isinstance(tree, dict):
            raise ConfigError(f"study file {path} must hold keys such as name, data and model")
        given = {dotted.replace("__", "."): value for dotted, value in overrides.items() if value is not None}
        _resolve_places(tree, path, given)
        for dotted, value in given.items():
            _put(tree, dotted.split("."), value)
        return cls.from_tree(tree, f"study file {path}")

    @classmethod
    def from_tree(cls, tree: Any, origin: str) -> "StudyConfig":
        """Check a tree of plain values; ``origin`` names it in the error.

        Raises:
            ConfigError: names the first wrong key, its value and what is allowed.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(f"{origin}: {_explain(error)}") from error

    def placed(self, data: Path | None, checkpoint: Path | None) -> "StudyConfig":
        """The same study with its images or its checkpoint at another place; None leaves a place as it is."""
        tree = self.stored()
        if data is not None:
            tree["data"]["path"] = data
        if checkpoint is not None:
            tree["model"]["checkpoint"] = checkpoint
        return self.from_tree(tree, f"study {self.name}")

    def check_classes(self, classes: Sequence[str]) -> None:
        """Check that the classes that metrics name are there.

        Raises:
            ConfigError: one is not.
        """
        for name in (*self.objectives, *(bound.metric for bound in self.constraints)):
            metric, _, wanted = name.partition(":")
            if metric == "recall" and wanted not in classes:
                raise ConfigError(f"study {self.name}: {name}: there is no class {wanted!r}: use {', '.join(classes)}")

    def finetuned(self, epochs: int) -> "StudyConfig":
        """The same study with another number of epochs of fine-tuning."""
        return self.model_copy(update={"finetuning": self.finetuning.model_copy(update={"epochs": epochs})})

    def stored(self) -> dict[str, Any]:
        """The whole object as JSON-compatible values."""
        return self.model_dump(mode="json")

    def differences(self, other: "StudyConfig") -> list[str]:
        """What differs from ``other`` beyond the harmless fields, a line each: ``key: other's value -> own value``."""
        ours, theirs = _flat(self.stored()), _flat(other.stored())
        return [
            f"{key}: {theirs.get(key)} -> {ours.get(key)}"
            for key in sorted(ours.keys() | theirs.keys())
            if key not in HARMLESS and ours.get(key) != theirs.get(key)
        ]


def find_study_file(study: str | Path) -> Path:
    """The path of a study file, given as a path or as the name of one that comes with the package.

    Raises:
        ConfigError: there is neither.
    """
    import studies

    path = Path(study)
    with contextlib.suppress(OSError):  # a name too long for a file
        if path.is_file():
            return path
    shipped = {file.stem: file for file in studies.files()}
    if str(study) in shipped:
        return shipped[str(study)]
    raise ConfigError(f"no study file {study}: give a path to a YAML file or one of {', '.join(sorted(shipped))}")


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = tree.setdefault(key, {})
        if not isinstance(inner, dict):
            return  # validation names the wrong section
        tree = inner
    tree[keys[-1]] = value


def _resolve_places(tree: dict[str, Any], study_file: Path, given: dict[str, Any]) -> None:
    """Expand what stands in the file in place of a path: variables, ``~``, and folders relative to the file."""
    for key, option in (
        ("data.path", "--data DIR"),
        ("model.checkpoint", "--checkpoint FILE"),
        ("storage", "--storage URL"),
    ):
        *sections, last = key.split(".")
        holder: Any = tree
        for section in sections:
            holder = holder.get(section) if isinstance(holder, dict) else None
        if key in given or not isinstance(holder, dict) or not isinstance(holder.get(last), str):
            continue

        def value(match: re.Match[str], key: str = key, option: str = option) -> str:
            name = match[1] or match[2]
            if name not in os.environ:
                raise ConfigError(
                    f"study file {study_file}: {key}: environment variable {name} is not set: set it or give {option}"
                )
            return os.environ[name]

        text = _VARIABLE.sub(value, holder[last])
        try:
            holder[last] = text if key == "storage" else study_file.parent.absolute() / Path(text).expanduser()
        except RuntimeError as error:
            raise ConfigError(f"study file {study_file}: {key}: {text!r} names a user without a home folder") from error


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "file"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(_keys_beside(first["loc"]))
        return f"{key}: unknown key (value {first['input']!r}): allowed here are {allowed}"
    if first["type"] == "missing":
        return f"{key}: missing: it has no default"
    if first["type"] == "value_error":  # ours, and it names the value
        return f"{key}: {message}"
    return f"{key}: {first['input']!r} is not allowed: {message[0].lower()}{message[1:]}"


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = StudyConfig
    for part in location[:-1]:
        if isinstance(part, int):  # a place in a list
            continue
        annotation = section.model_fields[part].annotation
        (section,) = (
            kind
            for kind in (annotation, *get_args(annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        )
    return list(section.model_fields)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
