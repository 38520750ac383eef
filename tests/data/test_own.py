import numpy as np
import pytest
import torch
from own_images import write_factory
from torch.utils.data import TensorDataset

from hscc_search.config import DataConfig
from hscc_search.data import load_dataset, notices, split
from hscc_search.data.own import dataset_of
from hscc_search.errors import DataError
from hscc_search.evaluation.predictions import network_input


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))


def items(count, shape=(3, 8, 8), seed=0, classes=2, uint8=False, maps=None):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, *shape, generator=generator)
    labels = (
        torch.arange(count) % classes if maps is None else torch.randint(classes, (count, *maps), generator=generator)
    )
    return TensorDataset((inputs * 255).to(torch.uint8) if uint8 else inputs, labels)


def three(**keys):
    return [items(count, seed=seed, **keys) for seed, count in enumerate((20, 8, 6))]


class Changing:
    """Items whose inputs change at random when they are read, as under augmentation."""

    def __init__(self, dataset, share=1.0):
        self.dataset, self.share = dataset, share
        self.generator = np.random.default_rng(0)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, position):
        image, label = self.dataset[position]
        return (image.flip(2) if self.generator.random() < self.share / 2 else image), label


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 10), (5,), (2, 3, 4, 5)])
def test_inputs_of_any_shape_arrive_as_they_are(shape):
    given = three(shape=shape)
    dataset = dataset_of(*given)
    parts = split(dataset, 0.15, 0.15, 0)
    for part, own in zip(vars(parts).values(), given, strict=True):
        inputs, labels = own.tensors
        np.testing.assert_array_equal(np.asarray(part.images), inputs.numpy())
        np.testing.assert_array_equal(part.labels, labels.numpy())
        assert torch.equal(network_input(torch.from_numpy(part.images[:]), DataConfig(source="digits")), inputs)
        assert len(set(part.groups.tolist())) == len(part)
    assert (dataset.images.dtype, dataset.classes, dataset.notes) == (np.float32, ("0", "1"), ())


def test_maps_of_classes_are_labels_of_their_shape():
    given = three(maps=(4, 6), classes=3)
    parts = split(dataset_of(*given, classes=["ground", "organ", "tumour"]), 0.15, 0.15, 0)
    for part, own in zip(vars(parts).values(), given, strict=True):
        np.testing.assert_array_equal(part.labels, own.tensors[1].numpy())
    assert parts.train.labels.dtype == np.uint8
    assert len(parts.train.subset(5, 0)) == 5
    assert notices(dataset_of(*given), parts) == ()


def test_the_same_items_are_one_fingerprint_and_other_items_another():
    prints = [dataset_of(*three()).fingerprint, dataset_of(*three()).fingerprint]
    prints += [dataset_of(*three(classes=3)).fingerprint, dataset_of(*three(uint8=True)).fingerprint]
    train, validation, test = three()
    prints += [
        dataset_of(train, test, validation).fingerprint,
        dataset_of(train, validation, test, ["a", "b"]).fingerprint,
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 5


def test_a_train_part_that_changes_is_told_and_kept_as_it_was_read_first():
    train, validation, test = three()
    first, again = (dataset_of(Changing(train), validation, test) for _ in range(2))
    assert "inputs of the train part change when they are read again" in first.notes[0]
    assert first.fingerprint == again.fingerprint
    np.testing.assert_array_equal(first.images, again.images)


@pytest.mark.parametrize("share", [1.0, 0.05])
def test_a_measured_part_that_changes_is_refused(share):
    train, validation, _ = three()
    with pytest.raises(DataError, match="the test part gives other inputs when it is read again"):
        dataset_of(train, validation, Changing(items(60, seed=5), share))


def test_copies_between_parts_are_refused_unless_they_are_allowed():
    train, validation, _ = three(uint8=True)
    match = (
        r"3 of 20 images of the train part, 3 of 3 images of the test part have copies .*such as train\[0\], test\[0\]"
    )
    copied = TensorDataset(*(values[:3] for values in train.tensors))
    with pytest.raises(DataError, match=match):
        dataset_of(train, validation, copied)
    assert "have copies in another one" in dataset_of(train, validation, copied, allow_leaks=True).notes[0]
    assert dataset_of(train, validation, copied, copies="none").notes == ()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.zeros(3, 8, 8), "an input and a target, or these and a group"),
        (("cat.png", 0), "input of type <U7"),
        ((torch.zeros(3, 8, 8, dtype=torch.int64), 0), "floating-point numbers or uint8"),
        ((torch.full((3, 8, 8), torch.nan), 0), "NaN or infinity"),
        ((torch.zeros(3, 8, 8), -1), "position of a class is needed"),
        ((torch.zeros(3, 8, 8), torch.tensor([0.0, 1.0])), "position of a class is needed"),
        ((torch.zeros(3, 8, 9), 0), "another shape or type"),
        ((torch.zeros(3, 8, 8, dtype=torch.uint8), 0), "another shape or type"),
        ((torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.int64)), "another shape or type"),
    ],
)
def test_items_that_cannot_be_used_are_named_in_one_line(item, message):
    train, validation, test = three()
    with pytest.raises(DataError, match=rf"validation\[8\].*{message}"):
        dataset_of(train, [*validation, item], test)


