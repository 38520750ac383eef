"""The mean and the standard deviation of the channels of images."""

import math

import numpy as np

from hscc_search.data.rows import Images
from hscc_search.evaluation.predictions import batches

# So that the numbers are the same wherever they are computed, and short in a study.
_DECIMALS = 6
# Least standard deviation, of images that are all of one shade.
_SMALLEST = 1e-4


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the mean and the standard deviation of each channel over all images.

    They are added up in whole numbers, so that neither the order of the images nor the machine makes a difference.

    Args:
        images: uint8 or uint16, shape (images, channels, height, width).

    Returns:
        Means and standard deviations of values 0 to 1, rounded to six decimals.
    """
    channels = images.shape[1]
    sums, squares = [0] * channels, [0] * channels
    for batch in batches(images):
        for channel in range(channels):
            values = batch[:, channel].astype(np.uint64)
            sums[channel] += int(values.sum())
            squares[channel] += int((values * values).sum())
    count = math.prod(images.shape) // channels
    largest = np.iinfo(images.dtype).max
    means = [total / count / largest for total in sums]
    # The numerator is a whole number, so nothing cancels.
    deviations = [
        math.sqrt(square * count - total * total) / count / largest for total, square in zip(sums, squares, strict=True)
    ]
    return (
        tuple(round(mean, _DECIMALS) for mean in means),
        tuple(max(round(deviation, _DECIMALS), _SMALLEST) for deviation in deviations),
    )
