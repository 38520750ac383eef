"""The format of an exported folder: nothing else writes or reads its keys. Needs no torch.

::

    model.onnx          images 0 to 1, (images, channels, height, width) -> scores (images, classes[, height, width])
    model.safetensors   the weights of the same network as a torch module
    architecture.json   how that module is built
    config.yaml         the study and the trial
    metrics.json        quality and cost of the dense and the compressed network
    README.md           the model card
    manifest.json       SHA-256 of every other file

``FORMAT`` is raised when a file holds other things; then ``from_stored`` learns to read the format before, and ``READ``
names both. metrics.json and config.yaml are for people and other programs; the index of an exported front alone reads
metrics.json back.
"""

import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hscc_search.compression.form import NetworkForm
from hscc_search.config import DataConfig, Shape, StudyConfig, sized
from hscc_search.errors import ExportError
from hscc_search.evaluation.cost import CountedCost
from hscc_search.evaluation.quality import Quality
from hscc_search.files import sha256

FORMAT = 4
READ = (3, FORMAT)

ONNX, WEIGHTS, ARCHITECTURE = "model.onnx", "model.safetensors", "architecture.json"
CONFIG, METRICS, CARD, MANIFEST = "config.yaml", "metrics.json", "README.md", "manifest.json"


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
    """

    image_size: int | tuple[int, int]
    channels: int = 3
    resize: str = "squeeze"
    resize_to: int | None = None
    bounds: tuple[float, float] | None = None

    @property
    def shape(self) -> Shape:
        """The shape of one image: channels, height, width."""
        return sized(self.channels, self.image_size)

    @classmethod
    def of(cls, data: DataConfig) -> "Pictures":
        """The pictures of a study."""
        return cls(data.image_size, data.channels, data.resize, data.resize_to, data.bounds)

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_stored(cls, tree: Mapping[str, Any]) -> "Pictures":
        """Undo :meth:`stored`. Before 0.2.0 all images were square, RGB and squeezed."""
        size, bounds = tree["image_size"], tree.get("bounds")
        return cls(
            image_size=size if isinstance(size, int) else (size[0], size[1]),
            channels=tree.get("channels", 3),
            resize=tree.get("resize", "squeeze"),
            resize_to=tree.get("resize_to"),
            bounds=None if bounds is None else (bounds[0], bounds[1]),
        )


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
        """Undo :meth:`stored`. Format 3 did not say which version wrote it."""
        return cls(
            model=tree["model"],
            classes=tuple(tree["classes"]),
            pictures=Pictures.from_stored(tree),
            mean=tuple(tree["mean"]),
            std=tuple(tree["std"]),
            form=NetworkForm.from_stored(tree["form"]),
            output=tree.get("output"),
            maps=tuple(tree.get("maps", ())),
        )


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


@dataclass(frozen=True)
class Manifest:
    """The digests that show whether files were damaged or changed: ``manifest.json``.

    Attributes:
        digests: SHA-256 of every other file by its name, in hexadecimal.
    """

    digests: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> "Manifest":
        """Make the manifest of a folder that holds all other files."""
        return cls({path.name: sha256(path) for path in sorted(folder.iterdir())})

    def check(self, folder: Path, names: Iterable[str]) -> None:
        """Compare some files of a folder with their digests.

        Raises:
            ExportError: one is missing, or holds something else.
        """
        for name in names:
            path = folder / name
            if not path.is_file() or sha256(path) != self.digests.get(name):
                raise ExportError(f"{path} is missing or was changed since the export: export again")

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return {"sha256": dict(self.digests)}

    @classmethod
    def from_stored(cls, tree: Mapping[str, Any]) -> "Manifest":
        """Undo :meth:`stored`."""
        return cls(dict(tree["sha256"]))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an exported folder.

    Raises:
        ExportError: there is none, or it is damaged.
    """
    try:
        return Manifest.from_stored(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{folder} is not an exported folder: it has no readable {MANIFEST}") from error


def read_architecture(folder: Path) -> Architecture:
    """Read the architecture of an exported folder.

    Raises:
        ExportError: the folder has a format that this version does not read.
    """
    tree = json.loads((folder / ARCHITECTURE).read_text(encoding="utf-8"))
    stored_format = tree.get("format")
    if stored_format not in READ:
        raise ExportError(
            f"{folder} has format {stored_format}, written by hscc-search {_writer(folder, tree)}: "
            f"hscc-search {_own_version()} reads the formats {' and '.join(map(str, READ))}"
        )
    return Architecture.from_stored(tree)


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a file of an exported folder as JSON."""
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def write_yaml(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a file of an exported folder as YAML."""
    path.write_text(yaml.safe_dump(dict(tree), sort_keys=False), encoding="utf-8")


def _writer(folder: Path, architecture: Mapping[str, Any]) -> str:
    """Name the version that wrote a folder; before format 4 only ``config.yaml`` names one, that of the study."""
    if "hscc_search" in architecture:
        return str(architecture["hscc_search"])
    try:
        return str(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))["versions"]["hscc-search"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return "of an unknown version"


def _own_version() -> str:
    return importlib.metadata.version("hscc-search")
