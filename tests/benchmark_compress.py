"""Time and memory of compressing, beside the passes of the dense network. Run by `make benchmark`.

Prints three comparisons, each made within one run: the examination of AlexNet and ResNet-18, with its self-check at
full rank, against their calibration; AlexNet compressed with given calibration against forward passes of the dense
network over the calibration images; and the peak memory of compressing stacks of equal layers, 4 and 16 of
them, which grows with the largest layer and not with their number (read from Linux's /proc).
"""

import multiprocessing
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from hscc_search.compression.calibration.agreement import Answers
from hscc_search.compression.calibration.calibrate import BATCH_SIZE, calibrate
from hscc_search.compression.calibration.examination import examine
from hscc_search.compression.calibration.maps import map_size
from hscc_search.compression.calibration.self_check import check_replacing
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting
from hscc_search.dense.networks import build_network
from hscc_search.memory import keep_freed_memory

IMAGES, IMAGE_SIZE, REPEATS = 512, 224, 5
CHANNELS, STACK_IMAGES, STACK_IMAGE_SIZE = 96, 128, 56


def smooth_images(count, image_size):
    coarse = torch.randn(count, 3, image_size // 8, image_size // 8, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=(image_size, image_size), mode="bilinear").contiguous(
        memory_format=torch.channels_last
    )


@torch.inference_mode()
def forward(network, images):
    for batch in images.split(BATCH_SIZE):
        network(batch)


def seconds_of(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def time_self_check():
    """The examination of a network, with its self-check, beside the whole calibration that it is a part of."""
    for name, image_size in (("alexnet", IMAGE_SIZE), ("resnet18", 128)):
        torch.manual_seed(0)
        network, images = build_network(name, 4, image_size), smooth_images(IMAGES, image_size)
        examined = examine(network, images)
        sizes = {
            layer: map_size(examined.network.get_submodule(layer), found.output_shape)
            for layer, found in examined.layers.items()
            if found.reason is None
        }
        answers = Answers(network, images)
        works = {
            "self-check": partial(check_replacing, examined.network, sizes, answers),
            "examination with it": partial(examine, network, images),
        }
        calibration = statistics.median(seconds_of(partial(calibrate, network, images)) for _ in range(2))
        for what, work in works.items():
            share = statistics.median(seconds_of(work) for _ in range(REPEATS)) / calibration
            print(f"{name}, {IMAGES} images: the {what} takes {share:.3f} of the calibration")


def time_beside_forward():
    torch.manual_seed(0)
    network = build_network("alexnet", 4, IMAGE_SIZE)
    images = smooth_images(IMAGES, IMAGE_SIZE)
    calibration = calibrate(network, images)
    for regions in (1, 4, 9):
        dense, ours = [], []
        for _ in range(REPEATS):
            fresh = replace(calibration)  # remembers nothing of an earlier trial
            dense.append(seconds_of(lambda: forward(network, images)))
            setting = Setting(regions=regions, budget=6, rank_multiple=8)
            ours.append(seconds_of(lambda setting=setting, fresh=fresh: compress(fresh, setting)))
        ratio = statistics.median(ours) / statistics.median(dense)
        print(f"AlexNet, {IMAGES} images, {regions} regions: compressing takes {ratio:.2f} dense forward passes")


def peak_of_stack(depth, results):
    """The peak memory of compressing a stack of layers, in MB above the memory in use before it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 4))
    calibration = calibrate(network, smooth_images(STACK_IMAGES, STACK_IMAGE_SIZE), batch_size=8)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of calibrating
    before = peak_megabytes()
    compress(calibration, Setting(regions=4, budget=4))
    results.put((peak_megabytes() - before, before))


def peak_megabytes():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def memory_of_stacks():
    context = multiprocessing.get_context("spawn")
    largest = STACK_IMAGES * CHANNELS * STACK_IMAGE_SIZE**2 * 4 / 2**20
    for depth in (4, 16):
        results = context.Queue()
        process = context.Process(target=peak_of_stack, args=(depth, results))
        process.start()
        extra, before = results.get()
        process.join()
        print(
            f"{depth} equal layers: compressing lifts the peak by {extra:.0f} MB over {before:.0f} MB "
            f"(one layer's answers to all calibration images: {largest:.0f} MB)"
        )


if __name__ == "__main__":
    keep_freed_memory()  # as the command line does
    time_self_check()
    time_beside_forward()
    memory_of_stacks()
