"""Train dense networks on the MRI set in two stages, small images first, and keep their weights for benchmarks.

AlexNet learns at 128 pixels in a third of the time, and a few epochs at 224 are then enough::

    python tests/train_mri.py DATA WEIGHTS --model alexnet --sizes 128,224 --epochs 30,6 --splits 0,1,2,3,4

Writes `WEIGHTS/alexnet-224-split0.safetensors` and so on, and prints accuracies. A file that is there is not made
again, and an unfinished stage goes on where it was stopped. Everything else is as in the study `brain_tumor_alexnet`.
"""

import argparse
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hscc_search.config import StudyConfig
from hscc_search.dense.networks import build_network
from hscc_search.dense.opened import open_dense
from hscc_search.evaluation.predictions import predict

# Highest learning rates: of a network that starts at random, and of one that has learnt smaller images.
RATES = {"alexnet": (0.02, 0.01), "vgg16_bn": (0.02, 0.01)}
OTHER_RATES = (0.05, 0.02)


def start(classes):
    """Build the network that a stage starts from, as the environment names it."""
    network = build_network(os.environ["MRI_MODEL"], classes, int(os.environ["MRI_SIZE"]))
    network.load_state_dict(load_file(os.environ["MRI_WEIGHTS"]))
    return network


def config_of(data, size, split, **settings):
    return StudyConfig.from_file(
        "brain_tumor_alexnet",
        data__path=data.absolute(),
        data__image_size=size,
        data__split_seed=split,
        **settings,
    )


def train(options, split):
    """Train one network through all sizes; return the configuration of the last stage and the opened network."""
    before = None
    rates = RATES.get(options.model, OTHER_RATES)
    for size, epochs in zip(options.sizes, options.epochs, strict=True):
        target = options.weights / f"{options.model}-{size}-split{split}.safetensors"
        settings = {"model__name": options.model, "training__epochs": epochs, "training__learning_rate": rates[0]}
        if before:
            os.environ |= {"MRI_MODEL": options.model, "MRI_SIZE": str(size), "MRI_WEIGHTS": str(before)}
            settings |= {"model__name": "train_mri:start", "training__when": "always"}
            settings |= {"training__learning_rate": rates[1]}
        if target.exists():
            settings = {"model__name": options.model, "model__checkpoint": target}
        config = config_of(options.data, size, split, **settings)
        opened = open_dense(config, "cpu", keep=True)
        if not target.exists():
            save_file({name: value.contiguous() for name, value in opened.network.state_dict().items()}, target)
        before = target
    return config, opened


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--model", default="alexnet")
    parser.add_argument("--sizes", default="128,224")
    parser.add_argument("--epochs", default="30,6")
    parser.add_argument("--splits", default="0")
    options = parser.parse_args()
    options.sizes, options.epochs = (
        [int(value) for value in text.split(",")] for text in (options.sizes, options.epochs)
    )
    options.weights.mkdir(parents=True, exist_ok=True)
    for split in map(int, options.splits.split(",")):
        config, opened = train(options, split)
        for name in ("validation", "test"):
            part = getattr(opened.parts, name)
            scores = torch.from_numpy(predict(opened.network, part, config.data, opened.device))
            accuracy = (scores.argmax(1).numpy() == part.labels).mean()
            print(f"{options.model} at {options.sizes[-1]} px, split {split}, {name}: {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