def test_parts_and_classes_that_cannot_be_used_are_refused():
    train, validation, test = three()
    with pytest.raises(DataError, match="the test part is empty"):
        dataset_of(train, validation, [])
    with pytest.raises(DataError, match="must have a length and items by position"):
        dataset_of(iter(train), validation, test)
    with pytest.raises(DataError, match=r"cannot read validation\[0\]: KeyError"):
        dataset_of(train, Broken(), test)
    with pytest.raises(DataError, match=r"cannot read validation\[0\]: SystemExit: 0"):
        dataset_of(train, Broken(SystemExit), test)
    with pytest.raises(DataError, match="targets go up to 1, and classes are one"):
        dataset_of(train, validation, test, classes=["one"])
    with pytest.raises(DataError, match=r"data\.classes names x"):
        dataset_of(train, validation, test, order=("x", "0"))
    with pytest.raises(DataError, match="all targets are class 0"):
        dataset_of(*three(classes=1))


class Grouped:
    """Items that say which patient each is of."""

    def __init__(self, dataset, groups):
        self.dataset, self.groups = dataset, groups

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, position):
        return (*self.dataset[position], self.groups[position])


def in_groups(*per_part):
    return [Grouped(part, groups) for part, groups in zip(three(), per_part, strict=True)]


@pytest.mark.parametrize("number", [int, str, torch.tensor, np.int64])
def test_items_that_name_a_group_belong_together(number):
    numbers = [range(20), range(20, 28), range(30, 36)]
    dataset = dataset_of(*in_groups(*([number(value // 2) for value in part] for part in numbers)))
    assert np.array_equal(dataset.groups, np.repeat(np.arange(17), 2))
    parts = split(dataset, 0.15, 0.15, 0)
    assert [len(set(part.groups.tolist())) for part in vars(parts).values()] == [10, 4, 3]
    assert dataset.judgement != dataset_of(*three()).judgement


def test_a_group_in_two_parts_is_refused_unless_it_is_allowed():
    parts = in_groups(["anna"] * 20, ["anna", *["bert"] * 7], ["carl"] * 6)
    with pytest.raises(DataError, match=r"1 of 3 groups, 21 images, stand in two.*allow_leaks"):
        dataset_of(*parts)
    assert dataset_of(*parts, allow_leaks=True).notes


@pytest.mark.parametrize(
    ("group", "message"),
    [("", "an empty group"), (0.5, "the group 0.5: a text or a whole number"), ([1, 2], "a text or a whole number")],
)
def test_a_group_that_cannot_be_used_is_named(group, message):
    with pytest.raises(DataError, match=rf"validation\[3\].*{message}"):
        dataset_of(*in_groups(range(20), [20, 21, 22, group, *range(24, 28)], range(30, 36)))


def test_groups_are_named_in_all_items_or_in_none():
    train, validation, test = three()
    with pytest.raises(DataError, match="28 of 34 items name no group"):
        dataset_of(train, validation, Grouped(test, range(6)))


class Broken:
    def __init__(self, error=KeyError):
        self.error = error

    def __len__(self):
        return 3

    def __getitem__(self, position):
        raise self.error(position)


@pytest.fixture
def factory(image_folder, tmp_path, monkeypatch):
    """A folder of images, and a module that reads it."""
    folder = image_folder({"cat": 40, "dog": 30})
    write_factory(folder, tmp_path / "own_data.py")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong", r"own_data:wrong must return the datasets train, validation and test.*not 3"),
        ("broken", "cannot make the data set own_data:broken: OSError: no such server"),
        ("none", "own_data:none: AttributeError"),
        ("left", "cannot make the data set own_data:left: SystemExit: 3"),
    ],
)
def test_a_factory_that_cannot_be_used_ends_in_one_line(factory, function, message):
    with pytest.raises(DataError, match=message):
        load_dataset(DataConfig(source="python", factory=f"own_data:{function}", image_size=8))


def test_inputs_of_another_shape_than_the_study_says_are_refused(factory):
    with pytest.raises(
        DataError, match=r"inputs of shape \(3, 8, 8\), and data\.channels and data\.image_size say \(3, 16, 16\)"
    ):
        load_dataset(DataConfig(source="python", factory="own_data:parts", image_size=16))
