"""Run the network of the folder in which this file lies.

::

    python run.py predict IMAGE...                          the class of each image, and how probable it is
    python run.py verify                                    are all files as exported, and are the answers the same?
    python run.py benchmark [--threads N] [--out FILE]      how long it takes on this machine

Needs Python 3.10, onnxruntime, numpy and pillow, and pydicom for DICOM files. Nothing that a file says is executed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

ONNX, ARCHITECTURE, MANIFEST, REFERENCE = "model.onnx", "architecture.json", "manifest.json", "reference.json"
METRICS, SIGNATURE = "metrics.json", f"{MANIFEST}.sig"
# Files that are not in the manifest: it cannot hold its own digest, and the signature is made of it.
UNLISTED = (MANIFEST, SIGNATURE)
# Bytes of the manifest, of another JSON file and of a model: protobuf reads no more. Beyond them none is read.
MOST_MANIFEST, _MOST_JSON, LARGEST_MODEL = 1 << 20, 1 << 25, 1 << 31
_MOST_BYTES = {ARCHITECTURE: 1 << 24, MANIFEST: MOST_MANIFEST}
# Files of a folder, sides, values and classes of a network, likewise.
_MOST_FILES, _LARGEST_SIDE, _MOST_VALUES, _MOST_CLASSES = 100, 4096, 1 << 24, 1 << 16
# Scores whose largest is below this are compared as if it were this.
_SMALLEST_SCORE = 1e-6
# Modes of Pillow with 8 bits per channel, and with a single channel of more; of 16-bit colours the upper 8 are read.
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_DICOM = (".dcm", ".dicom")
# Whether a value of architecture.json is one that it may have; what was so in folders that do not say it.
_FITS: dict[str, Callable[[Any], bool]] = {
    "channels": lambda number: type(number) is int,
    "image_size": lambda size: type(size) is int or _pair(size, int),
    "resize": lambda way: way in ("squeeze", "crop", "pad"),
    "resize_to": lambda side: side is None or type(side) is int,
    "bounds": lambda pair: pair is None or (_pair(pair, int, float) and -1e300 < pair[0] < pair[1] < 1e300),
    "values": lambda name: name in ("uint8", "uint16", "float32"),
    "classes": lambda names: type(names) is list and {*map(type, names)} <= {str} and len({*names}) == len(names),
}
IN_FORMAT_3 = {"channels": 3, "resize": "squeeze", "resize_to": None, "bounds": None, "values": "uint8"}
# Made inputs on which answers are compared, and numbers of an image's answer that are kept of one that is a map.
_INPUTS, _MOST_NUMBERS = 8, 2048
# A benchmark ends after so many seconds per batch size, with at least and at most so many batches.
_SECONDS, _FEWEST, _MOST, _WARM_UP = 4.0, 5, 200, 2


class Refused(Exception):
    """A file or a folder that cannot be used; the text says in one line what is wrong."""


class Folder:
    """An exported network.

    Attributes:
        path: of the folder.
        threads: that ONNX Runtime may take; 0 leaves that to it.
        onnx: the file that it runs.
        classes: their names, in the order of the scores.
        shape: of one input: channels, height, width.
        values: of the study's images: ``uint8``, ``uint16`` where files may have more than 8 bits, or ``float32`` where
            a data set of its own made the inputs.
        resize, resize_to, bounds: as in ``architecture.json`` and in a study's ``data`` section.
    """

    def __init__(self, path: str | Path, threads: int = 0, onnx: str = ONNX) -> None:
        self.path, self.threads, self.onnx = Path(path), threads, Path(path) / onnx
        tree = read_json(self.path / ARCHITECTURE)
        tree = {**IN_FORMAT_3, **tree} if tree.get("format") == 3 else tree
        for key, fits in _FITS.items():
            if key not in tree or not fits(tree[key]):
                wrong = "has a wrong value" if key in tree else "is missing"
                raise Refused(f"{self.path / ARCHITECTURE} does not say how images are read: {key} {wrong}")
        size, bounds = tree["image_size"], tree["bounds"]
        self.shape = (tree["channels"], *(size if isinstance(size, list) else (size, size)))
        self.classes, self.values, self.resize = tuple(tree["classes"]), tree["values"], tree["resize"]
        self.resize_to = tree["resize_to"]
        self.bounds = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        sides = (*self.shape, 1 if self.resize_to is None else self.resize_to)
        small = all(0 < side <= _LARGEST_SIDE for side in sides) and np.prod(self.shape) <= _MOST_VALUES
        if not small or len(self.classes) > _MOST_CLASSES:
            raise Refused(f"{self.path / ARCHITECTURE} says sizes that no network has: {sides}")

    @cached_property
    def session(self) -> Any:
        """The network in ONNX Runtime, on :attr:`threads` threads."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self.threads, 3
        try:
            content = regular(self.onnx, LARGEST_MODEL).read_bytes()  # as bytes it cannot refer to other files
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Refused:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no class in common
            raise Refused(f"ONNX Runtime cannot open {self.onnx}: {_line(error)}") from error
        taken = tuple(session.get_inputs()[0].shape[1:])
        if taken != self.shape and not _takes_images(session):
            raise Refused(f"{self.onnx} takes inputs of shape {taken}, and {ARCHITECTURE} states {self.shape}")
        self._check_classes(session)
        return session

    def _check_classes(self, session: Any) -> None:
        count, said = session.get_outputs()[0].shape[1], session.get_modelmeta().custom_metadata_map.get("classes")
        if isinstance(count, int) and count != len(self.classes):
            raise Refused(f"{self.onnx} scores {count} classes, and {ARCHITECTURE} names {len(self.classes)}")
        if said is not None and said != json.dumps(self.classes):
            raise Refused(f"{self.onnx} has other classes, or in another order, than {ARCHITECTURE} names")

    def opened(self) -> "Folder":
        """The same, with the network in memory: a size that was made up is refused before inputs of it are made."""
        _ = self.session
        return self

    def read(self, path: str | Path) -> np.ndarray:
        """Read an image as the study read its images: float32, 0 to 1, shape (1, channels, height, width).

        Where a data set of its own made the inputs, a file is one input as ``numpy.save`` writes it.
        """
        path = Path(path)
        try:
            if not path.is_file():
                raise OSError("no such file")
            if self.values == "float32":
                return self._array(path)
            return self.pixels(self._image(path))
        except Refused:
            raise
        except Exception as error:  # the readers raise OSError, SyntaxError, struct.error and others
            raise Refused(f"cannot read image {path}: {_line(error)}") from error

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The input that an upright image becomes: float32, 0 to 1, shape (1, channels, height, width).

        Args:
            image: of mode RGB or L, or of mode F with values 0 to 1.
        """
        channels, height, width = self.shape
        image = self._sized(image, width, height)
        if image.mode == "RGB":
            return np.ascontiguousarray(np.asarray(image, np.float32).transpose(2, 0, 1)[None] / np.float32(255))
        values, most = np.asarray(image, np.float32), np.float32(255)
        if image.mode == "F":
            values, most = (values.clip(0, 1) * 65535).round(), np.float32(65535)
        return np.repeat((values / most)[None, None], channels, axis=1)

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """The scores of inputs, before softmax: float32, shape (inputs, classes), or (..., height, width) for maps."""
        session = self.session
        try:
            return np.asarray(session.run(None, {session.get_inputs()[0].name: pixels})[0])
        except Exception as error:  # as above
            raise Refused(f"ONNX Runtime cannot run {self.onnx}: {_line(error)}") from error

    def answer(self, path: str | Path) -> dict[str, Any]:
        """The class of an image and the probability of each class; of maps, the share of positions of each class."""
        scores = self.scores(self.read(path))[0].astype(np.float64)
        powers = np.exp(scores - scores.max(axis=0))
        probabilities = powers / powers.sum(axis=0)
        if scores.ndim == 1:
            named = dict(zip(self.classes, map(float, probabilities), strict=True))
            return {"image": str(path), "class": self.classes[int(scores.argmax())], "probabilities": named}
        found = np.bincount(scores.argmax(axis=0).ravel(), minlength=len(self.classes)) / scores[0].size
        return {"image": str(path), "shares": dict(zip(self.classes, map(float, found), strict=True))}

    def made_inputs(self, count: int = _INPUTS) -> np.ndarray:
        """Inputs that are the same everywhere: made images, or numbers where no image becomes such an input."""
        made = [self.pixels(image) for image in self.made_images(count)]
        numbers = np.random.PCG64(0)  # its raw numbers are the same in every version of numpy
        while len(made) < count:
            uniform = (numbers.random_raw((4, *self.shape)) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
            spread = (uniform.sum(axis=0) - 2) * np.float32(1.75)  # with a variance of about 1
            made.append((spread if self.values == "float32" else uniform[0])[None])
        return np.concatenate(made)

    def made_images(self, count: int = _INPUTS) -> Iterator[Image.Image]:
        """Upright images that are the same everywhere, larger than the network's; none where it takes no images."""
        channels, height, width = self.shape
        numbers = np.random.PCG64(1)
        for _ in range(count if self.values != "float32" and channels in (1, 3) else 0):
            coarse = (numbers.random_raw((5, 5, channels)) >> np.uint64(56)).astype(np.uint8)
            blocks = coarse[..., 0] if channels == 1 or self.values == "uint16" else coarse
            image = Image.fromarray(blocks).resize((width * 3 // 2 + 1, height * 5 // 4 + 1), Image.Resampling.BICUBIC)
            yield Image.fromarray(np.asarray(image, np.float32) / np.float32(255)) if self.values == "uint16" else image

    def made_scores(self) -> np.ndarray:
        """The scores of the made inputs, or of the images that these are made of where the file takes raw images."""
        if not _takes_images(self.session):
            return self.scores(self.made_inputs())
        return np.concatenate([self.scores(np.asarray(image)) for image in self.made_images()])

    def _array(self, path: Path) -> np.ndarray:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.shape != self.shape:
            raise Refused(f"{path} holds shape {array.shape}: inputs are of shape {self.shape}")
        return np.asarray(array, np.float32)[None]

    def _image(self, path: Path) -> Image.Image:
        """Read a file as an upright image, of mode F with values 0 to 1 where it has more than 8 bits."""
        if path.suffix.lower() in _DICOM:
            return self._dicom(path)
        with Image.open(path) as image:
            if image.mode in _EIGHT_BITS:
                return ImageOps.exif_transpose(image).convert("L" if self.shape[0] == 1 else "RGB")
            self._check_wide(path)
            sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
            bounds = self.bounds or ((0.0, 65535.0) if sixteen else None)
            if image.mode not in _WIDE or bounds is None:
                raise Refused(f"image {path} has pixel mode {image.mode}: convert the image to 8 or 16 bits")
            return _between(np.asarray(ImageOps.exif_transpose(image)), bounds)

    def _dicom(self, path: Path) -> Image.Image:
        self._check_wide(path)
        try:
            import pydicom
            from pydicom.pixels.processing import apply_modality_lut
        except ImportError as error:
            raise Refused(f"cannot read image {path}: pip install pydicom") from error
        file = pydicom.dcmread(path)
        kind = str(file.get("PhotometricInterpretation", "none"))
        if int(file.get("NumberOfFrames") or 1) > 1 or kind not in ("MONOCHROME1", "MONOCHROME2"):
            raise Refused(f"image {path} is {kind} or has several frames: grey images of one frame are read")
        values = np.asarray(apply_modality_lut(file.pixel_array, file))
        return _between(values, self.bounds or _window(path, file), inverted=kind == "MONOCHROME1")

    def _check_wide(self, path: Path) -> None:
        if self.values != "uint16":
            raise Refused(f"image {path} has other pixels than the study's images: convert it to 8 bits per channel")

    def _sized(self, image: Image.Image, width: int, height: int) -> Image.Image:
        bilinear = Image.Resampling.BILINEAR
        if (side := self.resize_to) is not None:  # as torchvision's Resize and CenterCrop
            tall = image.width <= image.height
            scaled = int(side * image.height / image.width) if tall else int(side * image.width / image.height)
            image = image.resize((side, scaled) if tall else (scaled, side), bilinear)
            left, top = round((image.width - width) / 2), round((image.height - height) / 2)
            return image.crop((left, top, left + width, top + height))
        if self.resize == "crop":
            return ImageOps.fit(image, (width, height), bilinear)
        if self.resize == "pad":
            return ImageOps.pad(image, (width, height), bilinear, color=0)
        return image.resize((width, height), bilinear)


def _pair(value: Any, *types: type) -> bool:
    return type(value) is list and len(value) == 2 and {*map(type, value)} <= {*types}


def _takes_images(session: Any) -> bool:
    return bool(session.get_inputs()[0].type == "tensor(uint8)")


def _between(values: np.ndarray, bounds: tuple[float, float], inverted: bool = False) -> Image.Image:
    shares = ((values.astype(np.float64) - bounds[0]) / (bounds[1] - bounds[0])).clip(0, 1)
    return Image.fromarray((1 - shares if inverted else shares).astype(np.float32))


def _window(path: Path, file: Any) -> tuple[float, float]:
    """The values that a DICOM file shows as black and white: its first window, or plain 8 bits."""
    given = [file.get(name) for name in ("WindowCenter", "WindowWidth")]
    if all(value not in (None, "") for value in given):
        centre, width = (float(np.ravel(value)[0]) for value in given)
        function, low = str(file.get("VOILUTFunction") or "LINEAR"), centre - width / 2
        if function == "LINEAR" and width > 1:
            return low, low + width - 1
        if function == "LINEAR_EXACT" and width > 0:
            return low, centre + width / 2
    rescaled = "ModalityLUTSequence" in file or (file.get("RescaleSlope", 1), file.get("RescaleIntercept", 0)) != (1, 0)
    if given[0] in (None, "") and file.BitsStored == 8 and not file.PixelRepresentation and not rescaled:
        return 0.0, 255.0
    raise Refused(f"image {path} has no window that is known: give the file one")


def regular(path: Path, most: int | None = None) -> Path:
    """A path of a regular file and no link, of at most so many bytes."""
    try:
        found = path.lstat()
    except OSError as error:
        raise Refused(f"{path} is missing") from error
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"{path} is no regular file")
    if most is not None and found.st_size > most:
        raise Refused(f"{path} is larger than {most:,} bytes")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of JSON that holds an object."""
    try:
        tree = json.loads(regular(path, _MOST_BYTES.get(path.name, _MOST_JSON)).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} is damaged: {_line(error)}") from error
    if not isinstance(tree, dict):
        raise Refused(f"{path} is damaged: it holds no object")
    return tree


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def listed(folder: Path) -> dict[str, str]:
    """The digests of a folder's manifest by the name of the file, which lies in the folder itself."""
    digests = read_json(folder / MANIFEST).get("sha256")
    if not isinstance(digests, dict) or not 0 < len(digests) <= _MOST_FILES:
        raise Refused(f"{folder / MANIFEST} is damaged: it lists no files")
    for name, digest in digests.items():
        if name in ("", ".", "..", *UNLISTED) or set(name) & set("/\\:\0") or not name.isprintable():
            raise Refused(f"{folder / MANIFEST} names {name!r}, which is no file of this folder")
        if not isinstance(digest, str) or len(digest) != 64:
            raise Refused(f"{folder / MANIFEST} has no SHA-256 of {name}")
    return digests


def changed_files(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Tell which of some files are not as the manifest of their folder says."""
    digests = listed(folder)
    for name in names:
        try:
            if digest_of(regular(folder / name)) != digests.get(name):
                yield f"{folder / name} was changed since the export"
        except (Refused, OSError) as error:
            yield _line(error)


def check_files(folder: Path) -> int:
    """Compare all files with the manifest, and count them; anything changed, missing or additional is refused."""
    names = list(listed(folder))
    needed = [name for name in (ONNX, ARCHITECTURE) if name not in names]
    faults = [*changed_files(folder, [*needed, *names])]
    added = sorted(entry.name for entry in folder.iterdir() if entry.name not in (*names, *UNLISTED))
    faults += [f"{folder / name} is additional, and not in the manifest" for name in added]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise Refused(f"{'; '.join(faults[:3])}{more}: copy the folder again from where it was exported")
    return len(names)


def in_words(answer: dict[str, Any]) -> str:
    """An answer in one line; what a terminal cannot show of a name, or would obey, is a question mark."""
    if "class" in answer:
        line = f"{answer['image']}: {answer['class']} ({answer['probabilities'][answer['class']]:.4f})"
    else:
        line = f"{answer['image']}: " + ", ".join(f"{name} {share:.4f}" for name, share in answer["shares"].items())
    return "".join(character if character.isprintable() else "?" for character in line)


def some_numbers(scores: np.ndarray) -> list[list[float]]:
    """The numbers of each answer that are compared: all, or of a map evenly spread ones."""
    flat = scores.reshape(len(scores), -1)
    return [[float(number) for number in row] for row in flat[:, :: -(-flat.shape[1] // _MOST_NUMBERS)]]


def answering(folder: Path, ending: str = "") -> list[str]:
    """The files whose answers were written down, with an ending of their name."""
    names, files = read_json(folder / REFERENCE).get("scores"), listed(folder)
    further = names if isinstance(names, dict) else ()
    return [ONNX, *(name for name in further if name != ONNX and name.endswith(ending) and name in files)]


def gap_between(scores: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of scores from those that are expected, as a share of the largest of these."""
    return float(np.abs(scores - expected).max()) / max(float(np.abs(expected).max()), _SMALLEST_SCORE)


def check_answers(folder: Path, scores: np.ndarray, of: str = ONNX) -> float:
    """Compare answers to the made inputs with those at export; the largest difference, relative to the scores."""
    reference = read_json(folder / REFERENCE)
    try:
        tolerance, expected = float(reference["tolerances"][of]), np.array(reference["scores"][of], np.float64)
        found = np.array(some_numbers(scores))
        gap = gap_between(found, expected)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Refused(f"{folder / REFERENCE} is damaged: {_line(error)}") from error
    if not gap <= tolerance <= 1:
        raise Refused(
            f"{folder / of} does not answer as at export: scores differ by {gap:.2g} of the largest, and may differ by "
            f"{tolerance:g}"
        )
    return gap


def benchmark(folder: Folder) -> dict[str, Any]:
    """Measure how long batches of 1 and of 32 take, in milliseconds."""
    batches = {}
    for size in (1, 32):
        pixels = np.resize(folder.made_inputs(4), (size, *folder.shape))
        taken: list[float] = []
        end = time.perf_counter() + _SECONDS
        while len(taken) < _FEWEST + _WARM_UP or (time.perf_counter() < end and len(taken) < _MOST):
            start = time.perf_counter()
            folder.scores(pixels)
            taken.append(1000 * (time.perf_counter() - start))
        median, p95 = (float(np.percentile(taken[_WARM_UP:], share)) for share in (50, 95))
        batches[str(size)] = {"median_ms": median, "p95_ms": p95, "batches": len(taken) - _WARM_UP}
    metrics = read_json(folder.path / METRICS)
    return {
        "study": metrics.get("study"),
        "trial": metrics.get("trial"),
        "sha256": digest_of(folder.path / ONNX),
        "latency": batches,
        "threads": folder.threads,
        "peak_memory_mb": _peak_memory(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "onnxruntime": onnxruntime.__version__,
    }


def _peak_memory() -> float | None:
    """The most memory that this process has taken, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _processor() -> str:
    """The model of the processor, or of the board."""
    with contextlib.suppress(OSError):
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
        named = {key.strip().lower(): value.strip() for key, _, value in lines}
        return named.get("model name") or named.get("model") or platform.machine()
    return platform.processor() or platform.machine()


def _line(error: object) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def main() -> None:
    """Run a command; bad input ends it with one line and exit code 2."""
    parser = argparse.ArgumentParser(description="Run the network of this folder.")
    commands = parser.add_subparsers(dest="command", required=True)
    images = commands.add_parser("predict", help="classify images")
    images.add_argument("images", nargs="+", metavar="IMAGE")
    images.add_argument("--json", action="store_true", help="print JSON")
    commands.add_parser("verify", help="compare files and answers with those at export")
    timing = commands.add_parser("benchmark", help="measure latency and memory on this machine")
    timing.add_argument("--threads", default="1", metavar="N", help="1 to 256; 1 by default")
    timing.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there")
    options, here = parser.parse_args(), Path(__file__).resolve().parent
    try:
        if options.command == "predict":
            for answer in map(Folder(here).answer, options.images):
                print(json.dumps(answer) if options.json else in_words(answer))
        elif options.command == "verify":
            count = check_files(here)
            names = answering(here, ".onnx")
            gap = max(check_answers(here, Folder(here, onnx=name).made_scores(), name) for name in names)
            print(f"verified: {count} files are as exported, and scores differ by {gap:.1g} of the largest")
        else:
            if options.threads not in map(str, range(1, 257)):  # Python reads digits of other scripts and 1_0 as well
                raise Refused(f"--threads {options.threads!a} is not allowed: give a whole number from 1 to 256")
            text = json.dumps(benchmark(Folder(here, int(options.threads))), indent=2)
            print(text)
            if options.out:
                options.out.write_text(text + "\n", encoding="utf-8")
    except (Refused, OSError) as error:
        print(f"error: {_line(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
