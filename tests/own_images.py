"""Images that come in by other ways than one folder per class, for several tests."""

import csv

# A module of the user's own, which reads a folder.
FACTORY = """
import numpy as np
from hscc_search.config import DataConfig
from hscc_search.data import load_dataset, split


def parts():
    dataset = load_dataset(DataConfig(path={folder!r}, image_size=8))
    parts = vars(split(dataset, 0.15, 0.15, 0))
    made = {{name: list(zip(part.images, part.labels)) for name, part in parts.items()}}
    return {{**made, "classes": dataset.classes}}


def as_floats():
    made = parts()
    classes = made.pop("classes")
    return tuple([(image / np.float32(255), label) for image, label in part] for part in made.values())


def wrong():
    return 3


def broken():
    raise OSError("no such server")


def left():
    raise SystemExit(3)
"""


def table_of(folder, path, **columns):
    """Write a table of the images below a folder, in an order of its own; columns say a value for each image."""
    images = sorted(folder.rglob("*.png"), reverse=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", *columns])
        for image in images:
            place = image.relative_to(path.parent)
            writer.writerow([place, image.parent.name, *(value(image) for value in columns.values())])
    return path


def divided_folder(image_folder):
    """Images in the folders Train, val and out, which a split can name."""
    for seed, (name, count) in enumerate({"Train": 30, "val": 8, "out": 10}.items()):
        folder = image_folder({"cat": count, "dog": count}, seed=seed, name=f"images/{name}")
    return folder.parent


def write_factory(folder, module):
    """Write a module whose function ``parts`` gives the parts of a folder."""
    module.write_text(FACTORY.format(folder=str(folder)))
