import pytest
import torch

from hscc_search.dense.augmentation import augment, mirror, mix


@pytest.fixture
def images():
    return torch.rand(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def test_without_a_change_the_images_stay_as_they_are_and_nothing_is_drawn(images):
    state = torch.get_rng_state()
    assert augment(images, flip=False, affine=False) is images
    assert torch.equal(torch.get_rng_state(), state)


def test_flipping_mirrors_some_images_left_to_right_and_leaves_the_others(images):
    flipped = augment(images, flip=True, affine=False)
    same = (flipped - images).abs().amax(dim=(1, 2, 3)) < 1e-5
    mirrored = (flipped - images.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert (same ^ mirrored).all()
    assert 8 <= mirrored.sum() <= 32


def test_affine_changes_differ_from_image_to_image_and_keep_the_range(images):
    copies = images[:1].expand(40, -1, -1, -1)
    changed = augment(copies, flip=False, affine=True)
    assert changed.shape == copies.shape
    assert len({tuple(image.flatten().tolist()) for image in changed}) == 40
    assert changed.min() >= images[0].min() - 1e-6
    assert changed.max() <= images[0].max() + 1e-6


def test_affine_changes_are_small():
    """A spot in the middle moves by at most a tenth of the image in each direction."""
    images = torch.zeros(200, 1, 41, 41)
    images[:, :, 18:23, 18:23] = 1
    changed = augment(images, flip=False, affine=True)
    positions = torch.arange(41.0)
    mass = changed.sum(dim=(1, 2, 3))
    across = (changed.sum(dim=(1, 2)) * positions).sum(dim=1) / mass
    down = (changed.sum(dim=(1, 3)) * positions).sum(dim=1) / mass
    for centre in (across, down):
        assert 3 < (centre - 20).abs().max() < 4.1 / 0.85 + 0.5
    assert 0.85**2 - 0.1 < 25 / mass.max() < 0.85**2 + 0.1
    assert 1.15**2 - 0.2 < 25 / mass.min() < 1.15**2 + 0.2


def test_what_is_turned_keeps_its_proportions_in_images_that_are_not_square():
    """A disc stays a disc: the spread of its mass is the same in all directions, up to the scale."""
    down, across = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(81.0) - 40, indexing="ij")
    disc = ((down**2 + across**2) < 100).float().expand(100, 1, -1, -1)
    changed = augment(disc, flip=True, affine=True)
    mass = changed.sum(dim=(1, 2, 3))

    def moment(values):
        return (changed[:, 0] * values).sum(dim=(1, 2)) / mass

    spread_down = moment(down**2) - moment(down) ** 2
    spread_across = moment(across**2) - moment(across) ** 2
    slanted = moment(down * across) - moment(down) * moment(across)
    torch.testing.assert_close(spread_down, spread_across, rtol=0.03, atol=0)
    assert (slanted / spread_down).abs().max() < 0.03


def test_without_mixing_nothing_is_drawn(images):
    state = torch.get_rng_state()
    labels = torch.arange(40)
    mixed, ((weight, its_labels),) = mix(images, labels, 0.0)
    assert mixed is images
    assert weight == 1
    assert its_labels is labels
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixed_images_are_the_weighted_sums_of_those_their_labels_name(images, alpha):
    labels = torch.arange(40)
    mixed, components = mix(images, labels, alpha)
    assert [sorted(component.tolist()) for _, component in components] == [list(range(40))] * 2
    assert sum(weight for weight, _ in components) == pytest.approx(1)
    expected = sum(weight * images[component] for weight, component in components)
    torch.testing.assert_close(mixed, expected)


def test_maps_are_mirrored_with_their_images():
    images = torch.rand(40, 3, 6, 8)
    maps = (images[:, 0] > 0.5).long()
    mirrored, with_them = mirror(images, maps)
    assert torch.equal(with_them, (mirrored[:, 0] > 0.5).long())
    turned = (mirrored == images.flip(-1)).flatten(1).all(dim=1)
    assert (turned | (mirrored == images).flatten(1).all(dim=1)).all()
    assert 5 < int(turned.sum()) < 35
