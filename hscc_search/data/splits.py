"""Stratified, seeded splits that keep copies of an image, and what belongs together, in one part."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hscc_search.data.dataset import Dataset
from hscc_search.data.grouping import linked
from hscc_search.data.listing import PARTS
from hscc_search.data.rows import Images, Rows
from hscc_search.errors import DataError


@dataclass(frozen=True)
class Part:
    """Some images of a data set.

    Attributes:
        images: as in :class:`hscc_search.data.dataset.Dataset`, read when they are asked for.
        labels: likewise.
        groups: int64, shape (images,); images with the same number belong together, and are drawn again together.
    """

    images: Images
    labels: np.ndarray
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, count: int, seed: int) -> "Part":
        """Draw at most ``count`` images with ``seed``, each class in proportion; they keep their order."""
        if count >= len(self):
            return self
        chosen = self.drawn(count, seed)
        return Part(self.images[chosen], self.labels[chosen], self.groups[chosen])

    def drawn(self, count: int, seed: int) -> np.ndarray:
        """The positions of the images that :meth:`subset` draws, ascending; of a larger count they are among these."""
        generator = np.random.default_rng(seed)
        # The shuffled images of each class are spread evenly over 0 to 1; the ``count`` lowest positions of all
        # classes together then hold each class in proportion.
        positions = np.empty(len(self))
        labels = self.labels if self.labels.ndim == 1 else np.zeros(len(self))  # maps have no class of their own
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            positions[generator.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
        return np.sort(np.argsort(positions, kind="stable")[:count])


@dataclass(frozen=True)
class Parts:
    """The parts of a data set. The search sees ``train`` and ``validation``; ``test`` is for export and comparison."""

    train: Part
    validation: Part
    test: Part


def split(dataset: Dataset, validation: float, test: float, seed: int) -> Parts:
    """Divide a data set into train, validation and test, unless it comes with a split, which is kept.

    Neither copies nor groups stand in two parts that are drawn. The train part keeps copies, which do no harm there.
    The other two hold one image of each group of copies: copies would count one outcome several times and make every
    standard error over images too small. In a split that was given they all stay, as groups that are drawn again
    together; where it has no validation part, that is drawn from its train part.

    Raises:
        DataError: a class has too few groups to be in all three parts.
    """
    groups, together = dataset.groups, linked(dataset.copies, dataset.groups)
    if dataset.sides is None:
        shares = (1 - validation - test, validation, test)
        train_indices, *measured = split_indices(dataset.labels, together, shares, seed)
        indices = (train_indices, *(_one_of_each(part, dataset.copies) for part in measured))
    else:
        indices = _given(dataset, dataset.sides, together, validation / (1 - test), seed)
        groups = together
    _check_classes(dataset, indices, together)
    return Parts(*(Part(Rows(dataset.images, part), dataset.labels[part], groups[part]) for part in indices))


def _given(
    dataset: Dataset, sides: np.ndarray, together: np.ndarray, validation: float, seed: int
) -> tuple[np.ndarray, ...]:
    """The indices of the parts of a split that was given, with a validation part drawn where it has none."""
    train, given, test = (np.flatnonzero(sides == side) for side in range(len(PARTS)))
    if len(given):
        return train, given, test
    kept, drawn = split_indices(dataset.labels[train], together[train], (1 - validation, validation), seed)
    return train[kept], train[drawn], test


def _check_classes(dataset: Dataset, indices: Sequence[np.ndarray], together: np.ndarray) -> None:
    """Check that each class stands in each part."""
    for name, part in zip(PARTS, indices, strict=True):
        present = np.zeros(len(dataset.classes), bool)
        present[dataset.labels[part]] = True
        for label, class_name in enumerate(dataset.classes):
            if present[label]:
                continue
            own = dataset.labels == label
            if dataset.sides is not None:
                raise DataError(
                    f"class {class_name!r} has no images in the {name} part of the split that was given: add some, "
                    "or remove the class"
                )
            if np.array_equal(together, dataset.copies):
                kind, remedy = "groups of copies", "say with data.copies what a copy is"
            else:
                kind, remedy = "groups", "look at data.groups and data.copies"
            raise DataError(
                f"class {class_name!r} has too few different images to stand in the {name} part: its {own.sum():,} "
                f"images are {len(np.unique(together[own])):,} {kind}; add images, remove the class, or {remedy}"
            )


def _one_of_each(part: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Keep the first image of each group among the indices of a part."""
    return part[np.sort(np.unique(groups[part], return_index=True)[1])]


def split_indices(
    labels: np.ndarray, groups: np.ndarray, shares: tuple[float, ...], seed: int
) -> tuple[np.ndarray, ...]:
    """Divide images into parts, with no group in two of them and every class near its share in each.

    scikit-learn splits by group, or stratified, or both into equal folds, but not both into given shares. Hence this
    greedy rule: go through the groups, large ones first and equal ones in random order, and give each to the part
    that lacks the largest share of the images it should hold of the group's classes.

    Args:
        labels: int64, shape (images,).
        groups: int64, shape (images,); images that belong together have the same number.
        shares: of the parts, such as train, validation and test; they add up to 1.
        seed: of the random order.

    Returns:
        Ascending indices of the images of each part.
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
    return tuple(np.flatnonzero(part_of_image == part) for part in range(len(shares)))
