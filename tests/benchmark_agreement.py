"""How far the files of an export are from each other. Run by `make benchmark-agreement`; MRI=DIR has other images.

Searches each network with each region strategy in float and in 8-bit integers, with layers that are divided whether
that pays or not, exports each trial in all formats, and runs all files on every test image: model.onnx with and without
ONNX Runtime's optimisations, on one and two threads, with batches of 1 and 32, and in OpenVINO. OpenVINO is left out
where it is not installed, and so are formats of such packages. Prints the largest difference of scores, absolute and as
a share of the largest score, and the number of images whose class differs::

    python tests/benchmark_agreement.py [DIR] [--networks alexnet,grey] [--strategies grid] [--precisions float32]
                                        [--per-class 150] [--results FILE]

Float files are compared with the torch module. A file of 8-bit integers is compared with itself as ONNX Runtime runs it
on one thread, in steps of which the range of its scores has 255; how far it is from float is what the card says. With
FILE, which holds a line for each trial, what is in it is not measured again. Exits with 1 where something is farther
than it should be. Colour images are the digits at 64 x 64 pixels, or ``per-class`` of each class of those in DIR.
"""

import argparse
import csv
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from agreement import MOST, MOST_STEPS, STEPS, Gap, formats_for, gaps_of, of_torch

from hscc_search.compression.refining import mean_divergence
from hscc_search.config import Precision, RegionStrategy, StudyConfig
from hscc_search.errors import ExportError
from hscc_search.export.export import export
from hscc_search.export.folder import CARD
from hscc_search.export.formats import Extras
from hscc_search.study.opening import open_again
from hscc_search.study.study import run_study
from hscc_search.study.trial import prepare

# Epochs, learning rate and images per step that bring each network away from chance; none is well trained.
NETWORKS = {
    "grey": (4, 0.05, 64),
    "alexnet": (20, 0.01, 32),
    "resnet18": (4, 0.02, 32),
    "mobilenet_v2": (8, 0.05, 32),
    "vgg16": (4, 0.005, 16),
}
# Formats of other values, for which the bound of float does not hold.
ROUNDED = ("model-float16.onnx",)


def sample_of(strategy, precision):
    return {"regions": 4, "clusters": 2, "budget": 3.0, "region_strategy": strategy, "precision": precision}


def config_of(network, samples, table, folder):
    epochs, rate, batch = NETWORKS[network]
    grey = network == "grey"
    data = {"channels": 1, "mean": [0.5], "std": [0.5]} if grey else {"image_size": 64, "test": 0.2}
    if table and not grey:
        data |= {"source": "table", "path": table}
    return StudyConfig.from_file(
        "digits",
        name=f"agreement_{network}",
        storage=f"sqlite:///{folder}/{network}.db",
        **{f"data__{name}": value for name, value in data.items()},
        model__name="digits_cnn" if grey else network,
        training__epochs=epochs,
        training__learning_rate=rate,
        training__batch_size=batch,
        compression={"region_gain": 0, "calibration_images": 256},
        space={
            "regions": {"low": 1, "high": 4},
            "clusters": {"low": 1, "high": 2},
            "budget": {"low": 2, "high": 4},
            "region_strategy": get_args(RegionStrategy),
            "precision": get_args(Precision),
        },
        refine__trials="none",
        start=samples,
        trials=len(samples),
    )


def table_of(images, per_class, path):
    """Write a table of some images of each class, spread over all."""
    by_class = {}
    for image in sorted(each for each in images.rglob("*") if each.suffix.lower() in (".jpg", ".png")):
        by_class.setdefault(image.parent.name, []).append(image)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for name, found in by_class.items():
            chosen = np.unique(np.linspace(0, len(found) - 1, per_class).round().astype(int))
            writer.writerows([found[position].absolute(), name] for position in chosen)
    return path


def exported(study, point, out, prepared, formats):
    """Export a trial in some formats; return its results, and why a format was refused by the name of the format."""
    try:
        extras = Extras(tuple(formats), accept_loss=True)
        return export(study, point, study.config, out, "cpu", prepared=prepared, extras=extras), {}
    except ExportError as error:
        reason = str(error)
        refused = [name for name in formats if f"format {name} " in reason]
        if not refused:
            raise
    rest = [name for name in formats if name not in refused]
    metrics, more = exported(study, point, out, prepared, rest)
    return metrics, {**dict.fromkeys(refused, reason), **more}


