"""What refining and 8-bit integers gain and take, for HSCC and its peers. Run by `make benchmark-refine MRI=DIR`.

Compresses a network on the MRI set by several methods at several budgets on several splits, refines what came out, and
rounds HSCC's to 8-bit integers. Prints, for each stage, the divergence from the dense network on the validation and the
test part, and accuracies minus the dense network's in points with one standard error over all images of all splits,
paired; of integers the size of the file against the dense network's weights, and its speed against the dense network's
file of floats, in ONNX Runtime on one thread, in turns, one image and 32 at once (on a machine that does nothing else);
and how far HSCC is ahead of each other method, paired, in points and in times of the divergence. No label is read but
to measure::

    python tests/benchmark_refine.py DIR [--model alexnet] [--size 224] [--epochs 60] [--splits 0,1,2] [--budgets 6,12]
                                     [--methods hscc,tucker2] [--int8] [--weights FOLDER] [--results FILE]

Dense networks are trained first where they are not in the cache, or read from what `train_mri.py` wrote to FOLDER. With
FILE, which holds a line for each network, what is in it is not measured again; `--splits ""` prints it alone.
"""

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from hscc_search.comparison.methods import METHODS as COMPARED
from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.refining import refine
from hscc_search.compression.setting import Refinement, Setting
from hscc_search.config import StudyConfig
from hscc_search.dense.opened import open_dense
from hscc_search.evaluation.predictions import predict
from hscc_search.runtime.latency import file_runner, in_turns
from hscc_search.runtime.onnx import onnx_scores, write_onnx
from hscc_search.study.deployment import deployed, write_int8_file
from hscc_search.study.opening import calibration_images
from hscc_search.study.refinement import lessons_of

# HSCC as a study would use it, where each layer is divided that gains by a tenth; other names are those of `compare`.
DIVIDED = {
    "9 regions": {"regions": 9, "region_strategy": "grid"},
    "9 random regions": {"regions": 9, "region_strategy": "random"},
    "2 clusters": {"clusters": 2},
    "2 random clusters": {"clusters": 2, "cluster_strategy": "random"},
}
STAGES, PARTS = ("compressed", "refined", "int8"), ("validation", "test")
BATCHES = 1, 32


def compressed(calibration, method, budget, seed):
    if method in DIVIDED:
        return compress(calibration, Setting(budget=budget, rank_multiple=8, seed=seed, **DIVIDED[method])).network
    return COMPARED[method](calibration, budget, seed, Setting.weight_price)


class Split:
    """One split with its dense network and what it answers."""

    def __init__(self, config):
        self.opened = open_dense(config, "cpu", keep=True)
        self.parts = {name: getattr(self.opened.parts, name) for name in PARTS}
        self.dense = {name: self.scores(self.opened.network, name) for name in PARTS}
        for name, part in self.parts.items():
            accuracy = (self.dense[name].argmax(1).numpy() == part.labels).mean()
            print(f"dense, {name} part of split {config.data.split_seed}: {accuracy:.4f}", flush=True)
        self.calibration = calibrate(self.opened.network, calibration_images(self.opened), keep=True)
        self.lessons = lessons_of(self.opened, self.calibration, Refinement())

    def scores(self, network, name):
        return torch.from_numpy(predict(network, self.parts[name], self.opened.config.data, self.opened.device))

    def against_dense(self, scores):
        """The divergence of each image, and whether it is right, minus whether the dense network is."""
        found = {}
        for name, part in self.parts.items():
            given, dense = scores[name], self.dense[name]
            terms = functional.kl_div(given.log_softmax(1), dense.log_softmax(1), reduction="none", log_target=True)
            right, dense_right = (values.argmax(1).numpy() == part.labels for values in (given, dense))
            found[name] = {
                "divergence": float(terms.sum(1).mean()),
                "right": (right.astype(int) - dense_right.astype(int)).tolist(),
            }
        return found

    def measured(self, method, budget, int8):
        """Measure one method at one budget, as it comes, refined, and in integers."""
        began = time.perf_counter()
        network = compressed(self.calibration, method, budget, self.opened.config.data.split_seed)
        seconds = {"compressed": time.perf_counter() - began}
        stages = {"compressed": self.against_dense({name: self.scores(network, name) for name in PARTS})}
        began = time.perf_counter()
        refine(network, self.lessons, Refinement())
        seconds["refined"] = time.perf_counter() - began
        stages["refined"] = self.against_dense({name: self.scores(network, name) for name in PARTS})
        row = {"stages": stages, "seconds": seconds}
        if not int8:
            return row
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            began = time.perf_counter()
            row["in_float"] = len(write_int8_file(network, self.opened, path).in_float)
            seconds["int8"] = time.perf_counter() - began
            stages["int8"] = self.against_dense(
                {name: torch.from_numpy(onnx_scores(path, part)) for name, part in self.parts.items()}
            )
            weights = sum(value.numel() for value in self.opened.network.parameters())
            row["times_smaller"] = 4 * weights / path.stat().st_size
            row["times_faster"] = self.times_faster(path)
        return row

    def times_faster(self, path):
        """How many times faster a file is than the dense network's file of floats, by batch."""
        shape, dense = self.opened.config.data.shape, path.with_name("dense.onnx")
        write_onnx(deployed(copy.deepcopy(self.opened.network), self.opened), shape, dense)
        files = {"dense": file_runner(dense), "int8": file_runner(path)}
        milliseconds = {batch: in_turns(files, shape, batch) for batch in BATCHES}
        return {str(batch): times["dense"] / times["int8"] for batch, times in milliseconds.items()}


