import importlib
import sys

import pytest
import torch
from torch import nn

from hscc_search.dense.identity import START, STRUCTURE, UNKNOWN, changed_parts, identity
from hscc_search.dense.networks import DigitsCNN

HELPER = """
    import torch

    SLOPE = 0.1
    OPTIONS = {"scale": 2.0, "shape": (1, 2)}
    MEAN = torch.tensor([0.1, 0.2])


    def bent(x):  # a comment
        return inner(x) * OPTIONS["scale"] + MEAN.sum()


    def inner(x):
        return torch.where(x > 0, x, SLOPE * x)


    def unused(x):
        return x
"""
NET = """
    import functools
    import logging

    import torch
    from torch import nn

    import own_helper
    from own_helper import bent

    log = logging.getLogger(__name__)


    class Base(nn.Module):
        power = 1

        def finish(self, x):
            return x**self.power


    class Net(Base):
        def __init__(self, classes):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3, stride=2)
            self.last = nn.Linear(4, classes)
            self.act = functools.partial(torch.clamp, min=-3.0)
            self.scale = 1.5

        def forward(self, x):
            x = bent(self.layer(x)).mean((2, 3)) * self.scale
            return self.finish(self.act(self.last(x)))


    def make(classes):
        torch.manual_seed(0)
        return Net(classes)
"""


@pytest.fixture
def taken(own_module):
    """The identity of the network of a module: ``taken(net, helper)``."""

    def take(net=NET, helper=HELPER):
        own_module(own_net=net, own_helper=helper)
        return identity(importlib.import_module("own_net").make(5))

    return take


def test_an_unchanged_network_keeps_its_identity(taken):
    first = taken()
    assert taken() == first
    assert UNKNOWN not in first.values()
    parts = {STRUCTURE, START, "own_net.Net.forward", "own_net.Base.finish", "own_helper.bent", "own_helper.inner"}
    assert parts | {"own_net.Base.power"} == set(first)


@pytest.mark.parametrize(
    ("module", "was", "now"),
    [
        ("helper", "# a comment", "# another comment"),
        ("helper", "        return x\n", "        return x + 1\n"),
        ("helper", "    def inner(x):", "\n\n    # about what follows\n    def inner(x):"),
        ("net", "torch.manual_seed(0)", "torch.manual_seed(int('0'))"),
        ("net", "    def make", "    def other():\n        pass\n\n\n    def make"),
    ],
    ids=["comment", "unused function", "lines", "builder", "another builder"],
)
def test_what_the_forward_pass_does_not_reach_changes_nothing(taken, module, was, now):
    first = taken()
    texts = {"net": NET, "helper": HELPER}
    assert was in texts[module]
    assert taken(**{**texts, module: texts[module].replace(was, now)}) == first


@pytest.mark.parametrize(
    ("module", "was", "now", "changed"),
    [
        ("helper", "SLOPE = 0.1", "SLOPE = 0.2", ["own_helper.inner"]),
        ("helper", "torch.where(x > 0", "torch.where(x > 1", ["own_helper.inner"]),
        ("helper", '"scale": 2.0', '"scale": 3.0', ["own_helper.bent"]),
        ("helper", "tensor([0.1", "tensor([0.3", ["own_helper.bent"]),
        ("net", "* self.scale", "/ self.scale", ["own_net.Net.forward"]),
        ("net", "x**self.power", "x*self.power", ["own_net.Base.finish"]),
        ("net", "power = 1", "power = 2", ["own_net.Base.power"]),
        ("net", "self.scale = 1.5", "self.scale = 2.5", [STRUCTURE]),
        ("net", "min=-3.0", "min=-4.0", [STRUCTURE]),
        ("net", "stride=2", "stride=1", [STRUCTURE]),
        ("net", "nn.Linear(4", "nn.Identity() and nn.Linear(4", []),
    ],
)
def test_what_the_forward_pass_reaches_is_named_where_it_changes(taken, module, was, now, changed):
    first = taken()
    texts = {"net": NET, "helper": HELPER}
    assert was in texts[module]
    second = taken(**{**texts, module: texts[module].replace(was, now)})
    assert changed_parts(first, second) == changed


@pytest.mark.parametrize(
    "reach",
    [
        "own_helper.bent(x)",
        "__import__('own_helper') and self.through(x)",
        "(lambda y: bent(y))(x)",
        "[bent(y) for y in [x]][0]",
        "HELD['bent'](x)",
        "self.held(x)",
        "cached(x)",
    ],
)
def test_a_helper_is_reached_on_every_way(taken, reach):
    net = NET.replace("bent(self.layer(x)).mean((2, 3))", "self.layer(x).mean((2, 3)); x = " + reach.replace("\n", " "))
    net = net.replace(
        "    def make(classes):",
        "    HELD = {'bent': bent}\n\n\n    @functools.lru_cache\n    def cached(x):\n        return bent(x)\n\n\n"
        "    def make(classes):",
    ).replace(
        "        def forward",
        "        def through(self, x):\n            from own_helper import bent as other\n"
        "            return other(x)\n\n        @staticmethod\n        def held(x):\n"
        "            return bent(x)\n\n        def forward",
    )
    first = taken(net)
    assert "own_helper.inner" in changed_parts(first, taken(net, HELPER.replace("SLOPE = 0.1", "SLOPE = 0.2")))


def test_weights_at_build_are_a_part_of_their_own(taken):
    first, second = taken(), taken(NET.replace("manual_seed(0)", "manual_seed(1)"))
    assert first[START] != second[START]
    assert changed_parts(first, second) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda network: setattr(network[1], "inplace", True),
        lambda network: network.__setitem__(1, nn.LeakyReLU()),
        lambda network: network[0].register_forward_hook(lambda module, inputs, output: output * 2),
        lambda network: setattr(network[0], "forward", lambda x: x),
    ],
    ids=["option", "module", "hook", "forward"],
)
def test_changes_in_published_modules_are_seen(change):
    network, changed = DigitsCNN(5, 8), DigitsCNN(5, 8)
    change(changed)
    assert STRUCTURE in changed_parts(identity(network), identity(changed))


def test_buffers_that_no_state_dict_holds_count_as_weights_at_build():
    network, changed = nn.Linear(2, 2), nn.Linear(2, 2)
    changed.load_state_dict(network.state_dict())
    network.register_buffer("table", torch.zeros(2), persistent=False)
    changed.register_buffer("table", torch.ones(2), persistent=False)
    first, second = identity(network), identity(changed)
    assert first[START] != second[START]
    assert changed_parts(first, second) == []


def test_code_without_a_text_is_compared_by_its_bytecode(own_module):
    def made(factor):
        space = {"nn": nn, "__name__": "nowhere"}
        exec(f"class Net(nn.Linear):\n    def forward(self, x):\n        return super().forward(x) * {factor}", space)
        return identity(space["Net"](2, 2))

    assert changed_parts(made(2), made(2)) == []
    assert changed_parts(made(2), made(3)) == ["nowhere.Net.forward"]


class Opaque:
    """An object whose content cannot be seen, as that of a compiled extension."""

    __slots__ = ()


def test_what_cannot_be_seen_is_unknown():
    class Net(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    network = Net(2, 2)
    network.extension = Opaque()
    assert identity(network)[f"{__name__}.Opaque"] == UNKNOWN
    assert sys.modules[__name__].Opaque is Opaque
