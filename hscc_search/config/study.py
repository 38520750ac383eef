"""A whole study file, checked into one immutable object that is stored with the study it describes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from hscc_search.config.data import DataConfig
from hscc_search.config.dense import FinetuningConfig, ModelConfig, RefineConfig, TrainingConfig
from hscc_search.config.explain import explain
from hscc_search.config.metrics import (
    COSTS,
    FORMS,
    METRICS,
    ConstraintConfig,
    LatencyConfig,
    Metric,
    OwnMetricConfig,
    check_own_name,
    class_of,
    known_metric,
    section_or_function,
)
from hscc_search.config.section import Section
from hscc_search.config.space import COPY_PRICE, CompressionConfig, SpaceConfig
from hscc_search.config.study_file import find_study_file, read_study_file
from hscc_search.config.yaml_file import shown
from hscc_search.errors import ConfigError, quoted, shortened

# Fields that may change before a study goes on: how long it runs, how it chooses samples, how it refines (which is
# stored with each trial), and where its files lie. The content of those files is compared by digests: the fingerprint
# of the data set and the digest of the dense network.
_LOCATIONS = ("storage", "data.path", "data.class_level", "model.checkpoint")
_REFINE = tuple(f"refine.{name}" for name in RefineConfig.model_fields)
_HARMLESS = ("trials", "timeout", "patience", "sampler", "start", *_REFINE, *_LOCATIONS)

DEFAULT_STORAGE = "sqlite:///hscc-studies.db"

StartValue = Annotated[int, Field(ge=0, le=10**6)] | float | Annotated[str, Field(max_length=100)]

# Bytes of the pixels of a batch, as float32; the activations of a network take many times as much.
_LARGEST_BATCH = 4 * 10**9


class StudyConfig(Section):
    """One study: the content of a study file with every default filled in."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="name of the study in its storage: letters, digits, dots, underscores and hyphens",
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="seed of training, compression, search and bootstrap; the split has its own"
    )
    data: DataConfig = Field(description="images, their size, and their division into parts")
    model: ModelConfig = Field(description="the dense network")
    training: TrainingConfig = Field(TrainingConfig(), description="training of the dense network")
    compression: CompressionConfig = Field(CompressionConfig(), description="compression of all trials")
    refine: RefineConfig = Field(RefineConfig(), description="refining of compressed networks, without labels")
    finetuning: FinetuningConfig = Field(FinetuningConfig(), description="further training of compressed networks")
    space: SpaceConfig = Field(SpaceConfig(), description="values that are sampled for each trial")
    metrics: dict[str, OwnMetricConfig] = Field(
        {}, description="metrics of the study's own by name, to be used like any other"
    )
    objectives: tuple[Metric, ...] = Field(
        ("flops", "accuracy"),
        strict=False,
        min_length=2,
        max_length=4,
        description="metrics of the front; of costs, log_loss and calibration_error less is better, of others more: "
        f"{', '.join(METRICS)}, {FORMS} and those in metrics",
    )
    constraints: tuple[ConstraintConfig, ...] = Field(
        (), strict=False, description="bounds that a trial must keep to be on the front"
    )
    columns: tuple[Metric, ...] = Field(
        (), strict=False, description="further metrics that are measured and shown, as in objectives"
    )
    latency: LatencyConfig = Field(LatencyConfig(), description="measurement of latency, where it is asked for")
    sampler: Literal["auto", "gp", "tpe", "nsga2", "random", "grid"] = Field(
        "auto",
        description="method that draws the samples: auto varies those of the front, gp is a Gaussian process, "
        "grid takes each combination of levels",
    )
    start: tuple[dict[str, StartValue], ...] = Field(
        (), strict=False, description="samples to try first, each with a value for every sampled name"
    )
    trials: int = Field(40, ge=1, le=1_000_000, description="total number of finished trials to reach")
    timeout: float | None = Field(
        None, gt=0, description="seconds after which a run starts no more trials; without it there is no limit"
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="number of trials after which the study ends if they raised the hypervolume by less than a "
        "thousandth; without it there is no such end",
    )
    storage: str = Field(DEFAULT_STORAGE, max_length=2000, description="database of the study, as a SQLAlchemy URL")

    @field_validator("metrics", mode="before")
    @classmethod
    def _by_function_alone(cls, values: Any) -> Any:
        return section_or_function(values)

    @model_validator(mode="after")
    def _metrics_that_exist(self) -> "StudyConfig":
        for name in self.metrics:
            check_own_name(name)
        for key, name in self._metrics_by_key():
            if name not in self.metrics and not known_metric(name):
                own = f" or {', '.join(self.metrics)}" if self.metrics else ""
                raise ValueError(f"{key}: there is no metric {quoted(name)}: use {', '.join(METRICS)}, {FORMS}{own}")
            if key.startswith("columns") and name in COSTS:
                raise ValueError(f"{key}: {name} is no metric of answers: costs are shown where they are measured")
        return self

    @model_validator(mode="after")
    def _each_objective_once(self) -> "StudyConfig":
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives: every objective once, not {list(self.objectives)}")
        return self

    @model_validator(mode="after")
    def _levels_for_a_grid(self) -> "StudyConfig":
        if self.sampler == "grid" and self.space.rule.levels is None:
            raise ValueError("sampler grid needs levels: say how many in space.energy or space.budget")
        return self

    @model_validator(mode="after")
    def _integers_in_their_runtime(self) -> "StudyConfig":
        if self.space.with_int8 and "latency" in self.asked_metrics and self.latency.runtime != "onnxruntime":
            raise ValueError(
                f"latency.runtime: {self.latency.runtime} does not run the int8 of space.precision: use onnxruntime"
            )
        return self

    @model_validator(mode="after")
    def _batches_fit_into_memory(self) -> "StudyConfig":
        channels, height, width = self.data.shape
        most = _LARGEST_BATCH // (4 * channels * height * width)
        batches = {"training.batch_size": self.training.batch_size, "latency.batch_size": self.latency.batch_size}
        for key, images in batches.items():
            if images > most:
                raise ValueError(
                    f"{key}: {images} images of {height} x {width} pixels do not fit into memory: use at most {most}"
                )
        return self

    @model_validator(mode="after")
    def _images_fit_the_small_network(self) -> "StudyConfig":
        size = self.data.image_size
        if self.model.name == "digits_cnn" and any(side % 4 for side in self.data.shape[1:]):
            raise ValueError(f"data.image_size: digits_cnn takes a multiple of 4, not {size}")
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
        replacing = {name.replace("__", "."): value for name, value in overrides.items() if value is not None}
        return cls.from_tree(read_study_file(path, replacing), f"study file {shown(path)}")

    @classmethod
    def from_tree(cls, tree: Any, origin: str) -> "StudyConfig":
        """Check a tree of plain values; ``origin`` names it in the error.

        Raises:
            ConfigError: names the first wrong key, its value and what is allowed.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(f"{origin}: {explain(error, cls)}") from error

    @classmethod
    def from_stored(cls, tree: dict[str, Any], origin: str) -> "StudyConfig":
        """Check a tree that :meth:`stored` gave, in this version or an earlier one.

        0.1.0 had no ``training.when`` and always trained the network of a user's own function, and weights
        and copies had no price.

        Raises:
            ConfigError: as :meth:`from_tree`.
        """
        training = {"when": "always", **tree.get("training", {})}
        compression = {"weight_price": 0, "copy_price": 0, **tree.get("compression", {})}
        return cls.from_tree({**tree, "training": training, "compression": compression}, origin)

    def as_started(self, before: "StudyConfig") -> "StudyConfig":
        """The same study, with what its file does not say as it was started.

        These are ``training.when``, the prices of ``compression``, mean and std.
        """
        data, training, compression = self.data, self.training, self.compression
        if data.normalisation == before.data.normalisation == "dataset" and not data.mean:
            data = data.normalised_by(before.data.mean, before.data.std)
        if "when" not in training.model_fields_set:
            training = training.model_copy(update={"when": before.training.when})
        for price in ("weight_price", "copy_price"):
            if price not in compression.model_fields_set:
                compression = compression.model_copy(update={price: getattr(before.compression, price)})
        return self.model_copy(update={"data": data, "training": training, "compression": compression})

    def with_paths(self, data: Path | None, checkpoint: Path | None) -> "StudyConfig":
        """The same study with its images or its checkpoint under another path; None leaves a path as it is.

        Raises:
            ConfigError: the study's source of images takes no path.
        """
        tree = self.stored()
        if data is not None:
            tree["data"]["path"] = data
        if checkpoint is not None:
            tree["model"]["checkpoint"] = checkpoint
        return self.from_tree(tree, f"study {self.name}")

    def _metrics_by_key(self) -> Iterator[tuple[str, str]]:
        """List the metrics that the study asks for, each with the key that names it."""
        yield from ((f"objectives.{index}", name) for index, name in enumerate(self.objectives))
        yield from ((f"constraints.{index}.metric", bound.metric) for index, bound in enumerate(self.constraints))
        yield from ((f"columns.{index}", name) for index, name in enumerate(self.columns))

    @property
    def asked_metrics(self) -> tuple[str, ...]:
        """The metrics that objectives, constraints and columns name, and the study's own, each once."""
        return tuple(dict.fromkeys([*(name for _, name in self._metrics_by_key()), *self.metrics]))

    @property
    def needs_latency(self) -> bool:
        """Tell whether trials measure latency."""
        return "latency" in (*self.objectives, *(bound.metric for bound in self.constraints))

    @property
    def price_of_copies(self) -> float:
        """The multiply-adds that a copied value is worth: as the study file says, else by whether time is asked for."""
        given = self.compression.copy_price
        if given is not None:
            return given
        return COPY_PRICE if self.needs_latency else 0.0

    def check_classes(self, classes: Sequence[str]) -> None:
        """Check that the classes that metrics name are among those of the images.

        Raises:
            ConfigError: one is not.
        """
        for name in self.asked_metrics:
            wanted = class_of(name)
            if wanted is not None and wanted not in classes:
                raise ConfigError(
                    f"study {self.name}: {shortened(name)}: there is no class {quoted(wanted)}: "
                    f"use {shortened(', '.join(classes), 500)}"
                )

    def check_maps(self) -> None:
        """Check that the study asks for nothing that needs one class for each image, where targets are maps of classes.

        Raises:
            ConfigError: it does, or leaves its objectives to the default, which is accuracy.
        """
        origin = f"study {self.name}: its targets are maps"
        if "objectives" not in self.model_fields_set:
            raise ConfigError(
                f"{origin}, and it names no objectives: say which, such as [flops, dice] with dice under metrics, or "
                "[flops, accuracy], the share of positions that are right"
            )
        for name in self.asked_metrics:
            if name not in (*COSTS, "accuracy", *self.metrics):
                raise ConfigError(
                    f"{origin}, and {shortened(name)} needs one class for each image: use {', '.join(COSTS)}, accuracy "
                    "(the share of positions that are right) or a function of your own under metrics"
                )
        if self.training.mixup > 0:
            raise ConfigError(f"{origin}, which training.mixup does not mix: use mixup 0")

    def finetuned(self, epochs: int) -> "StudyConfig":
        """The same study with another number of epochs of fine-tuning."""
        return self.model_copy(update={"finetuning": self.finetuning.model_copy(update={"epochs": epochs})})

    def stored(self) -> dict[str, Any]:
        """The whole object as JSON-compatible values."""
        return self.model_dump(mode="json")

    def differences(self, other: "StudyConfig") -> list[str]:
        """List what differs from ``other`` beyond the harmless fields: ``key: other's value -> own value``."""
        ours, theirs = _flat(self.stored()), _flat(other.stored())
        return [
            f"{key}: {theirs.get(key)} -> {ours.get(key)}"
            for key in sorted(ours.keys() | theirs.keys())
            if key not in _HARMLESS and ours.get(key) != theirs.get(key)
        ]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn a tree into its leaves by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
