"""Samplers on a landscape that was measured once: how many trials each takes to 99 % of the grid's hypervolume.

Run by `make benchmark-samplers`. The landscape is the file ``landscapes/brain_tumor_alexnet.csv``: every sample of a
grid of 324, each compressed and evaluated on the MRI set. With a storage and a study's name as arguments the file is
written anew from that study, which must have been run with the sampler ``grid``.
"""

import csv
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import optuna
from rich.console import Console
from rich.table import Table

from hscc_search.config import StudyConfig
from hscc_search.pareto.hypervolume import hypervolume, hypervolume_history
from hscc_search.pareto.objectives import objectives_of
from hscc_search.pareto.points import Measured, Point
from hscc_search.study.propose import Tried, propose
from hscc_search.study.space import Space
from hscc_search.study.stored_study import read_study

LANDSCAPE = Path(__file__).parent / "landscapes" / "brain_tumor_alexnet.csv"
SEEDS, MOST = 10, 120
ENOUGH = 0.99
DEFAULT = "Optuna's default"
SPACE = {
    "regions": {"low": 1, "high": 9},
    "clusters": {"low": 1, "high": 3},
    "budget": {"low": 2, "high": 16, "levels": 12},
}


def config_of(sampler, seed):
    tree = StudyConfig.from_file("digits").stored()
    return StudyConfig.from_tree({**tree, "space": SPACE, "sampler": sampler, "seed": seed}, "landscape")


def read_landscape():
    """Read the dense network and a point for each sample."""
    with LANDSCAPE.open() as file:
        rows = list(csv.DictReader(file))
    metrics = [{"flops": float(row["flops"]), "accuracy": float(row["accuracy"])} for row in rows]
    samples = [
        {"regions": int(row["regions"]), "clusters": int(row["clusters"]), "budget": float(row["budget"])}
        for row in rows[1:]
    ]
    points = [
        Point(of, {}, b"", trial, sample) for trial, (sample, of) in enumerate(zip(samples, metrics[1:], strict=True))
    ]
    return Measured(metrics[0], {}, b""), points


def write_landscape(storage, name):
    study = read_study(storage, name)
    LANDSCAPE.parent.mkdir(exist_ok=True)
    with LANDSCAPE.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["regions", "clusters", "budget", "flops", "accuracy"])
        writer.writerow(["", "", "", *written(study.dense)])
        for point in sorted(study.points, key=lambda point: tuple(point.sample.values())):
            writer.writerow([*(point.sample[key] for key in ("regions", "clusters", "budget")), *written(point)])


def written(network):
    return int(network["flops"]), f"{network['accuracy']:.6f}"


def trace(sampler, seed, dense, points, bound):
    """The hypervolume after each trial of one sampler, until it has passed a bound and 40 trials."""
    config = config_of("auto" if sampler == DEFAULT else sampler, seed)
    space, objectives = Space(config, {}), objectives_of(config)
    at = {space.key(point.sample): point for point in points}
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=optuna.samplers.TPESampler(seed=seed))
    tried, reached, history = [], [], []
    for count in range(MOST):
        if count >= 40 and history[-1] >= bound:
            break
        if sampler == DEFAULT:  # as anybody would call it, which tries some settings again
            trial = study.ask(space.distributions)
            sample, attributes = space.snapped(trial.params), {}
        else:
            proposal = propose(space, objectives, tried, seed * 1_000_003 + count)
            sample, attributes = proposal.sample, proposal.attributes
        point = at[space.key(sample)]
        values = tuple(point[objective.metric] for objective in objectives)
        if sampler == DEFAULT:
            study.tell(trial, values)
        tried.append(Tried(sample, values, attributes=attributes))
        reached.append(replace(point, trial=count))
        history = hypervolume_history(reached, objectives, *corners(dense))
    return history


def corners(dense):
    """Reference and ideal point: guessing the largest class reaches 0.3121 of the validation images."""
    return (dense["flops"], 0.3121), (0.0, 1.0)


def first_above(history, bound):
    return next((number for number, value in enumerate(history, 1) if value >= bound), len(history) + 1)


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if len(sys.argv) > 1:
        write_landscape(sys.argv[1], sys.argv[2])
    dense, points = read_landscape()
    objectives = objectives_of(config_of("auto", 0))
    best = hypervolume(points, objectives, *corners(dense))
    table = Table(title=f"{len(points)} settings, hypervolume {best:.4f}; {SEEDS} seeds")
    for head in ("sampler", f"trials to {ENOUGH:.0%}, median", "all seeds", "after 40 trials, median"):
        table.add_column(head)
    for sampler in ("auto", "tpe", "nsga2", "random", DEFAULT, "gp"):
        histories = [trace(sampler, seed, dense, points, ENOUGH * best) for seed in range(SEEDS)]
        needed = sorted(first_above(history, ENOUGH * best) for history in histories)
        words = [str(count) if count <= MOST else f">{MOST}" for count in needed]
        reached = statistics.median(history[39] / best for history in histories)
        median = statistics.median(needed)
        table.add_row(sampler, f"{median:g}" if median <= MOST else f">{MOST}", " ".join(words), f"{reached:.2%}")
    Console(width=120).print(table)
