import gc
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from geometry import smooth_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.calibration.lattice import choose_lattice
from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.division import clusters, regions
from hscc_search.compression.division.partition import Division, divide
from hscc_search.errors import CompressionError

FOLDER = tempfile.TemporaryDirectory(prefix="hscc-test-")


def record_of(height, width, outputs, images, seed, groups=1, scale=1.0):
    """A record with random effects and random responses of few degrees of freedom and means other than 0."""
    generator = np.random.default_rng(seed)
    lattice = choose_lattice(height, width)
    factors = generator.normal(size=(lattice.positions, images, max(1, outputs - 1)))
    responses = factors @ generator.normal(size=(factors.shape[2], outputs)) + 3 * generator.normal(size=outputs)
    file = Path(FOLDER.name) / "responses.npy"
    np.save(file, (scale * responses).astype(np.float32))
    return LayerRecord(
        name="layer",
        lattice=lattice,
        effects=torch.from_numpy(generator.exponential(size=(lattice.positions, outputs))).float(),
        profiles=torch.from_numpy(generator.random((outputs, height, width))).float(),
        inputs=None,
        macs=height * width * outputs * 9,
        groups=groups,
        fully_connected=False,
        bounds=None,
        file=file,
    )


divisions = st.builds(
    Division,
    st.sampled_from(sorted(regions.STRATEGIES)),
    st.integers(1, 9),
    st.sampled_from(sorted(clusters.STRATEGIES)),
    st.integers(1, 5),
    st.integers(0, 99),
)


