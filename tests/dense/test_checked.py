# ruff: noqa: NPY002 (numpy's global generator is what a network may draw from)
import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hscc_search.dense.checked import check_network
from hscc_search.dense.networks import DigitsCNN
from hscc_search.dense.weights import weights_digest
from hscc_search.errors import ModelError


def images(count=2, side=8):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


class Own(nn.Module):
    """A small network whose forward ends in a function of the test's own."""

    def __init__(self, end=lambda network, scores: scores, norm=None):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = norm or nn.BatchNorm2d(8)
        self.last = nn.Linear(8, 5)
        self.end = end

    def forward(self, x):
        return self.end(self, self.last(self.norm(self.layer(x)).relu().mean((2, 3))))


def refusal(network, classes=5, x=None):
    with pytest.raises(ModelError) as caught:
        check_network(network, images() if x is None else x, "own:make", classes)
    line = str(caught.value)
    assert line.startswith("own:make ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("classes", [5, None])
def test_a_plain_network_passes(classes):
    check_network(Own(), images(), "own:make", classes)
    check_network(DigitsCNN(5, 8), images(3), "own:make", classes)


def test_maps_of_scores_pass_where_the_number_of_classes_is_not_given():
    maps = nn.Conv2d(3, 5, 1)
    check_network(maps, images(), "own:make")
    assert "must return scores of shape (images, 5), not (2, 5, 8, 8) for 2 images" in refusal(maps)


def with_lazy_head():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(5))


def on_meta():
    with torch.device("meta"):
        return Own()


def part_on_meta():
    network = Own()
    network.norm.running_mean = network.norm.running_mean.to("meta")
    return network


def scripted_part():
    network = Own()
    network.last = torch.jit.script(network.last)
    return network


def half_of_it():
    network = Own()
    network.last.half()
    return network


