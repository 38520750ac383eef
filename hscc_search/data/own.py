"""Data sets of the user's own: torch's Datasets of inputs and targets, read once and kept as any other images are."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hscc_search.cache import cache_folder
from hscc_search.config import CopyKind, DataConfig
from hscc_search.data.copies import Look, copy_groups, look_of
from hscc_search.data.dataset import Dataset, judged, leak_lines, ordered_classes
from hscc_search.data.decode import contrast_of
from hscc_search.data.grouping import in_order, linked
from hscc_search.data.items import Item, read_item, read_items
from hscc_search.data.listing import PARTS
from hscc_search.data.store import Arrays, Keep, Stream, arrays_of
from hscc_search.errors import DataError, one_line, quoted
from hscc_search.progress import Progress, Report, silent
from hscc_search.user_code import load_function

# Part of the cache key: raise it when the same items would be stored as other values, or copies judged otherwise.
_VERSION = 1
# Items of a part that are read again, to see whether they are the same.
_READ_AGAIN = 32


@dataclass(frozen=True)
class _First:
    """The findings of the first reading of all parts.

    Attributes:
        digests: of the inputs, by part.
        targets: as texts, by part.
        groups: int64, shape (items,), see :class:`hscc_search.data.dataset.Dataset`.
        stream: shape and type of all inputs.
        maps: shape of the targets, empty for one class for each input.
        most: highest position of a class.
        notes: a line where the train part gives other inputs each time.
        repeated: parts that give the same inputs each time.
    """

    digests: Mapping[str, list[str]]
    targets: Mapping[str, list[str]]
    groups: np.ndarray
    stream: Stream
    maps: tuple[int, ...]
    most: int
    notes: tuple[str, ...]
    repeated: frozenset[str]


def dataset_of_factory(config: DataConfig, report: Report = silent) -> Dataset:
    """The data set that the function ``config.factory`` returns: its parts as a dict or a tuple in their order.

    A dict may also hold ``classes``, the names of the classes by position.

    Raises:
        DataError: the function raises, or returns something else; or as :func:`dataset_of`.
    """
    assert config.factory is not None
    try:
        made = load_function(config.factory)()
    except (Exception, SystemExit) as error:  # whatever the user's code raises, to leave the program too
        raise DataError(f"cannot make the data set {config.factory}: {one_line(error, with_type=True)}") from error
    parts = dict(zip(PARTS, made, strict=True)) if isinstance(made, tuple) and len(made) == len(PARTS) else made
    if not isinstance(parts, dict) or not {*PARTS} <= parts.keys() <= {*PARTS, "classes"}:
        raise DataError(
            f"data.factory {config.factory} must return the datasets train, validation and test, as a dict or a tuple "
            f"of three, not {quoted(made)}"
        )
    try:
        return dataset_of(
            **{"classes": None, **parts},
            order=config.classes,
            copies=config.copies,
            allow_leaks=config.allow_leaks,
            report=report,
        )
    except DataError as error:
        raise DataError(f"data.factory {config.factory}: {error}") from error


def dataset_of(
    train: Any,
    validation: Any,
    test: Any,
    classes: Sequence[str] | None = None,
    order: tuple[str, ...] | None = None,
    copies: CopyKind = "near",
    allow_leaks: bool = False,
    report: Report = silent,
) -> Dataset:
    """Read three datasets of (input, target), or of (input, target, group), such as torch's, into the cache.

    Inputs are all of one shape and type: uint8 of shape (3, height, width) are RGB images, which are normalised and
    augmented as the study says; floating-point numbers of any shape go into the network as they are. Targets are
    positions of classes, or maps of these, shape (height, width). A group, a text or a whole number, says what an item
    belongs to, such as a patient, whose items never stand in two parts.

    Args:
        train: has ``len`` and gives items by position, each the same whenever it is read; of the train part alone,
            inputs may change at random, which is told in a note: their first reading is kept.
        validation: likewise.
        test: likewise.
        classes: names of the classes by position; ``0``, ``1``, ... by default.
        order: the same names in the order of the network's outputs, where that is another one.
        copies: what counts as a copy, see :func:`hscc_search.data.copies.copy_pairs`.
        allow_leaks: whether copies and groups may stand in two parts.
        report: told of each item.

    Raises:
        DataError: an item cannot be used, an input of the validation or the test part changes when it is read again, or
            copies or groups stand in two parts.
    """
    parts = dict(zip(PARTS, (train, validation, test), strict=True))
    first = _read_first(parts, report)
    if first.most < 1:
        raise DataError("all targets are class 0: a classifier needs two or more")
    found = tuple(map(str, classes)) if classes is not None else tuple(map(str, range(first.most + 1)))
    if len(set(found)) < len(found) or len(found) <= first.most:
        raise DataError(f"targets go up to {first.most}, and classes are {', '.join(found)}: name each class once")
    fingerprint = _fingerprint(first, found)
    streams = {"images": first.stream}
    if first.maps:
        streams["labels"] = Stream((first.stream.shape[0], *first.maps), np.min_scalar_type(first.most))
    entry = cache_folder("pixels") / f"{fingerprint[:32]}-own-v{_VERSION}"
    count = f"{first.stream.shape[0]} inputs of a data set"
    arrays = arrays_of(entry, streams, count, lambda keep: _read_all(parts, first, keep, report))
    return _dataset(first, ordered_classes(found, order), found, fingerprint, arrays, copies, allow_leaks)


def _dataset(
    first: _First,
    classes: tuple[str, ...],
    found: tuple[str, ...],
    fingerprint: str,
    arrays: Arrays,
    copies: CopyKind,
    allow_leaks: bool,
) -> Dataset:
    """Put a data set together, with its labels in the order of ``classes``, which the targets name as ``found``."""
    sides = np.repeat(np.arange(len(PARTS)), [len(first.digests[part]) for part in PARTS])
    names = tuple(f"{part}[{number}]" for part in PARTS for number in range(len(first.digests[part])))
    copied, groups = arrays[copies], first.groups
    labels = arrays["labels"]
    if classes != found:
        labels = np.array([classes.index(name) for name in found], labels.dtype)[labels]
    return Dataset(
        images=arrays["images"],
        labels=labels,
        classes=classes,
        copies=copied,
        groups=groups,
        fingerprint=fingerprint,
        contrasts=arrays["contrasts"],
        names=names,
        notes=(*first.notes, *leak_lines(copied, groups, sides, names, allow_leaks)),
        judgement=judged(linked(copied, groups), arrays["shape"], sides),
        sides=sides,
    )


def _fingerprint(first: _First, classes: Sequence[str]) -> str:
    lines = [*classes, *map(str, first.stream.shape)]
    for part in PARTS:
        digests = first.digests[part] if part in first.repeated else [""] * len(first.digests[part])
        lines += [f"{part} {target} {digest}" for target, digest in zip(first.targets[part], digests, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _read_first(parts: Mapping[str, Any], report: Report) -> _First:
    """Read all items once, and some of them again."""
    digests: dict[str, list[str]] = {}
    targets: dict[str, list[str]] = {}
    groups: list[str | None] = []
    total, shapes, most = _total(parts), set(), 0
    for part, items in parts.items():
        digests[part], targets[part] = [], []
        for item in read_items(part, items):
            digests[part].append(item.digest)
            targets[part].append(item.target_digest)
            groups.append(item.group)
            shapes.add((item.input.shape, item.input.dtype, item.target.shape))
            most = max(most, int(item.target.max()))
            report(Progress("reading the data set", sum(map(len, digests.values())), total))
            if len(shapes) > 1:
                raise DataError(
                    f"{part}[{len(digests[part]) - 1}] is of another shape or type than those before: "
                    f"{' and '.join(f'{kind} {shape} with target {target}' for shape, kind, target in shapes)}"
                )
    ((shape, dtype, maps),) = shapes
    changed = {part: _changed(part, items, digests[part]) for part, items in parts.items()}
    notes: tuple[str, ...] = ()
    if changed["train"]:
        notes = (
            f"{changed['train']:,} of {min(_READ_AGAIN, len(digests['train'])):,} inputs of the train part change when "
            "they are read again (random augmentation?): what was read first is kept for all epochs, and another cache "
            "holds other inputs",
        )
    for part in PARTS[1:]:
        if changed[part]:
            raise _changes(part)
    repeated = frozenset(part for part in PARTS if not changed[part])
    return _First(digests, targets, _numbered(groups), Stream((total, *shape), dtype), maps, most, notes, repeated)


def _numbered(groups: Sequence[str | None]) -> np.ndarray:
    """Number groups in their order, int64; each item its own group where none is named."""
    named = sum(group is not None for group in groups)
    if not named:
        return np.arange(len(groups))
    if named < len(groups):
        raise DataError(f"{len(groups) - named:,} of {len(groups):,} items name no group: name one in each, or in none")
    return in_order(np.unique([str(group) for group in groups], return_inverse=True)[1])


def _changed(part: str, items: Any, digests: Sequence[str]) -> int:
    """Read some items of a part again, and count those that are others now."""
    again = np.unique(np.linspace(0, len(digests) - 1, _READ_AGAIN).astype(int)).tolist()
    return sum(read_item(part, items, position).digest != digests[position] for position in again)


def _read_all(parts: Mapping[str, Any], first: _First, keep: Mapping[str, Keep], report: Report) -> Arrays:
    """Read all items once more, and keep them; return their contrasts, groups of copies, and classes."""
    looks: list[Look] = []
    contrasts: list[int] = []
    labels: list[int] = []
    total = _total(parts)
    for part, items in parts.items():
        for position, item in enumerate(read_items(part, items)):
            if part in first.repeated and item.digest != first.digests[part][position]:
                raise _changes(part)
            keep["images"](item.input)
            if "labels" in keep:
                keep["labels"](item.target.astype(np.min_scalar_type(first.most)))
            else:
                labels.append(int(item.target))
            look, contrast = _seen(item)
            looks.append(look)
            contrasts.append(contrast)
            report(Progress("keeping the data set", len(looks), total))
    groups: dict[str, np.ndarray] = dict(copy_groups(looks).items())
    classes = {} if "labels" in keep else {"labels": np.array(labels, np.int64)}
    return {"contrasts": np.array(contrasts, np.uint8), **groups, **classes}


def _seen(item: Item) -> tuple[Look, int]:
    """The look of an input, and its contrast; of what is no RGB image, a digest, and 255 where its values differ."""
    values = item.input
    if values.dtype == np.uint8 and values.ndim == 3 and len(values) == 3:
        image = Image.fromarray(np.ascontiguousarray(values.transpose(1, 2, 0)))
        return look_of(image), contrast_of(image)
    # Inputs of other values have other hashes, which no two inputs share by chance.
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(item.digest), np.uint8)).astype(bool)
    return Look(bits, np.zeros((8, 8, 3), np.float32), False, item.digest), 255 * int(values.max() > values.min())


def _total(parts: Mapping[str, Any]) -> int:
    for part, items in parts.items():
        if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")) or isinstance(items, (str, bytes, dict)):
            raise DataError(
                f"the {part} part is {quoted(items)}, and must have a length and items by position, as a torch Dataset"
            )
        if not len(items):
            raise DataError(f"the {part} part is empty: it needs items (input, target)")
    return sum(map(len, parts.values()))


def _changes(part: str) -> DataError:
    return DataError(
        f"the {part} part gives other inputs when it is read again: leave random changes out of what is measured"
    )
