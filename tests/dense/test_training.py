import copy
import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from filelock import FileLock
from geometry import Residual, seeded
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting
from hscc_search.config import StudyConfig
from hscc_search.data import Parts, load_dataset, split
from hscc_search.dense import training
from hscc_search.dense.fine_tuning import fine_tune
from hscc_search.dense.networks import DigitsCNN
from hscc_search.dense.opened import build, checkpoint_path, dense_network
from hscc_search.dense.training import train
from hscc_search.dense.weights import weights_digest
from hscc_search.errors import ModelError
from hscc_search.evaluation.predictions import normalised, predict
from hscc_search.search.trial import calibration_images

CPU = torch.device("cpu")
CHANGES = {
    "training__epochs": 3,
    "training__flip": True,
    "training__mixup": 0.2,
    "training__batch_size": 32,
    "training__learning_rate": 0.02,
}


class PowerCutError(Exception):
    pass


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSCC_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_dataset(StudyConfig.from_file("digits").data)


@pytest.fixture(scope="module")
def parts(dataset):
    whole = split(dataset, 0.15, 0.15, 0)
    return Parts(whole.train.sample(256, 0), whole.validation.sample(100, 0), whole.test)


def study(**overrides):
    return StudyConfig.from_file("digits", **{**CHANGES, **overrides})


def cut_after(epoch, error):
    def report(progress):
        if progress.done == epoch:
            raise error

    return report


@pytest.mark.parametrize(
    ("dropout", "cuts"), [(False, (1,)), (False, (3,)), (True, (1, 2))], ids=["first", "last", "twice with dropout"]
)
def test_an_interrupted_training_ends_in_the_weights_of_an_unbroken_one(
    dataset, parts, tmp_path, monkeypatch, dropout, cuts
):
    changes = {}
    if dropout:
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "own_dropout.py").write_text(
            "from torch import nn\n\n\ndef make(classes):\n"
            "    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),\n"
            "                         nn.Dropout(0.3), nn.Linear(392, classes))\n"
        )
        changes = {"model__name": "own_dropout:make"}
    config = study(**changes)
    unbroken = build(config, 10)
    train(unbroken, config, parts, tmp_path / "unbroken.safetensors", CPU)

    for cut in cuts:
        with pytest.raises(PowerCutError):
            dense_network(config, dataset, parts, CPU, cut_after(cut, PowerCutError()))
        assert not checkpoint_path(config, dataset).exists()
        torch.rand(7)
    epochs = []
    resumed = dense_network(config, dataset, parts, CPU, lambda progress: epochs.append(progress.done))

    assert epochs == list(range(cuts[-1] + 1, 4))
    assert weights_digest(resumed) == weights_digest(unbroken)
    assert weights_digest(resumed) != weights_digest(build(config, 10))
    path = checkpoint_path(config, dataset)
    assert set(path.parent.iterdir()) == {path, path.with_suffix(".lock")}


def test_a_trained_network_is_taken_from_the_cache(dataset, parts):
    config = study(training__epochs=1)
    first = dense_network(config, dataset, parts, CPU)
    epochs = []
    again = dense_network(config, dataset, parts, CPU, epochs.append)
    assert epochs == []
    assert weights_digest(first) == weights_digest(again)
    assert not again.training


def test_a_network_that_another_process_trains_is_waited_for(dataset, parts):
    config, told = study(training__epochs=1), []
    trained, path = dense_network(config, dataset, parts, CPU), checkpoint_path(config, dataset)
    aside = path.rename(path.with_suffix(".aside"))
    with ThreadPoolExecutor(1) as pool, FileLock(path.with_suffix(".lock")):
        waiting = pool.submit(dense_network, config, dataset, parts, CPU, told.append)
        while not told and not waiting.done():
            time.sleep(0.01)
        aside.rename(path)
    assert weights_digest(waiting.result()) == weights_digest(trained)
    assert [progress.note for progress in told] == ["another process is at it"]


def test_training_teaches_the_digits_and_tells_how_it_goes(dataset, parts):
    config = study(training__epochs=6, training__flip=False, training__mixup=0.0, training__affine=False)
    steps = []
    network = dense_network(config, dataset, parts, CPU, steps.append)
    accuracy = (predict(network, parts.validation, config.data, CPU).argmax(1) == parts.validation.labels).mean()
    assert accuracy > 0.7
    assert [(step.done, step.total) for step in steps] == [(epoch, 6) for epoch in range(1, 7)]
    assert f"validation accuracy {accuracy:.3f}" in steps[-1].note


