import numpy as np
import torch
from torch import nn

from hscc_search.config import DataConfig
from hscc_search.data import Part
from hscc_search.evaluation.predictions import BATCH_SIZE, batches, network_input, normalise, predict

CONFIG = DataConfig(source="digits", image_size=8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))


def pixels(count):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), np.uint8)


def test_network_input_is_pixels_from_0_to_1_on_the_scale_of_each_channel():
    images = pixels(4)
    prepared = network_input(torch.from_numpy(images), CONFIG)
    mean, std = (np.array(values)[:, None, None] for values in (CONFIG.mean, CONFIG.std))
    assert prepared.dtype == torch.float32
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(prepared.numpy(), (images / 255 - mean) / std, rtol=1e-5, atol=1e-6)
    assert torch.equal(normalise(torch.ones(1), torch.tensor(0.5), torch.tensor(0.25)), torch.tensor([2.0]))


def test_batches_hold_every_image_once_and_in_order():
    images = pixels(2 * BATCH_SIZE + 5)
    cut = list(batches(images))
    assert [len(batch) for batch in cut] == [BATCH_SIZE, BATCH_SIZE, 5]
    assert np.array_equal(np.concatenate(cut), images)


def test_scores_are_those_of_all_images_at_once_in_evaluation_mode():
    network = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).train()
    part = Part(pixels(BATCH_SIZE + 3), np.zeros(BATCH_SIZE + 3, np.int64), np.arange(BATCH_SIZE + 3))
    scores = predict(network, part, CONFIG, torch.device("cpu"))
    assert (scores.dtype, scores.shape) == (np.float32, (BATCH_SIZE + 3, 4))
    with torch.no_grad():
        expected = network.eval()(network_input(torch.from_numpy(part.images), CONFIG))
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4, atol=1e-5)
