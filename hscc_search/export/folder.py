"""The format of an exported folder: nothing else writes or reads its keys. Needs no torch.

::

    model.onnx          images 0 to 1, (images, channels, height, width) -> scores (images, classes[, height, width])
    model.safetensors   the weights of the same network as a torch module
    architecture.json   how that module is built
    config.yaml         the study and the trial
    metrics.json        quality and cost of the dense and the compressed network
    model.pt2, model-float16.onnx, model-uint8.onnx, model-openvino.xml and .bin, model.pte
                        the same in further formats, where asked for
    reference.json      the answers of each model to inputs that can be made again
    run.py              runs the network, checks the folder and measures it, without this package
    README.md           the model card
    manifest.json       SHA-256 of every other file
    manifest.json.sig   its signature, where a key was given, see :mod:`hscc_search.export.signature`

``run.py`` is :mod:`hscc_search.export.run`, which reads what it needs of the folder by itself. ``FORMAT`` is raised
when a file holds other things; then ``from_stored`` learns to read the format before, and ``READ`` names both.
metrics.json and config.yaml are for people and other programs: loading reads neither, and of metrics.json the index of
an exported front, ``verify --data`` and ``run.py benchmark`` read some.
"""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import FailFast, FiniteFloat, PositiveInt, TypeAdapter

from hscc_search.compression.form import NetworkForm
from hscc_search.config import DataConfig, Resize, Shape, StudyConfig, sized
from hscc_search.config.strict import strictly
from hscc_search.config.yaml_file import read_yaml
from hscc_search.errors import ConfigError, ExportError, one_line, quoted, shortened
from hscc_search.evaluation.cost import CountedCost
from hscc_search.evaluation.quality import Quality
from hscc_search.export import run
from hscc_search.export.manifest import refusing
from hscc_search.export.run import ARCHITECTURE as ARCHITECTURE
from hscc_search.export.run import MANIFEST as MANIFEST
from hscc_search.export.run import METRICS as METRICS
from hscc_search.export.run import ONNX as ONNX
from hscc_search.export.run import REFERENCE as REFERENCE

FORMAT = 4
READ = (3, FORMAT)

# The types of a study's images.
Values = Literal["uint8", "uint16", "float32"]

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"


@dataclass(frozen=True)
class Pictures:
    """The way from files to images: keys of ``architecture.json``, whose meaning is that of a study's ``data`` section.

    Attributes:
        image_size: side of the images in pixels, or height and width.
        channels: of the images.
        resize: how an image is brought to size.
        resize_to: pixels that the shorter side is brought to before the centre is cut out; None where nothing was said.
        bounds: values that become 0 and 1 where a file has more than 8 bits; None where neither a range nor a window
            was stated.
        values: the type of the study's images: ``uint8``, ``uint16`` where a file had more than 8 bits, or ``float32``
            where a data set of the user's own gave what the network takes.
    """

    image_size: PositiveInt | tuple[PositiveInt, PositiveInt]
    channels: PositiveInt = 3
    resize: Resize = "squeeze"
    resize_to: PositiveInt | None = None
    bounds: tuple[FiniteFloat, FiniteFloat] | None = None
    values: Values = "uint8"

    @property
    def shape(self) -> Shape:
        """The shape of one image: channels, height, width."""
        return sized(self.channels, self.image_size)

    @classmethod
    def of(cls, data: DataConfig, values: np.dtype) -> "Pictures":
        """The pictures of a study, whose images are of a type."""
        kind = cast(Values, "float32" if values.kind == "f" else values.name)
        return cls(data.image_size, data.channels, data.resize, data.resize_to, data.bounds, kind)

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_stored(cls, tree: Mapping[str, Any]) -> "Pictures":
        """Undo :meth:`stored`.

        Raises:
            ValueError: it is none.
        """
        own = {each.name: tree[each.name] for each in fields(cls)}
        return strictly(_PICTURES, own)


