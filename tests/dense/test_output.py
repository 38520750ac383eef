import copy
import sys
import types

import pytest
import torch
from torch import nn

from hscc_search.dense.identity import changed_parts, identity
from hscc_search.dense.networks import build_network, construct
from hscc_search.dense.output import picking
from hscc_search.errors import ModelError

SHAPE = (3, 8, 8)


class TwoHeads(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.kind, self.size = nn.Linear(4, classes), nn.Linear(4, 1)

    def forward(self, images):
        features = self.body(images).mean(dim=(2, 3))
        return {"size": self.size(features), "kind": self.kind(features)}


class OnlyInEvaluation(TwoHeads):
    def forward(self, images):
        answer = super().forward(images)
        return tuple(answer.values()) if self.training else answer


def kind(answer):
    return answer["kind"]


def other_kind(answer):
    return answer["kind"] + 0


@pytest.fixture(autouse=True)
def module(monkeypatch):
    """A module of the user's own, ``heads``."""
    heads = types.ModuleType("heads")
    vars(heads).update(
        TwoHeads=TwoHeads,
        OnlyInEvaluation=OnlyInEvaluation,
        kind=kind,
        other_kind=other_kind,
        missing=lambda answer: answer["class"],
        nothing=lambda answer: None,
        whole=lambda answer: answer,
        size=lambda answer: answer["size"],
        number=3,
    )
    monkeypatch.setitem(sys.modules, "heads", heads)
    return heads


def test_the_picked_scores_are_the_answer_and_names_stay():
    network, plain = build_network("heads:TwoHeads", 5, SHAPE, output="heads:kind"), TwoHeads()
    assert list(network.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(network.state_dict())
    images = torch.rand(2, *SHAPE)
    assert torch.equal(network(images), plain(images)["kind"])
    assert torch.equal(copy.deepcopy(network)(images), network(images))


def test_picking_twice_is_picking_once():
    network = picking(picking(TwoHeads(), "heads:kind"), "heads:kind")
    assert network(torch.rand(2, *SHAPE)).shape == (2, 5)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("heads:missing", ["heads:missing fails on a dict of 'size' (2, 1), 'kind' (2, 5)", "KeyError: 'class'"]),
        ("heads:nothing", ["heads:nothing must return the scores, a tensor, not a NoneType"]),
        ("heads:whole", ["must return the scores, a tensor, not a dict"]),
        ("heads:size", ["must return scores of shape (images, 5), not (2, 1)"]),
        ("heads:number", ["heads:number is no function"]),
        ("heads:absent", ["cannot import heads:absent: AttributeError"]),
        ("no_such_module:kind", ["cannot import no_such_module:kind: ModuleNotFoundError"]),
    ],
)
def test_a_function_that_picks_no_scores_is_refused_in_one_line(output, said):
    with pytest.raises(ModelError) as caught:
        build_network("heads:TwoHeads", 5, SHAPE, output=output)
    line = str(caught.value)
    assert [words for words in said if words not in line] == []
    assert "\n" not in line


def test_an_answer_of_another_kind_in_training_mode_is_refused():
    with pytest.raises(ModelError, match=r"heads:kind fails on a tuple of 2: \(2, 1\), \(2, 5\)"):
        build_network("heads:OnlyInEvaluation", 5, SHAPE, output="heads:kind")


def test_the_identity_holds_the_code_of_the_function():
    torch.manual_seed(0)
    plain = construct("heads:TwoHeads", 5, SHAPE)
    torch.manual_seed(0)
    one = construct("heads:TwoHeads", 5, SHAPE, output="heads:kind")
    torch.manual_seed(0)
    other = construct("heads:TwoHeads", 5, SHAPE, output="heads:other_kind")
    assert any(name.endswith("kind") for name in identity(one))
    assert changed_parts(identity(one), identity(other))
    assert changed_parts(identity(one), identity(plain))
    assert not changed_parts(identity(one), identity(copy.deepcopy(one)))
