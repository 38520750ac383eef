"""Seconds and memory of large sets of synthetic images. Run by `make benchmark-large`, or with numbers as arguments.

Prints for 2,000 and 20,000 images how long they take to be read, to be opened again from the cache, and to be searched
(an epoch of training, calibration and two trials), and the most memory that the process had by then, in a process of
its own for each number: `python tests/benchmark_large.py --side 224 2000 20000 200000` is the whole one, which takes
30 GB of disk.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from hscc_search import run_study
from hscc_search.config import StudyConfig
from hscc_search.data import load_dataset, split
from hscc_search.data.copies import near_pairs
from hscc_search.memory import keep_freed_memory

COUNTS, SIDE, CLASSES = (2_000, 20_000), 64, 4


def small_network(classes):
    """A network that costs little at any size of images."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, 4, 2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, 1, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


def write_images(folder, numbers):
    for number in numbers:
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        coarse[..., number % 3] //= 1 + number % CLASSES
        Image.fromarray(coarse).resize((96, 96)).save(folder / str(number % CLASSES) / f"{number:07}.png")


def most_memory():
    """The most memory that this process has had, in MB."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith("VmHWM"))


def measured(name, start, size=None):
    rate = f"{size / (time.perf_counter() - start):8,.0f} images/s" if size else ""
    print(f"  {name:32} {time.perf_counter() - start:8.1f} s {most_memory():8,.0f} MB {rate}", flush=True)


def one(folder, side, count):
    """Measure one number of images in this process."""
    keep_freed_memory()
    torch.set_num_threads(1)
    tree = {
        "name": "large",
        "data": {"path": folder, "image_size": side},
        "model": {"name": "benchmark_large:small_network"},
        "training": {"epochs": 1},
        "compression": {"calibration_images": 256},
        "storage": f"sqlite:///{folder.parent}/studies.db",
        "trials": 2,
    }
    config = StudyConfig.from_tree(tree, "benchmark")
    print(f"{count:,} images of {side} x {side} pixels, {count * 3 * side**2 / 1e6:,.0f} MB of pixels", flush=True)
    measured("imports", time.perf_counter())
    hashes = np.random.default_rng(0).random((count, 256)) < 0.5
    start = time.perf_counter()
    near_pairs(hashes)
    measured("copies among random hashes", start)
    start = time.perf_counter()
    dataset = load_dataset(config.data)
    measured("read", start, count)
    start = time.perf_counter()
    split(dataset, 0.15, 0.15, 0)
    measured("split", start)
    start = time.perf_counter()
    load_dataset(config.data)
    measured("opened again", start)
    start = time.perf_counter()
    run_study(config)
    measured("training, calibration, 2 trials", start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--folder", type=Path, help="of the images; measures only this one, in this process")
    options = parser.parse_args()
    if options.folder is not None:
        one(options.folder, options.side, options.counts[0])
        return
    for count in options.counts:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "images")
            for name in range(CLASSES):
                (folder / str(name)).mkdir(parents=True)
            with ProcessPoolExecutor() as pool:
                shares = [range(first, count, 64) for first in range(64)]
                list(pool.map(write_images, [folder] * 64, shares))
            command = [sys.executable, __file__, str(count), "--side", str(options.side), "--folder", str(folder)]
            environment = {**os.environ, "HSCC_CACHE": f"{temporary}/cache"}
            subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
