"""Stratified, seeded splits that keep copies of an image in one part."""

from dataclasses import dataclass

import numpy as np

from hscc_search.data.images import Dataset
from hscc_search.errors import DataError


@dataclass(frozen=True)
class Part:
    """Some images of a data set.

    Attributes:
        images: uint8 or uint16, shape (images, channels, height, width).
        labels: int64, shape (images,).
        groups: int64, shape (images,); images with the same number belong together, and are drawn again together.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, count: int, seed: int) -> "Part":
        """Draw at most ``count`` images with ``seed``, each class in proportion; they keep their order."""
        if count >= len(self):
            return self
        generator = np.random.default_rng(seed)
        # The shuffled images of each class are spread evenly over 0 to 1; the ``count`` lowest positions of all
        # classes together then hold each class in proportion.
        positions = np.empty(len(self))
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            positions[generator.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
        chosen = np.sort(np.argsort(positions, kind="stable")[:count])
        return Part(self.images[chosen], self.labels[chosen], self.groups[chosen])


@dataclass(frozen=True)
class Parts:
    """The parts of a data set. The search sees ``train`` and ``validation``; ``test`` is for export and comparison."""

    train: Part
    validation: Part
    test: Part


def split(dataset: Dataset, validation: float, test: float, seed: int) -> Parts:
    """Divide a data set into train, validation and test.

    The train part keeps copies, which do no harm there. The other two hold one image of each group of copies: copies
    would count one outcome several times and make every standard error over images too small.

    Raises:
        DataError: a class has too few groups to be in all three parts.
    """
    shares = (1 - validation - test, validation, test)
    train_indices, *measured = split_indices(dataset.labels, dataset.groups, shares, seed)
    indices = (train_indices, *(_one_of_each(part, dataset.groups) for part in measured))
    for name, part in zip(("train", "validation", "test"), indices, strict=True):
        for label, class_name in enumerate(dataset.classes):
            if not np.any(dataset.labels[part] == label):
                own = dataset.labels == label
                raise DataError(
                    f"class {class_name!r} has too few different images to stand in the {name} part: its "
                    f"{own.sum():,} images are {len(np.unique(dataset.groups[own])):,} groups of copies; add images, "
                    "remove the class, or say with data.copies what a copy is"
                )
    return Parts(*(Part(dataset.images[part], dataset.labels[part], dataset.groups[part]) for part in indices))


def _one_of_each(part: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Keep the first image of each group among the indices of a part."""
    return part[np.sort(np.unique(groups[part], return_index=True)[1])]


def split_indices(
    labels: np.ndarray, groups: np.ndarray, shares: tuple[float, float, float], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide images into three parts, with no group in two of them and every class near its share in each.

    scikit-learn splits by group, or stratified, or both into equal folds, but not both into given shares. Hence this
    greedy rule: go through the groups, large ones first and equal ones in random order, and give each to the part
    that lacks the largest share of the images it should hold of the group's classes.

    Args:
        labels: int64, shape (images,).
        groups: int64, shape (images,), see :func:`hscc_search.data.copies.copy_groups`.
        shares: of train, validation and test; they add up to 1.
        seed: of the random order.

    Returns:
        Ascending indices of the train, validation and test images.
    """
    class_count = int(labels.max()) + 1
    _, group_of_image = np.unique(groups, return_inverse=True)
    sizes = np.zeros((group_of_image.max() + 1, class_count))
    np.add.at(sizes, (group_of_image, labels), 1)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order].sum(axis=1), kind="stable")]
    wanted = np.outer(shares, sizes.sum(axis=0))
    missing = wanted.copy()
    part_of_group = np.empty(len(sizes), np.int64)
    for group in order:
        present = sizes[group] > 0
        need = (missing[:, present] / np.maximum(wanted[:, present], 1e-9)).sum(axis=1)
        part = int(np.argmax(need))
        part_of_group[group] = part
        missing[part] -= sizes[group]
    part_of_image = part_of_group[group_of_image]
    train, validation, test = (np.flatnonzero(part_of_image == part) for part in range(3))
    return train, validation, test
