"""Inspect and compress networks of every family, and write what became of each into a table.

::

    python tests/sweep_networks.py TABLE.csv                   one network of each family of torchvision and timm
    python tests/sweep_networks.py TABLE.csv my_module:build   networks of your own, by the names of a study file
    python tests/sweep_networks.py TABLE.csv --markdown        print the table as it stands in studies/NETWORKS.md

Each network has random weights, batch norms as after training, and the smallest image size that it takes, and runs in a
process of its own. Rows that the table has already are not made again, so that a sweep continues where it was stopped.
"""

import csv
import multiprocessing
import os
import re
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from geometry import smooth_images
from settling import settle

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.calibration.examination import inspect
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting
from hscc_search.dense.networks import build_network
from hscc_search.errors import HsccError, ModelError
from hscc_search.evaluation.counters import measure_cost
from hscc_search.torchvision_operators import make_importable

CLASSES, IMAGES, BUDGET = 4, 16, 2
SIZES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 384, 448)
TIMEOUT = 300
COLUMNS = (
    "network",
    "image size",
    "outcome",
    "layers",
    "compressible",
    "MMACs",
    "share",
    "error",
    "error unseen",
    "cut",
    "seconds",
    "remark",
)
# Asked for by name, besides one of each family.
WANTED = [
    "tf_efficientnet_b0",
    "resnetv2_50x1_bit",
    "nfnet_f0",
    "mixnet_s",
    "edgenext_xx_small",
    "convnext_tiny",
    "ghostnetv2_100",
    "nasnetalarge",
    *(f"papers:{name}" for name in ("simplenet", "osnet", "emo", "unireplknet")),
    "networks:vanillanet_5",
    "networks:in_the_style_of_lsnet",
]


def families():
    """The smallest network of each family: those whose names begin with the same letters."""
    make_importable()
    import timm
    from torchvision import models

    chosen = {}
    names = [(name, timm.create_model) for name in timm.list_models() if not name.startswith("test_")]
    names += [(name, models.get_model) for name in models.list_models(module=models)]
    for name, build in names:
        family = build.__module__.partition(".")[0], re.match(r"[a-z]+", name)[0]
        try:
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in build(name).parameters())
        except Exception:
            size = 1 << 40  # built by nobody on a device without memory: the last choice
        chosen[family] = min(chosen.get(family, (size, name)), (size, name))
    return [name for _, name in sorted(set(chosen.values()))]


def build(name):
    """Build a network at the smallest size that it takes, with maps that regions can divide where there are any."""
    refusal = None
    for size in SIZES:
        try:
            return build_network(name, CLASSES, size), size
        except ModelError as error:
            refusal = error
            if "no network named" in str(error):
                break
    raise refusal


def row_of(name):
    """Everything that the table says of one network."""
    start = time.perf_counter()
    row = {"network": name}
    try:
        torch.manual_seed(0)
        network, size = build(name)
        row["image size"] = size
        network = settle(network, size)
        inspection = inspect(network, smooth_images(IMAGES, side=size))
        layers = [layer for layer in inspection.layers if layer.macs]
        row |= {
            "layers": len(layers),
            "compressible": sum(layer.left_dense is None for layer in layers),
            "MMACs": f"{inspection.macs / 1e6:.1f}",
            "share": f"{inspection.share:.3f}",
            "error": f"{inspection.error:.1e}",
            "error unseen": f"{inspect(network, smooth_images(IMAGES, seed=7, side=size)).error:.1e}",
        }
        reasons = {}
        for layer in layers:
            if layer.left_dense not in (None, "tiny"):
                reasons[layer.left_dense] = reasons.get(layer.left_dense, 0) + 1
        row["remark"] = "; ".join(
            f"{count} x {reason}" for reason, count in sorted(reasons.items(), key=lambda x: -x[1])
        )
        row["outcome"] = "taken" if inspection.share >= 0.9 else "in part"
        calibration = calibrate(network, smooth_images(IMAGES, side=size))
        try:
            compressed = compress(calibration, Setting(regions=4, budget=BUDGET, cluster_strategy="contiguous"))
            row["cut"] = f"{inspection.macs / measure_cost(compressed.network, size).macs:.3f}"
        except HsccError as error:
            row["cut"] = str(error).partition(":")[2].strip() or str(error)
    except HsccError as error:
        row |= {"outcome": "refused", "remark": str(error)}
    except Exception as error:
        row |= {"outcome": "traceback", "remark": f"{type(error).__name__}: {error}"[:300]}
    return {**row, "seconds": f"{time.perf_counter() - start:.0f}"}


def work(name, results):
    warnings.simplefilter("ignore")
    results.put(row_of(name))


def swept(name):
    """The row of a network, made in a process of its own."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=work, args=(name, results))
    process.start()
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end and process.is_alive() and results.empty():
        time.sleep(0.1)
    if not results.empty():
        row = results.get()
    elif process.is_alive():
        row = {"network": name, "outcome": "too slow", "remark": f"more than {TIMEOUT} s"}
    else:
        row = {"network": name, "outcome": "traceback", "remark": f"the process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return row


def main():
    table, *names = sys.argv[1:]
    path = Path(table)
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    if names == ["--markdown"]:
        print_markdown(rows)
        return
    done = {row["network"] for row in rows}
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not rows:
            writer.writeheader()
        for name in names or list(dict.fromkeys([*WANTED, *families()])):
            if name not in done:
                row = swept(name)
                writer.writerow(row)
                file.flush()
                print(row.get("outcome"), name, row.get("share"), row.get("error"), row.get("cut"), row.get("remark"))


def print_markdown(rows):
    counts = Counter(row["outcome"] for row in rows)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    print(f"""# What becomes of networks of every family

{len(rows)} networks: {outcomes}. One of each family of torchvision and timm (the smallest), and
some in the style of papers that neither has. Random weights, {IMAGES} calibration images, the smallest image size
that the network takes. Taken: 90 % of the multiply-adds or more are in layers that can be compressed. Error:
difference of the answers with all these layers replaced at full rank, relative to how much answers vary, on
calibration images and on others. Cut: multiply-adds of the dense over those of the compressed network, both counted
while they run, where {BUDGET}x was asked for. Made by `python tests/sweep_networks.py TABLE.csv`, and printed by the
same with `--markdown`.
""")
    print("|", " | ".join(COLUMNS), "|")
    print("|", " | ".join("---" for _ in COLUMNS), "|")
    for row in sorted(rows, key=lambda row: row["network"]):
        print("|", " | ".join(row[column].replace("|", "/") for column in COLUMNS), "|")


if __name__ == "__main__":
    main()