def with_extra_state():
    class Extra(Own):
        def get_extra_state(self):
            return {"steps": 3}

        def set_extra_state(self, state):
            pass

    return Extra()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: lambda x: x, ["must be a torch.nn.Module, not function"]),
        (lambda: Own().state_dict(), ["must be a torch.nn.Module, not OrderedDict"]),
        (lambda: torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(192, 5))), ["is a ScriptModule"]),
        (scripted_part, ["holds, as last, a ScriptModule"]),
        (lambda: nn.DataParallel(Own()), ["wrapped in DataParallel", "give its .module"]),
        (lambda: nn.Sequential(nn.DataParallel(Own())), ["holds, as 0,", "wrapped in DataParallel"]),
        (lambda: Own().double(), ["float64 weights (layer.weight)", "network.float()"]),
        (lambda: Own().half(), ["float16 weights"]),
        (lambda: Own().bfloat16(), ["bfloat16 weights"]),
        (half_of_it, ["float16 weights (last.weight)"]),
        (on_meta, ["on the meta device", "layer.weight"]),
        (part_on_meta, ["a buffer on the meta device", "norm.running_mean"]),
        (with_lazy_head, ["lazy layers", "1.weight", "call it on an image"]),
        (with_extra_state, ["state that is no tensor (_extra_state, dict)"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else value[0],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_network_that_is_not_plain_is_refused(make, said):
    line = refusal(make())
    assert [words for words in said if words not in line] == []


@pytest.mark.slow
@pytest.mark.parametrize("place", ["whole", "part", "in place"])
def test_a_compiled_network_is_refused(place):
    network = Own()
    if place == "whole":
        network = torch.compile(network)
    elif place == "part":
        network.last = torch.compile(network.last)
    else:
        network.compile()
    assert "torch.compile has made: give the network from before that" in refusal(network)


def raising(network, scores):
    raise RuntimeError("two\nlines")


def two_heads(network, scores):
    return scores, network.last(torch.zeros(len(scores), 8))[:, :3]


def with_dict(network, scores):
    return {"features": scores[:, :2], "logits": scores}


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (raising, ["cannot take images of 8 x 8 pixels", "RuntimeError: two lines"]),
        (with_dict, ["a dict of 'features' (2, 2), 'logits' (2, 5)", "model.output", "returns answer['logits']"]),
        (
            two_heads,
            ["a tuple of 2: (2, 5), (2, 3)", "model.output: package.module:function", "returns answer[0]"],
        ),
        (lambda network, scores: [scores], ["a list of 1", "returns answer[0]"]),
        (lambda network, scores: None, ["a NoneType"]),
        (lambda network, scores: torch.return_types.max((scores, scores)), ["a max of 2"]),
        (lambda network, scores: scores[:, :4], ["scores of shape (images, 5), not (2, 4) for 2 images"]),
        (lambda network, scores: scores.mean(1), ["not (2,) for 2 images"]),
        (lambda network, scores: scores.mean(0, keepdim=True), ["not (1, 5) for 2 images"]),
        (lambda network, scores: scores.half(), ["in float32, not in float16", ".float()"]),
        (lambda network, scores: scores.argmax(1, keepdim=True).expand(-1, 5), ["not in int64"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_answer_that_is_no_tensor_of_scores_is_refused_and_described(end, said):
    line = refusal(Own(end))
    assert [words for words in said if words not in line] == []


def test_an_image_network_of_another_kind_is_refused():
    assert "cannot take images of 8 x 8 pixels" in refusal(nn.Conv1d(3, 5, 3), classes=None)


@pytest.mark.parametrize(
    "end",
    [
        lambda network, scores: functional.dropout(scores, 0.5),
        lambda network, scores: scores + 0.01 * torch.randn_like(scores),
        lambda network, scores: scores * random.random(),
        lambda network, scores: scores + float(np.random.rand()),
    ],
    ids=["dropout", "noise", "random", "numpy"],
)
def test_a_network_that_stays_random_is_refused(end):
    assert "differently on each pass in evaluation mode" in refusal(Own(end))


def batch_statistics(network, scores):
    return functional.batch_norm(scores, None, None, training=True) if len(scores) > 1 else scores


@pytest.mark.parametrize(
    "make",
    [
        lambda: Own(norm=nn.BatchNorm2d(8, track_running_stats=False)),
        lambda: Own(batch_statistics),
        lambda: Own(lambda network, scores: scores - scores.mean(0)),
        lambda: Own(lambda network, scores: scores.softmax(0)),
    ],
    ids=["batch norm", "functional", "mean", "softmax over images"],
)
def test_an_answer_that_changes_with_the_other_images_is_refused(make):
    assert "when other images are in its batch" in refusal(make())


def test_a_network_that_takes_batches_of_one_size_alone_is_refused():
    fixed = Own(lambda network, scores: scores.view(2, 5))
    assert "cannot take images of 8 x 8 pixels, 1 at a time" in refusal(fixed)


@pytest.mark.parametrize(
    "kept", [nn.InstanceNorm2d(8), nn.GroupNorm(2, 8), nn.Dropout(0.5)], ids=lambda kept: str(kept)
)
def test_layers_that_are_quiet_in_evaluation_mode_pass(kept):
    check_network(Own(norm=kept), images(), "own:make", 5)


def test_a_network_that_changes_its_input_in_place_passes():
    class Normalising(Own):
        def forward(self, x):
            return super().forward(x.sub_(0.5).div_(0.2))

    x = images()
    check_network(Normalising(), x, "own:make", 5)
    assert torch.equal(x, images())


def test_nothing_that_it_touches_stays_changed():
    def counting(network, scores):
        network.calls += 1
        network.latest = scores
        network.norm.running_mean += 1
        network.norm.num_batches_tracked = torch.tensor(9)
        torch.rand(1), random.random(), np.random.rand()
        return scores

    network = Own(counting)
    network.calls = 0
    network.norm.eval()
    before = copy.deepcopy(network)
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    refusal(network, classes=7)
    with pytest.raises(ModelError, match="differently on each pass"):  # the running mean moves on
        check_network(network, images(), "own:make", 5)
    assert weights_digest(network) == weights_digest(before)
    assert (network.calls, hasattr(network, "latest")) == (0, False)
    assert [module.training for module in network.modules()] == [module.training for module in before.modules()]
    assert network.training
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
