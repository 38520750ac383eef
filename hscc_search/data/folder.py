"""Find the images below a folder and their classes, and tell what is skipped.

The classes are the folders of one level below the folder; images may lie deeper in them. That level is the first, or
the second where the first says train, test or validation. Nothing that looks like an image is left out silently.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hscc_search.errors import DataError, printable

# fmt: off
_READ = (
    ".bmp", ".dcm", ".dib", ".dicom", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
)
# Formats of images that are not read: a class would lose them without a word.
_NOT_READ = (
    ".ai", ".apng", ".arw", ".avif", ".avifs", ".cr2", ".cr3", ".cur", ".czi", ".dds", ".dng",
    ".emf", ".eps", ".exr", ".fit", ".fits", ".gif", ".hdr", ".heic", ".heif", ".ico", ".j2c", ".j2k", ".jp2",
    ".jpf", ".jpx", ".jxl", ".mha", ".mpo", ".nd2", ".nef", ".nii", ".nii.gz", ".nrrd", ".orf", ".pcx", ".pfm", ".psd",
    ".qoi", ".raf", ".raw", ".rw2", ".sgi", ".svg", ".svs", ".tga", ".wmf", ".xbm", ".xcf", ".xpm",
)
# fmt: on
# Beside names that begin with a dot: what systems and tools leave behind.
_HIDDEN = frozenset(
    {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db"}
    | {"ehthumbs.db", "desktop.ini", "icon\r"}
)
_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
# How many paths a line names before it counts the rest.
_NAMED = 3


@dataclass(frozen=True)
class Skipped:
    """Paths below a folder that are neither images nor class folders.

    Attributes:
        hidden: folders and files that are hidden, or that a system or a tool left behind.
        others: files that are no images.
        links: links to folders that were read already.
    """

    hidden: tuple[Path, ...]
    others: tuple[Path, ...]
    links: tuple[Path, ...]


@dataclass(frozen=True)
class Found:
    """Images below a folder.

    Attributes:
        images: path and class of each, by path.
        skipped: what else there is.
        notes: lines on what was skipped, and on folders whose names are no classes.
    """

    images: tuple[tuple[Path, str], ...]
    skipped: Skipped
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Tree:
    """All paths below a folder."""

    folder: Path
    folders: tuple[Path, ...]
    files: tuple[Path, ...]
    hidden: tuple[Path, ...]
    links: tuple[Path, ...]

    def parts(self, path: Path) -> tuple[str, ...]:
        return path.parts[len(self.folder.parts) :]

    def short(self, path: Path) -> str:
        return str(Path(*self.parts(path)))


def find_images(folder: Path, class_level: int | None = None, grouped: bool = False) -> Found:
    """Find the images below a folder.

    Args:
        folder: with the class folders.
        class_level: of the folders that are the classes; 1 is directly below ``folder``, None finds it out.
        grouped: whether it is said which images belong together, so that folders below the classes need no note.

    Raises:
        DataError: the folder or one below it cannot be read, holds no image, leaves open which folders are the classes,
            or an image would be lost: by its place, by its format, or with its class.
    """
    tree = _walk(folder)
    images = [path for path in tree.files if path.suffix.lower() in _READ]
    if not images:
        formats = _counted(path.suffix.lower() for path in tree.files if path.name.lower().endswith(_NOT_READ))
        found = f", only {formats} (read are {', '.join(_READ)})" if formats else ""
        raise DataError(
            f"no images below {folder}{found}: expected one folder per class with files such as .jpg or .png"
        )
    level = class_level or _class_level(tree, [tree.parts(path) for path in images])
    _check_places(tree, images, level)
    others = _check_formats(tree, images, level)
    _check_classes(tree, images, level)
    skipped = Skipped(tree.hidden, others, tree.links)
    return Found(
        images=tuple((path, tree.parts(path)[level - 1]) for path in images),
        skipped=skipped,
        notes=tuple(map(printable, (*_skipped_line(tree, skipped), *_layout_lines(tree, images, level, grouped)))),
    )


def listed(names: Iterable[object], most: int = _NAMED) -> str:
    """The first names, and how many more there are: ``a, b and 3 more``."""
    texts = list(map(str, names))
    return ", ".join(texts[:most]) + (f" and {len(texts) - most:,} more" if len(texts) > most else "")


def _walk(folder: Path) -> _Tree:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read folder {error.filename} ({error.strerror}): allow it or remove it") from error

    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises where a folder above may not be entered
        raise DataError(f"no image folder at {folder}: give a folder with one folder of images per class")
    top = os.path.realpath(folder)
    folders: list[Path] = []
    files: list[Path] = []
    hidden: list[Path] = []
    links: list[Path] = []
    visited: set[str] = set()
    for root, below, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(root)
        # A link that leads back, to what was read or to what holds all of it.
        if real in visited or (root != str(folder) and f"{top}/".startswith(f"{real.rstrip('/')}/")):
            links.append(Path(root))
            below.clear()
            continue
        visited.add(real)
        hidden += [Path(root, name) for name in (*below, *names) if _is_hidden(name)]
        below[:] = sorted(name for name in below if not _is_hidden(name))
        folders += [Path(root, name) for name in below]
        files += [Path(root, name) for name in names if not _is_hidden(name)]
    return _Tree(folder, *map(tuple, map(sorted, (folders, files, hidden, links))))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HIDDEN


def _class_level(tree: _Tree, images: Sequence[tuple[str, ...]]) -> int:
    """Find out whether the classes are the first or the second level of folders.

    Raises:
        DataError: both may be.
    """
    inside = [parts for parts in images if len(parts) > 1]
    tops = list(dict.fromkeys(parts[0] for parts in inside))
    splits = [top for top in tops if top.lower() in _SPLITS]
    flat = {parts[0] for parts in inside if len(parts) == 2}
    say_it = "say data.class_level: 1{} in the study file (--class-level for `data check`)"
    if splits == tops and tops:
        if all(len(parts) == 2 for parts in inside):
            raise DataError(
                f"{listed(splits)} below {tree.folder} hold images and no class folders: "
                f"sort them into class folders, or, if these are the classes, {say_it.format('')}"
            )
        return 2
    if any(top not in flat for top in splits):
        others = listed(top for top in tops if top not in splits)
        raise DataError(
            f"{tree.folder} holds {listed(splits)} beside {others}, so it is open which are classes: sort all images "
            f"into class folders, or, if all of these are the classes, {say_it.format('')}"
        )
    _refuse_two_levels(tree, inside, flat, say_it.format(" or 2"))
    return 1


def _refuse_two_levels(tree: _Tree, inside: Sequence[tuple[str, ...]], flat: set[str], say_it: str) -> None:
    """Refuse folders such as ``2024/cat``, ``2024/dog`` and ``2025/cat``, where either level may be the classes.

    Names with a digit are those of patients, cases or days, which may be the same in each class.
    """
    if flat:
        return
    owners: dict[str, list[str]] = defaultdict(list)
    for top, name in dict.fromkeys((parts[0], parts[1]) for parts in inside):
        owners[name].append(top)
    shared = [name for name, own in owners.items() if len(own) > 1 and not any(map(str.isdigit, name))]
    if len(owners) > 1 and shared:
        first, second = owners[shared[0]][:2]
        raise DataError(
            f"below {tree.folder} the classes may be {first}, {second} or the folders in both, such as {shared[0]}: "
            f"{say_it}"
        )


def _check_places(tree: _Tree, images: Sequence[Path], level: int) -> None:
    outside = [path for path in images if len(tree.parts(path)) <= level]
    if outside:
        more = f" (and {len(outside) - 1:,} more)" if len(outside) > 1 else ""
        raise DataError(
            f"image {outside[0]}{more} lies outside of a class folder: move it to {outside[0].parent}/<class>/"
        )


def _check_formats(tree: _Tree, images: Sequence[Path], level: int) -> tuple[Path, ...]:
    """Return the files that are no images.

    Raises:
        DataError: a class would lose images because of their format.
    """
    lost: dict[str, list[Path]] = defaultdict(list)
    others = []
    for path in tree.files:
        if path.suffix.lower() in _READ:
            continue
        parts = tree.parts(path)
        if len(parts) > level and (path.name.lower().endswith(_NOT_READ) or _begins_as_image(path)):
            lost[parts[level - 1]].append(path)
        else:
            others.append(path)
        if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114 - pathlib's raise in a closed folder
            raise DataError(f"link {path} leads nowhere: mend or remove it")
    for name, paths in lost.items():
        count = len(paths) + sum(tree.parts(path)[level - 1] == name for path in images)
        kinds = _counted(path.suffix for path in paths)
        raise DataError(
            f"class {name!r} would lose {len(paths):,} of its {count:,} images because of their format, {kinds} such "
            f"as {paths[0]}: convert, rename or remove them; read are {', '.join(_READ)}"
        )
    return tuple(others)


def _begins_as_image(path: Path) -> bool:
    """Tell whether a file begins as PNG, JPEG, GIF, TIFF, WebP or DICOM do, whatever it is called."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    starts = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
    return head.startswith(starts) or head[8:12] == b"WEBP" or head[128:] == b"DICM"