def config_of(options, seed):
    weights = options.weights and options.weights / f"{options.model}-{options.size}-split{seed}.safetensors"
    return StudyConfig.from_file(
        options.study,
        data__path=options.data.absolute(),
        data__image_size=options.size,
        data__split_seed=seed,
        model__name=options.model,
        model__checkpoint=weights,
        training__epochs=options.epochs,
    )


def in_words(rows, stage, part):
    """A divergence, and the difference of accuracy in points with its standard error, over splits."""
    found = [row["stages"][stage][part] for row in rows if stage in row["stages"]]
    if not found:
        return "-"
    points = 100 * np.concatenate([each["right"] for each in found])
    divergence = np.mean([each["divergence"] for each in found])
    return f"{divergence:.4f} {points.mean():+.2f} ± {points.std() / np.sqrt(len(points)):.2f}"


def lead(first, others, stage, part):
    """The points by which one method is right more often than another, paired, and how many times nearer it is."""
    pairs = [(of_split, others[split]) for split, of_split in first.items() if split in others]
    pairs = [[row["stages"][stage][part] for row in pair] for pair in pairs]
    points = 100 * np.concatenate([np.subtract(ours["right"], theirs["right"]) for ours, theirs in pairs])
    ratio = np.mean([theirs["divergence"] for _, theirs in pairs]) / np.mean([ours["divergence"] for ours, _ in pairs])
    return f"{points.mean():+.2f} ± {points.std() / np.sqrt(len(points)):.2f}, {ratio:.2f}"


def print_leads(rows):
    """How far HSCC is ahead of each other method on the splits that both were measured on."""
    by_network = {}
    for row in rows:
        by_network.setdefault((row["budget"], row["method"]), {})[row["split"]] = row
    columns = [f"{stage}, {part}" for stage in STAGES[:2] for part in PARTS]
    print(f"\n| HSCC ahead of | splits | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for (budget, method), found in sorted(by_network.items()):
        first = by_network.get((budget, "hscc"), {})
        shared = len(first.keys() & found.keys())
        if method != "hscc" and shared:
            cells = [lead(first, found, stage, part) for stage in STAGES[:2] for part in PARTS]
            print(f"| {budget:g}x, {method} | {shared} | {' | '.join(cells)} |")


def print_table(rows):
    by_network = {}
    for row in rows:
        by_network.setdefault((row["budget"], row["method"]), []).append(row)
    columns = [f"{stage}, {part}" for stage in STAGES for part in PARTS]
    speeds = [f"times faster, batch of {batch}" for batch in BATCHES]
    print(f"| | splits | {' | '.join(columns)} | seconds to refine | times smaller | {' | '.join(speeds)} |")
    print(f"|---|---|{'---|' * len(columns)}---|---|{'---|' * len(speeds)}")
    for (budget, method), found in sorted(by_network.items()):
        cells = [in_words(found, stage, part) for stage in STAGES for part in PARTS]
        seconds = np.median([row["seconds"]["refined"] for row in found])
        size = median([row.get("times_smaller") for row in found], "%.0f")
        cells += [f"{seconds:.0f}", size]
        cells += [median([row.get("times_faster", {}).get(str(batch)) for row in found], "%.1f") for batch in BATCHES]
        print(f"| {budget:g}x, {method} | {len(found)} | {' | '.join(cells)} |")


def median(values, form):
    """The median of what was measured, in words."""
    found = [value for value in values if value is not None]
    return form % np.median(found) if found else "-"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="alexnet")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--splits", default="0")
    parser.add_argument("--budgets", default="6,12,16")
    parser.add_argument("--methods", default="hscc,9 regions,9 random regions,2 clusters,2 random clusters")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--study", default="brain_tumor_alexnet")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    results = options.results
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results and results.exists() else []
    done = {(row["split"], row["budget"], row["method"]) for row in rows}
    networks = [(float(b), method) for b in options.budgets.split(",") for method in options.methods.split(",")]
    for seed in [int(text) for text in options.splits.split(",") if text]:
        missing = [network for network in networks if (seed, *network) not in done]
        split = Split(config_of(options, seed)) if missing else None
        for budget, method in missing:
            row = {"split": seed, "budget": budget, "method": method}
            row |= split.measured(method, budget, options.int8 and method in ("hscc", *DIVIDED))
            rows.append(row)
            if results:
                with results.open("a") as file:
                    file.write(f"{json.dumps(row)}\n")
            print(f"split {seed}, {method} at {budget:g}x: {row['seconds']}", flush=True)
    print_table(rows)
    print_leads(rows)


if __name__ == "__main__":
    main()
