"""What refining gains and takes, with and without regions. Run by `make benchmark-refine MRI=DIR`.

Compresses AlexNet on the MRI set at several budgets on several splits, refines each network, and prints, before and
after: the divergence from the dense network on the validation and the test part, accuracies minus the dense network's
in points with one standard error over all images of all splits, paired, and the seconds of a refinement on all cores.
No label is read but to measure. Dense networks are trained first where they are not in the cache::

    python tests/benchmark_refine.py DIR [--size 128] [--epochs 40] [--splits 0,1,2] [--study FILE]
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.refining import Refinement, mean_divergence, refine
from hscc_search.compression.setting import Setting
from hscc_search.config import StudyConfig
from hscc_search.dense.opened import open_dense
from hscc_search.evaluation.predictions import predict
from hscc_search.study.opening import calibration_images
from hscc_search.study.refinement import lessons_of

SETTINGS = {
    "6x": {"budget": 6.0},
    "12x": {"budget": 12.0},
    "16x": {"budget": 16.0},
    "6x, up to 9 regions": {"budget": 6.0, "regions": 9, "region_strategy": "grid"},
    "6x, up to 9 random regions": {"budget": 6.0, "regions": 9, "region_strategy": "random"},
    "12x, up to 9 regions": {"budget": 12.0, "regions": 9, "region_strategy": "grid"},
    "12x, up to 9 random regions": {"budget": 12.0, "regions": 9, "region_strategy": "random"},
    "6x, 2 clusters": {"budget": 6.0, "clusters": 2},
    "6x, 2 random clusters": {"budget": 6.0, "clusters": 2, "cluster_strategy": "random"},
}


def measured(network, opened, dense):
    """The divergence and the difference of right answers, per image, on the validation and the test part."""
    found = {}
    for name in ("validation", "test"):
        part = getattr(opened.parts, name)
        scores = torch.from_numpy(predict(network, part, opened.config.data, opened.device))
        right, dense_right = (values.argmax(1).numpy() == part.labels for values in (scores, dense[name]))
        divergence = float(mean_divergence(scores, dense[name]))
        found[name] = divergence, right.astype(int) - dense_right.astype(int)
    return found


def split_rows(config):
    """Measure all settings on one split: by setting before, after, and the seconds of refining."""
    opened = open_dense(config, "cpu", keep=True)
    parts = {name: getattr(opened.parts, name) for name in ("validation", "test")}
    dense = {
        name: torch.from_numpy(predict(opened.network, part, config.data, opened.device))
        for name, part in parts.items()
    }
    for name, part in parts.items():
        accuracy = (dense[name].argmax(1).numpy() == part.labels).mean()
        print(f"dense, {name} part of split {config.data.split_seed}: {accuracy:.4f}")
    calibration = calibrate(opened.network, calibration_images(opened), keep=True)
    request = Refinement()
    taught = lessons_of(opened, calibration, request)
    for name, setting in SETTINGS.items():
        network = compress(calibration, Setting(rank_multiple=8, **setting)).network
        before, began = measured(network, opened, dense), time.perf_counter()
        course = refine(network, taught, request)
        seconds = time.perf_counter() - began
        yield name, before, measured(network, opened, dense), seconds, course


def in_words(rows, part):
    """A divergence, and the difference of accuracy in points with its standard error, over splits."""
    divergence = np.mean([row[part][0] for row in rows])
    points = 100 * np.concatenate([row[part][1] for row in rows])
    return f"{divergence:.4f} {points.mean():+.2f} ± {points.std() / np.sqrt(len(points)):.2f}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--splits", default="0")
    parser.add_argument("--study", default="brain_tumor_alexnet")
    options = parser.parse_args()
    columns = {}
    for seed in map(int, options.splits.split(",")):
        config = StudyConfig.from_file(
            options.study,
            data__path=options.data.absolute(),
            data__image_size=options.size,
            data__split_seed=seed,
            training__epochs=options.epochs,
        )
        for name, before, after, seconds, course in split_rows(config):
            columns.setdefault(name, []).append((before, after, seconds))
            print(f"split {seed}, {name}: {course}, {seconds:.0f} s", flush=True)
    head = "KL and points to dense, validation | test | refined, validation | test | seconds"
    print(f"| | {head} |\n|---|---|---|---|---|---|")
    for name, rows in columns.items():
        before, after, seconds = zip(*rows, strict=True)
        cells = [in_words(networks, part) for networks in (before, after) for part in ("validation", "test")]
        print(f"| {name} | {' | '.join(cells)} | {np.median(seconds):.0f} |")


if __name__ == "__main__":
    main()