def measured(network, samples, table, folder):
    """Search, export and compare; yield a line for each sample."""
    study = run_study(config_of(network, samples, table, folder), "cpu")
    prepared = prepare(open_again(study.record, study.config, "cpu"), study.record.dense)
    test = prepared.opened.parts.test
    inputs = np.asarray(test.images[:], np.float32) / np.float32(255)
    for point in study.points:
        strategy, precision = point.sample["region_strategy"], point.sample["precision"]
        plan = study.plan_of(point.trial)
        divided = [layer for layer in plan if layer.regions > 1]
        assert divided or strategy == "none", f"{network}: {strategy} divides no layer"
        out = folder / f"{network}-{strategy}-{precision}"
        metrics, refused = exported(study, point, out, prepared, formats_for(precision))
        gaps, exact, answers = gaps_of(out, inputs)
        row = {
            "network": network,
            "strategy": strategy,
            "precision": precision,
            "layers": len(plan),
            "divided": len(divided),
            "images": len(inputs),
            "largest": float(np.abs(exact).max()),
            "accuracy": metrics.compressed.test.metrics["accuracy"],
            "gaps": {name: asdict(gap) for name, gap in gaps.items()},
            "refused": refused,
        }
        if precision == "int8":
            divergence = float(mean_divergence(torch.from_numpy(answers), torch.from_numpy(exact)))
            said = f"both differ on {metrics.torch_differs_on} of {len(inputs)} images, with a mean divergence of "
            card = (out / CARD).read_text()
            row |= {
                "step": float(np.ptp(answers)) / STEPS,
                "in_float": len(metrics.int8["in_float"]),
                "divergence": divergence,
                "from_float": asdict(Gap.between(answers, exact)),
                "card": said in card and f"{said}{divergence:.2g} nats" in card,
            }
        yield row


def misses(row):
    """The ways in which the files of a line disagree."""
    for name, found in row["gaps"].items():
        gap = Gap(**found)
        if row["precision"] == "int8" and not of_torch(name):
            if gap.absolute > MOST_STEPS * row["step"] or gap.lead * row["largest"] > MOST_STEPS * row["step"]:
                yield f"{name}: {gap.absolute / row['step']:.2g} steps, {gap.classes} classes"
        elif name not in ROUNDED and (gap.share > MOST or gap.lead > MOST):
            yield f"{name}: {gap.share:.1g} of the largest score, {gap.classes} classes"
    yield from row.get("refused", {}).values()
    if not row.get("card", True):
        yield "the card says otherwise how far integers are from float"


def print_tables(rows):
    exact, integers = ([row for row in rows if row["precision"] == name] for name in get_args(Precision))
    ways = list(dict.fromkeys(name for row in exact for name in row["gaps"]))
    print("\nDifferences in float: absolute, as a share of the largest score, images whose class differs\n")
    print(f"| | layers divided | images | largest score | {' | '.join(ways)} |\n|---|---|---|---|{'---|' * len(ways)}")
    for row in exact:
        gaps = [Gap(**row["gaps"][name]) if name in row["gaps"] else None for name in ways]
        cells = [f"{gap.absolute:.1e}, {gap.share:.1e}, {gap.classes}" if gap else "-" for gap in gaps]
        words = f"{row['divided']} of {row['layers']} | {row['images']} | {row['largest']:.3g}"
        print(f"| {row['network']}, {row['strategy']} | {words} | {' | '.join(cells)} |")
    ways = list(dict.fromkeys(name for row in integers for name in row["gaps"] if not of_torch(name)))
    print("\nDifferences in 8-bit integers, in steps, and images whose class differs; and from float\n")
    columns = [*ways, "nats from float", "classes", "largest, in steps"]
    print(f"| | layers divided | images | in float | {' | '.join(columns)} |\n|---|---|---|---|{'---|' * len(columns)}")
    for row in integers:
        gaps = [Gap(**row["gaps"][name]) if name in row["gaps"] else None for name in ways]
        cells = [f"{gap.absolute / row['step']:.2g}, {gap.classes}" if gap else "-" for gap in gaps]
        far = Gap(**row["from_float"])
        cells += [f"{row['divergence']:.2g}", str(far.classes), f"{far.absolute / row['step']:.2g}"]
        words = f"{row['divided']} of {row['layers']} | {row['images']} | {row['in_float']}"
        print(f"| {row['network']}, {row['strategy']} | {words} | {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--strategies", default=",".join(get_args(RegionStrategy)))
    parser.add_argument("--precisions", default=",".join(get_args(Precision)))
    parser.add_argument("--per-class", type=int, default=150)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    results = options.results
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results and results.exists() else []
    done = {(row["network"], row["strategy"], row["precision"]) for row in rows}
    wanted = [(s, p) for p in options.precisions.split(",") for s in options.strategies.split(",")]
    for network in options.networks.split(","):
        samples = [sample_of(*each) for each in wanted if (network, *each) not in done]
        if not samples:
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            table = options.data and table_of(options.data, options.per_class, folder / "images.csv")
            for row in measured(network, samples, table, folder):
                rows.append(row)
                if results:
                    with results.open("a") as file:
                        file.write(f"{json.dumps(row)}\n")
                print(
                    f"{network}, {row['strategy']}, {row['precision']}: {'; '.join(misses(row)) or 'agrees'}",
                    flush=True,
                )
    print_tables(rows)
    sys.exit(any(next(misses(row), None) for row in rows))


if __name__ == "__main__":
    main()