@dataclass(frozen=True)
class Architecture:
    """The architecture of the torch module: ``architecture.json``.

    Attributes:
        model: name of the dense network, see :func:`hscc_search.dense.networks.build_network`.
        classes: class names.
        pictures: how files become images.
        mean: per channel, of pixel values 0 to 1.
        std: per channel.
        form: of the compressed network.
        output: function that picks the scores out of the network's answer; None where the answer is the scores.
        maps: height and width of the maps that it answers with; empty where it scores whole images.
    """

    model: str
    classes: tuple[str, ...]
    pictures: Pictures
    mean: tuple[float, ...]
    std: tuple[float, ...]
    form: NetworkForm
    output: str | None = None
    maps: tuple[int, ...] = ()

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values, with the format and the version that wrote them."""
        tree = {"format": FORMAT, "hscc_search": _own_version(), **asdict(self), **self.pictures.stored()}
        del tree["pictures"]
        return {**tree, "form": self.form.stored()}

    @classmethod
    def from_stored(cls, tree: Mapping[str, Any]) -> "Architecture":
        """Undo :meth:`stored`. Format 3 left out the version that wrote it, and what all its folders had in common.

        Raises:
            KeyError, ValueError: it is none.
        """
        if tree["format"] == READ[0]:
            form = {"plain": [], **tree["form"]} if isinstance(tree["form"], dict) else tree["form"]
            tree = {**run.IN_FORMAT_3, "output": None, "maps": [], **tree, "form": form}
        return cls(
            pictures=Pictures.from_stored(tree),
            form=NetworkForm.from_stored(tree["form"]),
            **{name: strictly(kind, tree[name], name) for name, kind in _OTHERS.items()},
        )

    def __post_init__(self) -> None:
        if self.output is not None and not all(self.output.partition(":")):
            raise ValueError(f"output: {quoted(self.output)} is not allowed: it has to be package.module:function")


@dataclass(frozen=True)
class Results:
    """The cost and the quality of one network.

    Attributes:
        cost: of one image, counted.
        validation: on the validation part.
        test: on the test part.
    """

    cost: CountedCost
    validation: Quality
    test: Quality


@dataclass(frozen=True)
class Metrics:
    """The results of the dense and the compressed network: ``metrics.json``.

    Attributes:
        study: its name.
        trial: its number.
        sample: the values that the search drew for it, by name.
        finetuning_epochs: epochs of fine-tuning after compression.
        trained_further: whether somebody trained the network further in a way of their own.
        classes: class names.
        validation_images: size of the validation part.
        test_images: size of the test part.
        dense: the dense network.
        compressed: the compressed network; its quality on the test part is that of ``model.onnx``.
        right: test images that ``model.onnx`` classifies correctly; positions of them where it answers with maps.
        torch_differs_on: test images, or positions, that the torch module puts into another class than ``model.onnx``.
        validation_groups: groups of images in the validation part; None where each image is one of its own.
        test_groups: groups of images in the test part, likewise.
        maps: height and width of the maps that the network answers with; empty where it scores whole images.
        refined: how the network was refined, see :class:`hscc_search.pareto.points.Point`; empty where it was not.
        onnx: of ``model.onnx`` the ``opset``, the ``operators`` and its ``bytes``.
        formats: of each further file what :func:`hscc_search.export.formats.write_formats` found.
        int8: of a ``model.onnx`` of 8-bit integers, the mean ``divergence`` of its answers to the test images from the
            torch module's, which is float32, in nats; the operators that stay ``in_float``; and whether the file is,
            byte by byte, the one of the search, ``as_measured``. Empty where it is float32.
        chosen: why the trial was chosen: the ``reason``, the ``probability`` that it is on the front, and both
            ``in_words``. Empty where nobody says.
    """

    study: str
    trial: int
    sample: Mapping[str, Any]
    finetuning_epochs: int
    trained_further: bool
    classes: tuple[str, ...]
    validation_images: int
    test_images: int
    dense: Results
    compressed: Results
    right: int
    torch_differs_on: int
    validation_groups: int | None = None
    test_groups: int | None = None
    maps: tuple[int, ...] = ()
    refined: Mapping[str, float] = field(default_factory=dict)
    int8: Mapping[str, Any] = field(default_factory=dict)
    onnx: Mapping[str, Any] = field(default_factory=dict)
    formats: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def flops_ratio(self) -> float:
        """FLOPs of the dense network over those of the compressed one."""
        return self.dense.cost.flops / self.compressed.cost.flops

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return {"format": FORMAT, **asdict(self)}


@dataclass(frozen=True)
class Origin:
    """The study and the trial that the network comes from: ``config.yaml``.

    Attributes:
        config: of the study.
        trial: its number.
        sample: the values that the search drew for it, by name.
        fingerprint: of the data set.
        versions: of the packages that the study was created with.
    """

    config: StudyConfig
    trial: int
    sample: Mapping[str, Any]
    fingerprint: str
    versions: Mapping[str, str]

    def stored(self) -> dict[str, Any]:
        """YAML-compatible values, without the paths and the database of the machine that wrote them."""
        config = self.config.model_dump(
            mode="json", exclude={"storage": True, "data": {"path"}, "model": {"checkpoint"}}
        )
        return {
            "format": FORMAT,
            "study": config,
            "trial": self.trial,
            "sample": dict(self.sample),
            "dataset_fingerprint": self.fingerprint,
            "versions": dict(self.versions),
        }


def read_architecture(folder: Path) -> Architecture:
    """Read the architecture of an exported folder.

    Raises:
        ExportError: the folder has a format that this version does not read, or states what no network has.
    """
    with refusing():
        tree = run.read_json(folder / ARCHITECTURE)
    stored_format = tree.get("format")
    if type(stored_format) is not int or stored_format not in READ:
        raise ExportError(
            f"{folder} has format {quoted(stored_format)}, written by hscc-search {_writer(folder, tree)}: "
            f"hscc-search {_own_version()} reads the formats {' and '.join(map(str, READ))}"
        )
    try:
        architecture = Architecture.from_stored(tree)
        given = architecture.mean, architecture.std
        if not all(len(numbers) == architecture.pictures.channels for numbers in given):
            raise ValueError("a mean and a std for each channel are needed")
    except KeyError as error:
        raise ExportError(f"{folder / ARCHITECTURE} is damaged: {error.args[0]} is missing") from error
    except ValueError as error:
        raise ExportError(f"{folder / ARCHITECTURE} is damaged: {one_line(error)}") from error
    with refusing():
        run.Folder(folder)
    return architecture


def _writer(folder: Path, architecture: Mapping[str, Any]) -> str:
    """Name the version that wrote a folder; before format 4 only ``config.yaml`` names one, that of the study."""
    if "hscc_search" in architecture:
        return shortened(str(architecture["hscc_search"]))
    try:
        return shortened(str(read_yaml(folder / CONFIG)["versions"]["hscc-search"]))
    except (ConfigError, TypeError, KeyError):
        return "of an unknown version"


def _own_version() -> str:
    return importlib.metadata.version("hscc-search")


_PICTURES = TypeAdapter(Pictures)
_PER_CHANNEL: TypeAdapter[Any] = TypeAdapter(Annotated[tuple[FiniteFloat, ...], FailFast()])
# The further keys of ``architecture.json``, each with the type of its values.
_OTHERS: dict[str, TypeAdapter[Any]] = {
    "model": TypeAdapter(str),
    "classes": TypeAdapter(Annotated[tuple[str, ...], FailFast()]),
    "mean": _PER_CHANNEL,
    "std": _PER_CHANNEL,
    "output": TypeAdapter(str | None),
    "maps": TypeAdapter(tuple[()] | tuple[PositiveInt, PositiveInt]),
}
