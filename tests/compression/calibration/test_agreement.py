import weakref

import hostile
import pytest
import torch
from geometry import smooth_images
from torch import nn

from hscc_search.compression.calibration.agreement import Answers
from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.stand_ins import copied
from hscc_search.errors import CompressionError

IMAGES = smooth_images(16, side=16)
REGISTRY = {}


class FromHook(hostile.Block):
    """Reads what a hook of its layer has kept, which belongs to the network that was built."""

    def __init__(self, width, **kwargs):
        super().__init__(width, **kwargs)
        self.kept = {}
        kept = self.kept
        self.layer.register_forward_hook(lambda module, inputs, output: kept.__setitem__("answer", output))

    def forward(self, x):
        return super().forward(x) + self.kept["answer"]


class InClosure(hostile.Block):
    def __init__(self, width, **kwargs):
        super().__init__(width, **kwargs)
        layer = self.layer
        self.run = lambda x: layer(x).relu()

    def forward(self, x):
        return self.run(x)


class ByWeakReference(hostile.Block):
    def __init__(self, width, **kwargs):
        super().__init__(width, **kwargs)
        self.__dict__["reference"] = weakref.ref(self.layer)

    def forward(self, x):
        return self.reference()(x).relu()


class InRegistry(hostile.Block):
    def __init__(self, width, **kwargs):
        super().__init__(width, **kwargs)
        REGISTRY["layer"] = self.layer

    def forward(self, x):
        return REGISTRY["layer"](x).relu()


class WithSlots(hostile.Block):
    __slots__ = ("factor",)

    def __init__(self, width, **kwargs):
        super().__init__(width, **kwargs)
        self.factor = 2.0

    def forward(self, x):
        return super().forward(x) * self.factor


class RunningMean(hostile.Block):
    """Keeps a mean of its answers that nothing reads."""

    def __init__(self, width, **kwargs):
        super().__init__(width, **kwargs)
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x):
        x = super().forward(x)
        self.mean.mul_(0.9).add_(x.mean((0, 2, 3)) * 0.1)
        return x


class ClippingNorm(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input).clamp(-9, 9)


def network_of(block):
    torch.manual_seed(0)
    return hostile.Hostile([block]).eval()


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (FromHook, "answers otherwise"),
        (InClosure, r"computes with blocks\.0\.layer\.weight"),
        (ByWeakReference, r"computes with blocks\.0\.layer\.weight"),
        (InRegistry, r"computes with blocks\.0\.layer\.weight"),
        (WithSlots, "does not run"),
    ],
)
def test_a_network_whose_copy_is_another_is_refused_in_one_line(block, words):
    with pytest.raises(CompressionError, match=f"a copy of Hostile {words}") as refused:
        calibrate(network_of(block), IMAGES.clone())
    assert "\n" not in str(refused.value)


def test_what_a_network_keeps_for_itself_is_no_obstacle():
    network = network_of(RunningMean)
    calibration = calibrate(network, IMAGES.clone())
    assert "blocks.0.layer" in [record.name for record in calibration.records]
    copied(calibration.network)


def test_a_batch_norm_of_a_class_that_does_more_is_not_folded():
    block = type("Clipping", (hostile.Normed,), {})
    network = network_of(block)
    network.blocks[0].norm = ClippingNorm(24)
    assert calibrate(network.eval(), IMAGES.clone()).folds == ()


def test_a_common_offset_hides_no_fault():
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval()
    with torch.no_grad():
        network[1].bias.fill_(3000.0)
    answers, other = Answers(network, IMAGES), copied(network)
    assert answers.holds(other)
    with torch.no_grad():
        other[1].weight.mul_(1.001)
    assert not answers.holds(other)


def test_rounding_is_told_from_a_fault_in_double_precision():
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval()
    with torch.no_grad():
        network[1].weight.mul_(1e-2)
        network[1].bias.fill_(3000.0)
    answers = Answers(network, IMAGES)
    same = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.Identity()).eval()
    same.load_state_dict(network.state_dict())
    assert answers.holds(same)
    with torch.no_grad():
        same[1].weight.mul_(1.001)
    assert not answers.holds(same)


def amplifying(depth=12):
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(64, 64, bias=False), Amplified())]
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 64), *layers, nn.Linear(64, 4)).eval()


def test_a_network_that_amplifies_each_difference_may_differ_by_what_rounding_makes():
    network = amplifying()
    answers, other = Answers(network, IMAGES), copied(network)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1 + 2.0**-24 * torch.randn(weight.shape).sign())  # some to their neighbours, as products are
    reason, difference = answers.problem(other)
    assert difference > 1e-7, "the network amplifies nothing"
    assert reason is None
    with torch.no_grad():
        other[1].weight.mul_(1.01)
    assert answers.problem(other)[0] is not None


@torch.no_grad()
def test_copies_of_a_rewritten_network_are_held_against_its_own_weights():
    network = amplifying()
    rewritten, faulty = copied(network), copied(network)
    for weight in rewritten.parameters():
        weight.mul_(1 + 2.0**-24 * torch.randn(weight.shape).sign())
    faulty.load_state_dict(rewritten.state_dict())
    faulty[1].weight[0, 0] += 2e-8
    answers = Answers(network, IMAGES)
    assert answers.problem(faulty)[0] is None, "the fault is larger than rounding: the test shows nothing"
    assert answers.again_of(rewritten).problem(copied(rewritten)) == (None, 0.0)
    assert answers.again_of(rewritten).problem(faulty)[0] is not None
    assert answers.problem(faulty)[0] is None, "the answers themselves have changed"


class Amplified(nn.Module):
    """Doubles each difference: steep, and between bounds."""

    def forward(self, x):
        return (5 * x).sin()


def test_answers_that_do_not_vary_are_known_as_such():
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval()
    assert Answers(network, IMAGES).vary
    nn.init.zeros_(network[1].weight)
    assert not Answers(network, IMAGES).vary


def test_a_buffer_may_be_infinite_by_intent():
    class Bounded(hostile.Block):
        def __init__(self, width, **kwargs):
            super().__init__(width, **kwargs)
            self.register_buffer("highest", torch.tensor(torch.inf))

        def forward(self, x):
            return torch.minimum(super().forward(x), self.highest)

    assert calibrate(network_of(Bounded), IMAGES.clone()).records
