"""List the images that a study file names: those of a folder or a table, with groups and parts where it says so."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hscc_search.config import DataConfig, SplitConfig
from hscc_search.data.folder import Skipped, find_images, listed
from hscc_search.data.grouping import grouped, guess_lines
from hscc_search.data.listing import PARTS, Listed
from hscc_search.data.tables import images_of_table
from hscc_search.errors import DataError, printable


@dataclass(frozen=True)
class Listing:
    """The images that a study file names.

    Attributes:
        images: by path, or in the order of the table.
        skipped: what else a folder holds.
        notes: lines on what was skipped, on how the classes were found, and on what looks like groups.
    """

    images: tuple[Listed, ...]
    skipped: Skipped
    notes: tuple[str, ...]


def list_images(config: DataConfig) -> Listing:
    """List the images of a folder or of a table.

    Raises:
        DataError: the folder or the table cannot be read, an expression finds no group in a path, or an image or a
            part is left out of a split.
    """
    assert config.path is not None
    if config.source == "table":
        images, notes = images_of_table(config.path, config.columns)
        skipped = Skipped((), (), ())
    else:
        level = config.class_level or (None if config.split is None else config.split.depth + 1)
        found = find_images(config.path, level, grouped=config.groups is not None)
        depth = len(config.path.parts)
        images = [Listed(path, name, "/".join(path.parts[depth:])) for path, name in found.images]
        skipped, notes = found.skipped, found.notes
    if config.split is not None:
        images = _divided(images, config.path, config.split)
    elif any(image.part for image in images):
        _check_parts(images, config.path)
    if config.groups is not None:
        images = grouped(images, config.groups)
    guesses = map(printable, guess_lines(images))
    return Listing(tuple(images), skipped, (*notes, *guesses))


def _divided(images: Sequence[Listed], folder: Path, split: SplitConfig) -> list[Listed]:
    """Give each image the part whose folder holds it."""
    parts = {Path(name).parts: part for part, name in split.by_part.items()}
    divided = [
        Listed(
            image.path, image.class_name, image.place, image.group, parts.get(Path(image.place).parts[: split.depth])
        )
        for image in images
    ]
    outside = [image.place for image in divided if image.part is None]
    if outside:
        raise DataError(
            f"{len(outside):,} images below {folder} lie in none of the folders of data.split ({listed(outside)}): "
            "move them there, or away"
        )
    for part, name in split.by_part.items():
        if all(image.part != part for image in divided):
            raise DataError(f"data.split.{part}: no images below {folder / name}: name the folder of the {part} part")
    return divided


def _check_parts(images: Sequence[Listed], table: Path) -> None:
    """Check that the split of a table has a train and a test part; validation is drawn where it has none."""
    for part in (PARTS[0], PARTS[2]):
        if all(image.part != part for image in images):
            raise DataError(
                f"no image of table {table} is in the {part} part: a split of your own has train and test, and "
                "validation is drawn from train where there is none"
            )
