import importlib
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from hscc_search.config import StudyConfig
from hscc_search.data import load_dataset
from hscc_search.progress import Notice

IMAGES_PER_CLASS = 50


@pytest.fixture(scope="session")
def digit_images(tmp_path_factory):
    """A folder with the first digits of each class: enough to learn something from, few enough to be fast."""
    folder = tmp_path_factory.mktemp("images")
    digits = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir()
        for index, pixels in enumerate(digits.images[digits.target == label][:IMAGES_PER_CLASS]):
            Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8)).save(folder / str(label) / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def study(digit_images):
    """Make a study of those digits that trains quickly and with all random changes but affine ones."""
    quick = {
        "training__epochs": 3,
        "training__flip": True,
        "training__affine": False,
        "training__mixup": 0.2,
        "training__batch_size": 32,
        "training__learning_rate": 0.02,
    }

    def make(**overrides):
        data = {"data__source": "folder", "data__path": digit_images}
        return StudyConfig.from_file("digits", **{**data, **quick, **overrides})

    return make


@pytest.fixture(scope="session")
def plain_study(study):
    """Make such a study without random changes to images."""

    def make(**overrides):
        plain = {"training__epochs": 6, "training__flip": False, "training__mixup": 0.0}
        return study(**{**plain, **overrides})

    return make


@pytest.fixture
def told():
    """A report that keeps what it is told: steps of long work as ``told.steps``, lines as ``told.lines``."""
    return Told()


class Told:
    def __init__(self):
        self.steps, self.lines = [], []

    def __call__(self, progress):
        if isinstance(progress, Notice):
            self.lines.append(progress.task)
        else:
            self.steps.append(progress)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Write modules of a user's own and forget those of before: ``own_module(own_net="from torch import nn ...")``."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    # Python would take the bytecode of a text of equal length that was written within the same second.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    written = set()

    def write(**texts):
        for name, text in texts.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(text))
            written.add(name)
        for name in written:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def first_cache(study, tmp_path_factory):
    """A cache folder that holds the decoded digits."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSCC_CACHE", str(folder))
        load_dataset(study().data)
    return folder


@pytest.fixture(autouse=True)
def own_cache(first_cache, tmp_path, monkeypatch):
    """A cache folder of the test's own; only the decoded digits are shared."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "pixels").symlink_to(first_cache / "pixels")
    monkeypatch.setenv("HSCC_CACHE", str(folder))
    return folder