def _check_classes(tree: _Tree, images: Sequence[Path], level: int) -> None:
    """Check that each class folder holds images, and that its name can be printed and stored."""
    parts = [tree.parts(path) for path in images]
    classes, parents = {own[level - 1] for own in parts}, {own[: level - 1] for own in parts}
    for name in sorted(classes):
        if printable(name) != name:
            raise DataError(f"the name of class folder {name} in {tree.folder} is no plain UTF-8 text: rename it")
    for path in tree.folders:
        own = tree.parts(path)
        if len(own) == level and own[:-1] in parents and own[-1] not in classes:
            why = "is a link to a folder that was read already" if path in tree.links else "holds no images"
            raise DataError(f"class folder {path} {why}: remove it, or add images to it; read are {', '.join(_READ)}")


def _skipped_line(tree: _Tree, skipped: Skipped) -> Iterable[str]:
    kinds = (
        ("hidden", skipped.hidden),
        ("other than images", skipped.others),
        ("linked twice", skipped.links),
    )
    words = [f"{len(paths):,} {kind} ({listed(map(tree.short, paths))})" for kind, paths in kinds if paths]
    if words:
        yield f"skipped files and folders below {tree.folder}: {', '.join(words)}"


def _layout_lines(tree: _Tree, images: Sequence[Path], level: int, grouped: bool) -> Iterable[str]:
    """Lines on folders whose names make no classes, and on classes of one folder such as Testing alone."""
    parts = [tree.parts(path) for path in images]
    deeper = sorted({str(Path(*own[: level + 1])) for own in parts if len(own) > level + 1})
    if deeper and not grouped:
        yield (
            f"folders below the class folders: {len(deeper):,} ({listed(deeper)}); they are no classes, and the images "
            "of one may come into several parts of a split"
        )
    parents: dict[str, set[str]] = defaultdict(set)
    for own in parts:
        parents[own[level - 1]].add("/".join(own[: level - 1]))
    everywhere = set().union(*parents.values())
    partly = [f"{name} ({listed(sorted(own))})" for name, own in sorted(parents.items()) if own != everywhere]
    if partly and level > 1:
        yield f"classes that are not in each of {listed(sorted(everywhere))}: {listed(partly)}"


def _counted(suffixes: Iterable[str]) -> str:
    """Count files by their suffix: ``3 .gif, 1 .heic``."""
    return listed(f"{count:,} {suffix or 'without suffix'}" for suffix, count in Counter(suffixes).most_common())