@given(
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    groups=st.integers(1, 3),
    division=divisions,
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_blocks_share_out_the_lattice_the_map_and_the_channels(height, width, groups, division, seed):
    record = record_of(height, width, 4 * groups, 3, seed, groups)
    partition = divide(record, division)
    count = int(partition.labels.max()) + 1
    assert partition.labels.shape == (height, width)
    assert len(partition.blocks) == groups
    rows, columns = (indices.numpy() for indices in record.lattice.indices)
    on_lattice = partition.labels[np.ix_(rows, columns)].ravel()
    for group, blocks in enumerate(partition.blocks):
        assert len(blocks) == count
        assert sum(block.area for block in blocks) == height * width
        covered = []
        for region, block in enumerate(blocks):
            assert block.area == (partition.labels == region).sum()
            assert np.arange(4 * groups)[block.channels].tolist() == list(range(4 * group, 4 * group + 4))
            assert len(block.clusters) == len(block.effects) == 4
            assert [len(values) for values in block.eigenvalues] == np.bincount(block.clusters).tolist()
            if (on_lattice == region).any():
                assert (on_lattice[block.positions.numpy()] == region).all()
                covered += block.positions.tolist()
            else:  # it lies between the lattice's positions: all of them stand for it
                assert block.positions.tolist() == list(range(len(on_lattice)))
        assert sorted(covered) == list(range(len(on_lattice)))


@given(
    images=st.integers(1, 12),
    outputs=st.integers(1, 12),
    division=divisions,
    seed=st.integers(0, 999),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
@settings(max_examples=100, deadline=None)
def test_spectra_are_those_of_the_weighted_covariance(images, outputs, division, seed, scale):
    record = record_of(2, 3, outputs, images, seed, scale=scale)
    responses = record.responses.numpy().astype(np.float64)
    (blocks,) = divide(record, division).blocks
    for block in blocks:
        chosen = block.positions.numpy()
        effects = np.sqrt(np.square(record.effects.numpy()[chosen].astype(np.float64)).mean(axis=0))
        np.testing.assert_allclose(block.effects.numpy(), effects + 1e-3 * effects.mean(), rtol=1e-5)
        samples = responses[chosen].reshape(-1, outputs) * block.effects.numpy()
        total = samples.var(axis=0).sum()
        for cluster, values in enumerate(block.eigenvalues):
            members = samples[:, block.clusters == cluster]
            covariance = np.cov(members, rowvar=False, bias=True).reshape(members.shape[1], -1)
            expected = np.linalg.eigvalsh(covariance)[::-1]
            np.testing.assert_allclose(values.numpy(), expected, rtol=1e-3, atol=2e-5 * total + 1e-12 * scale**2)
            assert (values[:-1] >= values[1:]).all()
            assert (values >= 0).all()


@given(
    images=st.integers(1, 12), outputs=st.integers(1, 12), division=divisions, seed=st.integers(0, 999), data=st.data()
)
@settings(max_examples=100, deadline=None)
def test_a_basis_is_made_of_the_leading_axes_of_each_cluster(images, outputs, division, seed, data):
    record = record_of(2, 3, outputs, images, seed)
    for block in divide(record, division).blocks[0]:
        ranks = [data.draw(st.integers(0, len(values))) for values in block.eigenvalues]
        basis = block.basis(ranks)
        assert basis.shape == (outputs, sum(ranks))
        samples = record.responses[block.positions].flatten(0, 1).double() * block.effects
        covariance = torch.from_numpy(np.cov(samples.numpy(), rowvar=False, bias=True).reshape(outputs, outputs))
        for cluster, axes in enumerate(basis.double().split(ranks, dim=1)):
            assert not axes[block.clusters != cluster].any()
            axes = axes[:, axes.any(dim=0)]
            values = block.eigenvalues[cluster]
            torch.testing.assert_close(axes.T @ axes, torch.eye(axes.shape[1]).double(), rtol=1e-5, atol=1e-5)
            variance = (axes.T @ covariance @ axes).trace()
            expected = values[: ranks[cluster]].sum()
            torch.testing.assert_close(variance, expected, rtol=1e-3, atol=1e-4 * float(covariance.trace()) + 1e-9)


@given(images=st.integers(2, 5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_fewer_samples_than_channels_have_no_more_eigenvalues_than_degrees_of_freedom(images, seed):
    record = record_of(1, 1, 20, images, seed)
    ((block,),) = divide(record, Division("none", 1, "none", 1, 0)).blocks
    (values,) = block.eigenvalues
    assert len(values) == 20
    # One degree of freedom is the mean's, but for float32's rounding.
    assert (values[images:] == 0).all()
    assert values[images - 1] <= 1e-6 * values.sum()
    assert (values[: images - 1] > 0).all()


def test_a_region_whose_responses_do_not_vary_has_no_spectrum():
    record = record_of(4, 4, 6, 5, 0)
    stored = np.load(record.file)
    stored.reshape(4, 4, 5, 6)[:2] = 1.5  # the upper half of the map
    np.save(record.file, stored)
    ((upper, lower),) = divide(record, Division("bands", 2, "coactivation", 3, 0)).blocks
    assert all((values == 0).all() for values in upper.eigenvalues)
    assert any((values > 0).any() for values in lower.eigenvalues)


@pytest.mark.parametrize("strategy", sorted(regions.STRATEGIES))
def test_a_fully_connected_layer_has_one_region_and_one_cluster_even_on_maps(strategy):
    class OnMaps(nn.Module):
        def __init__(self):
            super().__init__()
            self.pixels = nn.Linear(3, 12)
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            return self.head(self.pixels(x.permute(0, 2, 3, 1)).relu().mean(dim=(1, 2)))

    calibration = calibrate(OnMaps(), smooth_images(4))
    for record in calibration.records:
        ((block,),) = divide(record, Division(strategy, 4, "coactivation", 3, 0)).blocks
        assert block.area == record.lattice.height * record.lattice.width
        assert block.clusters.max() == 0
        assert block.area == (256 if record.name == "pixels" else 1)


def test_each_group_of_a_convolution_is_divided_for_itself():
    record = record_of(3, 3, 8, 20, 0, groups=2)
    division = Division("grid", 4, "coactivation", 2, 0)
    partition = divide(record, division)
    stored = np.load(record.file)
    np.save(record.file, np.concatenate([stored[:, :, :4], 7 * stored[:, :, 4:]], axis=2))
    del stored
    gc.collect()
    scaled = divide(record, division)
    for before, after in zip(partition.blocks[0], scaled.blocks[0], strict=True):
        for expected, values in zip(before.eigenvalues, after.eigenvalues, strict=True):
            assert torch.equal(expected, values)
    for before, after in zip(partition.blocks[1], scaled.blocks[1], strict=True):
        np.testing.assert_array_equal(before.clusters, after.clusters)
        for expected, values in zip(before.eigenvalues, after.eigenvalues, strict=True):
            torch.testing.assert_close(49 * expected, values, rtol=1e-3, atol=1e-4 * float(values.sum()))


@pytest.mark.parametrize(
    "values",
    [("rings", 1, "none", 1, 0), ("grid", 0, "none", 1, 0), ("grid", 1, "rings", 1, 0), ("grid", 1, "none", 0, 0)],
)
def test_a_division_out_of_range_is_an_error(values):
    with pytest.raises(CompressionError):
        Division(*values)
