import random

import numpy as np
import pytest
import torch

from hscc_search.dense.start import build, start_of
from hscc_search.dense.weights import weights_digest
from hscc_search.errors import ModelError

HEAD = """
    import random

    import numpy as np
    import torch
    from torch import nn


    def plain(classes):
        return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, classes))


    def constant(classes):
        network = plain(classes)
        for number, parameter in enumerate(network.parameters()):
            nn.init.constant_(parameter, 0.1 * number)
        return network


    def from_file(classes):
        network = plain(classes)
        network.load_state_dict(torch.load(FILE, weights_only=True))
        return network


    def new_head(classes):
        network = constant(classes)
        network[4] = nn.Linear(8, classes)
        return network


    def seeded(classes):
        torch.manual_seed(3)
        return plain(classes)


    def by_numpy(classes):
        network = constant(classes)
        network[4].weight.data = torch.from_numpy(np.random.rand(classes, 8)).float()
        return network


    def by_random(classes):
        network = constant(classes)
        nn.init.constant_(network[4].weight, random.random())
        return network


    def unrepeatable(classes):
        network = constant(classes)
        network[4].weight.data = torch.from_numpy(np.random.default_rng().random((classes, 8))).float()
        return network
"""


@pytest.fixture
def decide(own_module, study, tmp_path):
    """Decide on a function of the module above: ``decide("plain", training__when="always")``."""
    torch.save(
        torch.nn.Sequential(
            torch.nn.Identity(),
            torch.nn.Identity(),
            torch.nn.Linear(48, 8),
            torch.nn.Identity(),
            torch.nn.Linear(8, 10),
        ).state_dict(),
        tmp_path / "weights.pt",
    )
    own_module(own_start=HEAD.replace("FILE", repr(str(tmp_path / "weights.pt"))))

    def call(function, knows=False, **changes):
        config = study(model__name=f"own_start:{function}", **changes)
        return start_of(config, 10, build(config, 10), lambda: knows)

    return call


@pytest.mark.parametrize("function", ["constant", "from_file"])
def test_weights_that_come_with_a_network_are_kept_and_it_is_said(decide, function):
    start = decide(function)
    assert not start.trained
    assert start.words == (
        f"none: own_start:{function} returns the same weights under different seeds, so they come with it and are kept "
        "(training.when: always trains them)"
    )


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("plain", "3 epochs from random weights of own_start:plain"),
        ("new_head", "3 epochs from random weights of own_start:new_head, except for 2.weight, which come with it"),
        ("by_numpy", "3 epochs from random weights of own_start:by_numpy, except for 2.weight, which come with it"),
        ("by_random", "3 epochs from random weights of own_start:by_random, except for 2.weight, which come with it"),
    ],
)
def test_weights_that_are_drawn_are_trained_and_it_is_said(decide, function, words):
    start = decide(function)
    assert (start.trained, start.repeatable) == (True, True)
    assert start.words == words


@pytest.mark.parametrize("knows", [True, False])
def test_what_a_network_that_seeds_torch_itself_knows_decides(decide, knows):
    start = decide("seeded", knows)
    assert start.trained == (not knows)
    assert "own_start:seeded" in start.words
    assert "seeds torch itself" in start.words


@pytest.mark.parametrize("function", ["constant", "plain", "seeded"])
def test_the_study_decides_where_it_says_so(decide, function):
    always, never = decide(function, training__when="always"), decide(function, training__epochs=0)
    assert (always.trained, never.trained) == (True, False)
    assert always.words == f"3 epochs from the weights of own_start:{function}, since training.when is always"
    assert never.words.startswith("none: training.epochs is 0")
    assert decide(function, training__when="always", training__epochs=1).words.startswith("1 epoch from")


@pytest.mark.parametrize("when", ["auto", "always"])
def test_weights_that_are_others_on_each_call_are_noticed(decide, when):
    start = decide("unrepeatable", training__when=when)
    assert (start.trained, start.repeatable) == (True, False)


def test_networks_of_libraries_are_trained(study):
    for weights, words in (
        (None, "3 epochs from random weights of digits_cnn"),
        ("V1", "from the published weights V1"),
    ):
        config = study(model__weights=weights)
        start = start_of(config, 10, torch.nn.Identity(), lambda: True)
        assert start.trained
        assert words in start.words
    assert not start_of(study(training__epochs=0), 10, torch.nn.Identity(), lambda: True).trained


def test_a_network_starts_from_its_seed_and_leaves_the_callers_randomness_alone(study, decide):
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    for function in ("plain", "by_numpy", "by_random"):
        first, again, reseeded = (
            build(study(model__name=f"own_start:{function}", seed=seed), 10) for seed in (0, 0, 1)
        )
        assert weights_digest(first) == weights_digest(again) != weights_digest(reseeded)
        decide(function)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


def test_a_network_of_a_library_starts_from_its_seed(study):
    first, again, reseeded = build(study(), 10), build(study(), 10), build(study(seed=1), 10)
    assert weights_digest(first) == weights_digest(again) != weights_digest(reseeded)


def test_a_network_of_ones_own_keeps_the_weights_that_it_comes_with(study, decide):
    network = build(study(model__name="own_start:constant"), 10)
    assert [round(values.flatten()[0].item(), 6) for values in network.state_dict().values()] == [0, 0.1, 0.2, 0.3]


def test_a_function_that_fails_the_second_time_is_refused_in_one_line(own_module, study):
    own_module(
        own_once="""
        from torch import nn

        left = [nn.Sequential(nn.Flatten(), nn.Linear(768, 10))]


        def make(classes):
            return left.pop()
        """
    )
    config = study(model__name="own_once:make")
    with pytest.raises(ModelError, match="cannot build own_once:make with 10 classes: IndexError"):
        start_of(config, 10, build(config, 10), lambda: True)
