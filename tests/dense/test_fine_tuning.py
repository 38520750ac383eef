import copy
import dataclasses

import numpy as np
import pytest
import torch
from geometry import Residual, seeded
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting
from hscc_search.dense.fine_tuning import fine_tune
from hscc_search.dense.opened import open_dense
from hscc_search.dense.start import build
from hscc_search.dense.weights import weights_digest
from hscc_search.evaluation.predictions import network_input, predict
from hscc_search.study.opening import calibration_images

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def opened(plain_study, tmp_path_factory):
    """A dense network that has learnt the digits, and its images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSCC_CACHE", str(tmp_path_factory.mktemp("cache")))
        return open_dense(plain_study(), "cpu")


@pytest.fixture(scope="module")
def parts(opened):
    return opened.parts


@pytest.fixture(scope="module")
def compressed(opened):
    """What is left of the dense network with few filters."""
    return compress(
        calibrate(opened.network, calibration_images(opened)), Setting(regions=4, channel_share=0.03)
    ).network


@pytest.fixture(scope="module")
def fine_tuned(plain_study, opened, compressed):
    """Fine-tune a copy of the compressed network: ``fine_tuned(training__mixup=0.2)``; returns the copy."""

    def make(train_part=None, report=lambda progress: None, teacher=None, **overrides):
        network = copy.deepcopy(compressed)
        config = plain_study(**{"finetuning__epochs": 2, **overrides})
        fine_tune(network, teacher or opened.network, config, train_part or opened.parts.train, CPU, report)
        return network

    return make


def divergence(network, opened, part):
    """Mean Kullback-Leibler divergence of a network's prediction from that of the dense one."""
    with torch.no_grad():
        images = network_input(torch.from_numpy(np.array(part.images)), opened.config.data)
        scores, dense_scores = network(images).log_softmax(1), opened.network(images).log_softmax(1)
    return float(nn.functional.kl_div(scores, dense_scores, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("changes", [{}, {"training__mixup": 0.2, "training__affine": True}], ids=["plain", "mixed"])
def test_fine_tuning_is_the_same_each_time_and_leaves_the_callers_randomness_alone(fine_tuned, compressed, changes):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = fine_tuned(**changes)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert weights_digest(fine_tuned(**changes)) == weights_digest(first)
    assert weights_digest(fine_tuned(seed=1, **changes)) != weights_digest(first)
    assert weights_digest(first) != weights_digest(compressed)
    assert not first.training


@pytest.mark.parametrize("distillation", [0.0, 0.5, 1.0])
def test_fine_tuning_brings_the_network_nearer_to_its_teacher_and_to_the_labels(
    fine_tuned, opened, compressed, parts, distillation
):
    losses = []
    network = fine_tuned(
        report=lambda step: losses.append((step.done, step.total, float(step.note.removeprefix("loss ")))),
        finetuning__distillation=distillation,
        finetuning__epochs=4,
        finetuning__learning_rate=0.005,
    )
    assert divergence(network, opened, parts.test) < 0.8 * divergence(compressed, opened, parts.test)
    assert [step[:2] for step in losses] == [(epoch, 4) for epoch in range(1, 5)]
    assert losses[-1][2] < losses[0][2]

    def accuracy(network):
        return (predict(network, parts.train, opened.config.data, CPU).argmax(1) == parts.train.labels).mean()

    assert accuracy(network) > accuracy(compressed)


def test_fine_tuning_ends_with_the_average_of_the_last_weights(fine_tuned, parts):
    """The first weights count as the average so far; the share of each later step is 1 over a tenth of the steps."""
    history = []

    def record(optimizer, *_):
        history.append(optimizer.param_groups[0]["params"][0].detach().clone())

    recording = register_optimizer_step_post_hook(record)
    try:
        network = fine_tuned(training__batch_size=32, finetuning__epochs=4)
    finally:
        recording.remove()
    assert len(history) == len(parts.train.labels) // 32 * 4 > 20
    average = history[0]
    for weights in history[1:]:
        average = average + (weights - average) / (0.1 * len(history))
    torch.testing.assert_close(next(iter(network.parameters())).detach(), average)
    assert not torch.equal(average, history[-1])


def test_distillation_alone_does_not_use_the_labels(fine_tuned, parts):
    wrong = dataclasses.replace(parts.train, labels=np.random.default_rng(0).permutation(parts.train.labels))
    assert (wrong.labels != parts.train.labels).any()

    def digests(distillation):
        changes = {"finetuning__epochs": 1, "finetuning__distillation": distillation}
        return {weights_digest(fine_tuned(part, **changes)) for part in (parts.train, wrong)}

    assert len(digests(1.0)) == 1
    assert len(digests(0.9)) == 2


def test_labels_alone_do_not_use_the_teacher(fine_tuned, plain_study, opened):
    untrained = build(plain_study(seed=7), 10)

    def digests(distillation):
        changes = {"finetuning__epochs": 1, "finetuning__distillation": distillation}
        return {weights_digest(fine_tuned(teacher=teacher, **changes)) for teacher in (opened.network, untrained)}

    assert len(digests(0.0)) == 1
    assert len(digests(0.1)) == 2


def test_the_loss_is_the_weighted_sum_of_the_teachers_and_the_labels(fine_tuned, opened, compressed, parts):
    """With one step per epoch, the first note tells the loss of known images."""
    few = parts.train.subset(16, 0)
    losses = []
    fine_tuned(
        few,
        lambda step: losses.append(float(step.note.removeprefix("loss "))),
        training__batch_size=16,
        training__label_smoothing=0.1,
        finetuning__distillation=0.3,
        finetuning__temperature=3.0,
    )
    with torch.no_grad():
        images = network_input(torch.from_numpy(np.array(few.images)), opened.config.data)
        scores, dense_scores = compressed(images), opened.network(images)
        label_loss = nn.functional.cross_entropy(scores, torch.from_numpy(few.labels), label_smoothing=0.1)
        p, q = (dense_scores / 3).softmax(1), (scores / 3).softmax(1)
        teacher_loss = 9 * (p * (p / q).log()).sum(dim=1).mean()
    assert losses[0] == pytest.approx(float(0.7 * label_loss + 0.3 * teacher_loss), rel=0.02, abs=2e-3)


def test_every_layer_of_a_folded_network_trains_and_the_teacher_stays_as_it_is(plain_study, opened, parts):
    config = plain_study(finetuning__epochs=1, finetuning__learning_rate=1e-3, compression__calibration_images=64)
    dense = seeded(lambda: Residual(10))
    calibration = calibrate(dense, calibration_images(dataclasses.replace(opened, config=config)))
    network = compress(calibration, Setting(regions=4, clusters=2, energy=0.8)).network
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    before, dense_digest = copy.deepcopy(network), weights_digest(dense)
    fine_tune(network, dense, config, parts.train, CPU)
    weights_before = dict(before.named_parameters())
    assert [name for name, value in network.named_parameters() if torch.equal(value, weights_before[name])] == []
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert weights_digest(dense) == dense_digest
    assert not dense.training
    assert all(value.grad is None for value in dense.parameters())


def test_a_network_with_channels_that_the_loss_barely_depends_on_trains_further(plain_study, opened, parts):
    """Such channels count little in the fit. If that made their weights large, training would diverge at once."""
    config = plain_study(finetuning__epochs=1, compression__calibration_images=64)
    dense = build(config, 10)
    with torch.no_grad():
        dense[11].bias[32:] -= 9  # three quarters of the features are always 0: fewer are left than filters
    its_own = dataclasses.replace(opened, config=config, network=dense)
    network = compress(calibrate(dense, calibration_images(its_own)), Setting(channel_share=0.5)).network
    assert max(float(value.detach().abs().max()) for value in network.parameters()) < 30
    before = divergence(network, its_own, parts.train)
    fine_tune(network, dense, config, parts.train, CPU)
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert divergence(network, its_own, parts.train) < before + 2


class Tabled(nn.Module):
    """A network that looks up its scores in tables of integers, and turns them by complex numbers."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.register_buffer("held", torch.arange(48))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("known", torch.arange(48) % 2 == 0)
        self.codes = nn.Parameter(torch.arange(48), requires_grad=False)
        self.turn = nn.Parameter(torch.ones(10, dtype=torch.complex64))

    def forward(self, images):
        if self.training:
            self.seen += 1
        scores = self.network(images)[:, self.codes[:10]] * self.turn
        return scores.real


def test_tables_of_integers_stay_as_they_are_and_complex_weights_are_trained(plain_study, opened, compressed, parts):
    """Sums of shares of an integer may stay below it, and be cut off to the one before."""
    network = Tabled(copy.deepcopy(compressed))
    network.turn.requires_grad_(False)  # as the network of somebody's own may be handed over
    fine_tune(network, opened.network, plain_study(finetuning__epochs=4, training__batch_size=16), parts.train, CPU)
    assert torch.equal(network.held, torch.arange(48))
    assert torch.equal(network.known, torch.arange(48) % 2 == 0)
    assert torch.equal(network.codes, torch.arange(48))
    assert int(network.seen) == 4 * (len(parts.train) // 16)  # the last count, and no mean of counts
    assert not torch.equal(network.turn.detach(), torch.ones(10, dtype=torch.complex64))
    assert network.turn.isfinite().all()