def test_a_part_that_is_smaller_than_a_batch_trains_too(dataset, parts):
    few = dataclasses.replace(parts, train=parts.train.sample(20, 0))
    config = study(training__epochs=1)
    trained = dense_network(config, dataset, few, CPU)
    assert weights_digest(trained) != weights_digest(build(config, 10))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"training__epochs": 4},
        {"training__learning_rate": 0.1},
        {"training__mixup": 0.0},
        {"model__name": "squeezenet1_1"},
        {"model__weights": "DEFAULT"},
        {"data__image_size": 20},
        {"data__split_seed": 1},
        {"data__validation": 0.2},
        {"data__mean": [0.4, 0.5, 0.5]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_weights_trained_otherwise_are_kept_apart(dataset, change):
    assert checkpoint_path(study(**change), dataset) != checkpoint_path(study(), dataset)


@pytest.mark.parametrize(
    "change",
    [
        {"trials": 3},
        {"storage": "sqlite:///other.db"},
        {"space__regions": {"low": 2, "high": 3}},
        {"compression__calibration_images": 64},
        {"model__checkpoint": "elsewhere.pt"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_train_the_network_shares_its_weights(dataset, change):
    assert checkpoint_path(study(**change), dataset) == checkpoint_path(study(), dataset)


def test_weights_trained_on_other_images_are_kept_apart(dataset):
    other = dataclasses.replace(dataset, fingerprint="another")
    assert checkpoint_path(study(), other) != checkpoint_path(study(), dataset)


def test_weights_of_a_changed_function_of_ones_own_are_kept_apart(dataset, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = "from torch import nn\n\n\ndef make(classes):\n    return nn.Linear({width}, classes)\n"
    paths = set()
    for name, width in (("own_first", 3), ("own_second", 4)):
        (tmp_path / f"{name}.py").write_text(source.format(width=width))
        paths.add(checkpoint_path(study(model__name=f"{name}:make"), dataset).name)
    assert len(paths) == 2


def test_a_checkpoint_replaces_training(dataset, parts, tmp_path):
    torch.manual_seed(3)
    own = DigitsCNN(10, 16)
    torch.save(own.state_dict(), tmp_path / "own.pt")
    epochs = []
    config = study(model__checkpoint=tmp_path / "own.pt")
    network = dense_network(config, dataset, parts, CPU, epochs.append)
    assert epochs == []
    assert weights_digest(network) == weights_digest(own)
    assert not (tmp_path / "cache" / "checkpoints").exists()


def test_a_network_starts_from_its_seed_and_leaves_the_callers_randomness_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = build(study(), 10), build(study(), 10), build(study(seed=1), 10)
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_digest(first) == weights_digest(again)
    assert weights_digest(first) != weights_digest(other)


def test_a_network_that_cannot_take_images_of_this_size_is_refused_by_name(dataset, parts):
    with pytest.raises(ModelError, match="squeezenet1_1"):
        dense_network(study(model__name="squeezenet1_1"), dataset, parts, CPU)


def test_a_network_of_ones_own_keeps_the_weights_that_it_comes_with(tmp_path, monkeypatch):
    (tmp_path / "with_weights.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make(classes):\n"
        "    layer = nn.Linear(3 * 16 * 16, classes)\n"
        "    nn.init.constant_(layer.weight, 0.25)\n"
        "    return nn.Sequential(nn.Flatten(), layer)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = build(StudyConfig.from_file("digits", model__name="with_weights:make"), 10)
    assert torch.all(network[1].weight == 0.25)


PLAIN = {"training__epochs": 6, "training__flip": False, "training__mixup": 0.0, "training__affine": False}


@pytest.fixture(scope="module")
def pair(dataset, parts, tmp_path_factory):
    """A dense network that has learnt the digits, and what is left of it with few filters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSCC_CACHE", str(tmp_path_factory.mktemp("cache")))
        config = study(**PLAIN)
        dense = dense_network(config, dataset, parts, CPU)
        calibration = calibrate(dense, calibration_images(config, parts.train, CPU))
        return dense, compress(calibration, Setting(regions=4, ratio=0.03)).network


def tuned(pair, train_part, report=lambda progress: None, **overrides):
    dense, compressed = pair
    network = copy.deepcopy(compressed)
    config = study(**{**PLAIN, "finetuning__epochs": 2, **overrides})
    fine_tune(network, dense, config, train_part, CPU, report)
    return network


def divergence(network, dense, part):
    """Mean Kullback-Leibler divergence of a network's prediction from the dense one's."""
    with torch.no_grad():
        images = normalised(torch.from_numpy(np.array(part.images)), study().data)
        found, wanted = network(images).log_softmax(1), dense(images).log_softmax(1)
    return float(nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("changes", [{}, {"training__mixup": 0.2, "training__affine": True}], ids=["plain", "mixed"])
def test_fine_tuning_is_the_same_each_time_and_leaves_the_callers_randomness_alone(pair, parts, changes):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = tuned(pair, parts.train, **changes)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert weights_digest(tuned(pair, parts.train, **changes)) == weights_digest(first)
    assert weights_digest(tuned(pair, parts.train, seed=1, **changes)) != weights_digest(first)
    assert weights_digest(first) != weights_digest(pair[1])
    assert not first.training


@pytest.mark.parametrize("distillation", [0.0, 0.5, 1.0])
def test_fine_tuning_brings_the_network_nearer_to_its_teacher_and_to_the_labels(pair, parts, distillation):
    losses = []
    network = tuned(
        pair,
        parts.train,
        lambda progress: losses.append((progress.done, progress.total, float(progress.note.removeprefix("loss ")))),
        finetuning__distillation=distillation,
        finetuning__epochs=4,
        finetuning__learning_rate=0.005,
    )
    dense, compressed = pair
    assert divergence(network, dense, parts.test) < 0.8 * divergence(compressed, dense, parts.test)
    assert [step[:2] for step in losses] == [(epoch, 4) for epoch in range(1, 5)]
    assert losses[-1][2] < losses[0][2]

    def right(one):
        return (predict(one, parts.train, study().data, CPU).argmax(1) == parts.train.labels).mean()

    assert right(network) > right(compressed)


def test_fine_tuning_leaves_the_average_of_the_last_weights(pair, parts, monkeypatch):
    """The first weights count as the average so far; the share of each later step is 1 over a tenth of the steps."""
    history = []
    make = training._optimizer

    def watched(network, *rest):
        optimizer = make(network, *rest)
        first = next(iter(network.parameters()))
        optimizer.register_step_post_hook(lambda *_: history.append(first.detach().clone()))
        return optimizer

    monkeypatch.setattr(training, "_optimizer", watched)
    network = tuned(pair, parts.train, training__batch_size=32, finetuning__epochs=4)
    assert len(history) == len(parts.train.labels) // 32 * 4 > 20
    average = history[0]
    for weights in history[1:]:
        average = average + (weights - average) / (0.1 * len(history))
    torch.testing.assert_close(next(iter(network.parameters())).detach(), average)
    assert not torch.equal(average, history[-1])


def test_distillation_alone_does_not_look_at_the_labels(pair, parts):
    wrong = dataclasses.replace(parts.train, labels=np.random.default_rng(0).permutation(parts.train.labels))
    assert (wrong.labels != parts.train.labels).any()

    def digests(distillation):
        return {
            weights_digest(tuned(pair, part, finetuning__epochs=1, finetuning__distillation=distillation))
            for part in (parts.train, wrong)
        }

    assert len(digests(1.0)) == 1
    assert len(digests(0.9)) == 2


def test_labels_alone_do_not_look_at_the_teacher(pair, parts):
    dense, compressed = pair
    changes = {"finetuning__epochs": 1, "finetuning__distillation": 0.0}
    other = build(study(seed=7), 10)
    found = {weights_digest(tuned((teacher, compressed), parts.train, **changes)) for teacher in (dense, other)}
    assert len(found) == 1


def test_the_loss_is_the_weighted_sum_of_the_teachers_and_the_labels(pair, parts):
    """With one step per epoch, the first note tells the loss of known images."""
    few = parts.train.sample(16, 0)
    dense, compressed = pair
    told = []
    tuned(
        pair,
        few,
        lambda progress: told.append(float(progress.note.removeprefix("loss "))),
        training__batch_size=16,
        training__label_smoothing=0.1,
        finetuning__distillation=0.3,
        finetuning__temperature=3.0,
    )
    with torch.no_grad():
        images = normalised(torch.from_numpy(np.array(few.images)), study().data)
        found, wanted = compressed(images), dense(images)
        labels = nn.functional.cross_entropy(found, torch.from_numpy(few.labels), label_smoothing=0.1)
        p, q = (wanted / 3).softmax(1), (found / 3).softmax(1)
        teacher = 9 * (p * (p / q).log()).sum(dim=1).mean()
    assert told[0] == pytest.approx(float(0.7 * labels + 0.3 * teacher), rel=0.02, abs=2e-3)


def test_every_layer_of_a_folded_network_trains_and_the_teacher_stays_as_it_is(parts):
    dense = seeded(lambda: Residual(10))
    calibration = calibrate(dense, calibration_images(study(compression__calibration_images=64), parts.train, CPU))
    network = compress(calibration, Setting(regions=4, clusters=2, energy=0.8)).network
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    before, teacher = copy.deepcopy(network), weights_digest(dense)
    config = study(**PLAIN, finetuning__epochs=1, finetuning__learning_rate=1e-3)
    fine_tune(network, dense, config, parts.train, CPU)
    old = dict(before.named_parameters())
    assert [name for name, value in network.named_parameters() if torch.equal(value, old[name])] == []
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert weights_digest(dense) == teacher
    assert not dense.training
    assert all(value.grad is None for value in dense.parameters())


def test_a_network_with_channels_that_the_loss_does_not_hear_trains_further(parts):
    """Such channels count little in the fit. Were weights large for that, training would diverge at once."""
    config = study(**PLAIN, finetuning__epochs=1, compression__calibration_images=64)
    dense = build(config, 10)
    with torch.no_grad():
        dense[11].bias[32:] -= 9  # three quarters of the features never open: fewer are left than filters
    calibration = calibrate(dense, calibration_images(config, parts.train, CPU))
    network = compress(calibration, Setting(ratio=0.5)).network
    assert max(float(value.detach().abs().max()) for value in network.parameters()) < 30
    before = divergence(network, dense, parts.train)
    fine_tune(network, dense, config, parts.train, CPU)
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert divergence(network, dense, parts.train) < before + 2
