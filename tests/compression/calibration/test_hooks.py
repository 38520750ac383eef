import pytest
import torch
from torch import nn

from hscc_search.compression.calibration.hooks import hooked


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))


def test_functions_are_told_name_inputs_and_output_in_the_order_of_execution():
    model, x = network(), torch.randn(2, 3, 4, 4)
    calls = []

    def before(name, inputs):
        calls.append(("before", name, [tuple(value.shape) for value in inputs]))

    def after(name, inputs, output):
        calls.append(("after", name, tuple(output.shape)))

    with hooked({"first": model[0], "last": model[2]}, before=before, after=after):
        model(x)
    assert calls == [
        ("before", "first", [(2, 3, 4, 4)]),
        ("after", "first", (2, 4, 4, 4)),
        ("before", "last", [(2, 4, 4, 4)]),
        ("after", "last", (2, 2, 4, 4)),
    ]


def test_what_a_function_returns_does_not_change_the_output():
    model, x = network(), torch.randn(2, 3, 4, 4)
    expected = model(x)
    with hooked({"0": model[0]}, before=lambda *_: (0 * x,), after=lambda *_: torch.zeros(2, 4, 4, 4)):
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("failing", [True, False])
def test_hooks_are_removed_at_the_end_even_after_an_error(failing):
    model, calls = network(), []
    modules = dict(model.named_modules())

    def after(name, inputs, output):
        calls.append(name)
        if failing:
            raise ValueError("on purpose")

    if failing:
        with pytest.raises(ValueError, match="on purpose"), hooked(modules, after=after):
            model(torch.randn(1, 3, 2, 2))
    else:
        with hooked(modules, before=lambda *_: None, after=after):
            model(torch.randn(1, 3, 2, 2))
    assert calls == (["0"] if failing else ["0", "1", "2", ""])
    model(torch.randn(1, 3, 2, 2))
    assert len(calls) == (1 if failing else 4)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
