import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from hscc_search.compression.calibration.batch_norm import apply_folds, fold_batch_norms
from hscc_search.compression.form import Fold
from hscc_search.dense.networks import build_network
from hscc_search.dense.weights import weights_digest
from hscc_search.errors import CompressionError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def trained_like(network, seed=0):
    """Give batch norms statistics and affine parts like those after training; initial ones would hide wrong folds."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, NORMS):
            for name, low, high in (("weight", 0.5, 1.5), ("bias", -0.5, 0.5)):
                if module.affine:
                    getattr(module, name).data.uniform_(low, high, generator=generator)
            if module.running_mean is not None:
                module.running_mean.uniform_(-0.5, 0.5, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return network.eval()


def image(side=12, count=1, channels=3):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def difference(network, expected, x):
    """Relative difference of the outputs."""
    return ((network(x) - expected(x)).norm() / expected(x).norm()).item()


def norms_of(network):
    return [name for name, module in network.named_modules() if isinstance(module, NORMS)]


@settings(max_examples=80, deadline=None)
@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.one_of(st.integers(0, 2), st.just("valid")),
    padding_mode=st.sampled_from(["zeros", "reflect"]),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    affine=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_convolution_and_its_batch_norm_become_one_convolution(
    groups, inputs, outputs, kernel, stride, padding, padding_mode, dilation, bias, affine, seed
):
    torch.manual_seed(seed)
    convolution = nn.Conv2d(
        groups * inputs, groups * outputs, kernel, stride, padding, dilation, groups, bias, padding_mode
    )
    dense = trained_like(nn.Sequential(convolution, nn.BatchNorm2d(groups * outputs, affine=affine)), seed)
    folded, folds = fold_batch_norms(dense, image(channels=groups * inputs))
    assert folds == (Fold("0", "1"),)
    assert isinstance(folded[1], nn.Identity)
    assert difference(folded, dense, image(10, 3, groups * inputs)) < 1e-5


def test_a_batch_norm_of_features_is_folded_into_the_linear_layer():
    dense = trained_like(nn.Sequential(nn.Flatten(), nn.Linear(48, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU()))
    folded, folds = fold_batch_norms(dense, image(4))
    assert folds == (Fold("1", "2"),)
    assert difference(folded, dense, image(4, 3)) < 1e-5


class Wired(nn.Module):
    """Two convolutions and two batch norms, wired by a function."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.bn, self.bn_other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.wiring = forward

    def forward(self, x):
        return self.wiring(self, x)


def read_again(net, x):
    y = net.conv(x)
    return net.bn(y) + y


def read_again_and_hidden_by_a_zero(net, x):
    y = net.conv(x)
    return net.bn(y) + 0 * y


def read_through_a_view(net, x):
    y = net.conv(x)
    return net.bn(y) * y.flatten(2).mean(2)[:, :, None, None]


def read_as_one_of_a_list(net, x):
    y = net.conv(x)
    return torch.cat([net.bn(y), y])


def returned_as_well(net, x):
    y = net.conv(x)
    return {"scores": net.bn(y), "maps": [y]}


def normalised_twice(net, x):
    y = net.conv(x)
    return net.bn(y) - 2 * net.bn_other(y)


def changed_in_place(net, x):
    return net.bn(net.relu(net.conv(x)))


def convolution_called_twice(net, x):
    return net.bn(net.conv(x)) + net.conv(-x)


def batch_norm_called_twice(net, x):
    return net.bn(net.conv(x)) + net.bn(net.other(x))


def statistics_read(net, x):
    return net.bn(net.conv(x)) * net.bn.running_var.sum()


def depends_on_the_input(net, x):
    y = net.conv(x)
    return net.bn(y) if x.mean() > 1 else net.bn(y) + y


@pytest.mark.parametrize(
    "wiring",
    [
        read_again,
        read_again_and_hidden_by_a_zero,
        read_through_a_view,
        read_as_one_of_a_list,
        returned_as_well,
        normalised_twice,
        changed_in_place,
        convolution_called_twice,
        batch_norm_called_twice,
        statistics_read,
        depends_on_the_input,
    ],
)
def test_a_convolution_whose_output_others_read_keeps_its_batch_norm(wiring):
    dense = trained_like(Wired(wiring))
    x = image() + 5 if wiring is depends_on_the_input else image()
    folded, folds = fold_batch_norms(dense, x)
    assert folds == ()
    assert weights_digest(folded) == weights_digest(dense)
    assert norms_of(folded) == ["bn", "bn_other"]


def test_only_the_fold_that_changes_the_output_is_undone():
    good = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(5)]
    bad = nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (12, 12)), Wired(statistics_read))
    dense = trained_like(nn.Sequential(*good[:3], bad, nn.Conv2d(4, 3, 1), *good[3:]))
    folded, folds = fold_batch_norms(dense, image())
    assert [fold.batch_norm for fold in folds] == [f"{block}.1" for block in (0, 1, 2, 5, 6)]
    assert norms_of(folded) == ["3.2.bn", "3.2.bn_other"]
    assert difference(folded, dense, image(12, 2)) < 1e-5


def test_a_batch_norm_behind_a_module_with_two_names_is_left():
    dense = Wired(lambda net, x: net.bn(net.conv(x)))
    dense.alias = dense.conv
    assert fold_batch_norms(trained_like(dense), image())[1] == ()


class Stubborn(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4, track_running_stats=False), Stubborn(4)])
def test_a_batch_norm_that_takes_the_statistics_of_the_batch_is_left(norm):
    assert fold_batch_norms(trained_like(nn.Sequential(nn.Conv2d(3, 4, 3), norm)), image())[1] == ()


def test_a_batch_norm_over_positions_is_left():
    dense = trained_like(nn.Sequential(nn.Flatten(2), nn.Linear(16, 3), nn.BatchNorm1d(3)))
    assert fold_batch_norms(dense, image(4))[1] == ()


def test_a_weight_that_is_computed_is_not_overwritten():
    dense = trained_like(nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    folded, _ = fold_batch_norms(dense, image())
    assert difference(folded, dense, image(12, 2)) < 1e-5


@pytest.mark.parametrize("variance", [0.0, 1e-30, 1e30])
def test_a_channel_that_is_constant_or_wild_folds_exactly(variance):
    dense = trained_like(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    dense[1].running_var[1] = variance
    folded, folds = fold_batch_norms(dense, image())
    assert len(folds) == 1
    assert all(parameter.isfinite().all() for parameter in folded.parameters())
    assert difference(folded, dense, image(12, 2)) < 1e-5


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_a_broken_batch_norm_is_left_and_does_not_spread(value):
    dense = trained_like(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    dense[1].running_var[1] = value
    folded, folds = fold_batch_norms(dense, image())
    assert folds == ()
    assert weights_digest(folded) == weights_digest(dense)


def test_a_batch_norm_whose_folded_weights_would_overflow_is_left():
    dense = trained_like(Wired(lambda net, x: net.bn(net.conv(0 * x))))
    dense.conv.weight.data[0], dense.bn.running_var[0], dense.bn.eps = 1e30, 0, 1e-20
    folded, folds = fold_batch_norms(dense, image())
    assert folds == ()
    assert weights_digest(folded) == weights_digest(dense)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet18", 0),
        ("mobilenet_v2", 0),
        ("densenet121", 62),  # the batch norms after a concatenation
        ("resnet10t", 0),
        ("ghostnetv2_100", 0),
        ("test_byobnet", 0),
    ],
)
def test_a_network_answers_the_same_and_can_be_built_again(name, left):
    torch.manual_seed(0)
    dense = trained_like(build_network(name, 4, 64)).train()
    before = weights_digest(dense)
    folded, folds = fold_batch_norms(dense, image(64))
    assert (weights_digest(dense), dense.training) == (before, True)
    assert not any(module.training for module in folded.modules())
    assert len(norms_of(folded)) == left
    assert len(folds) == len(norms_of(dense)) - left
    assert not {id(parameter) for parameter in dense.parameters()} & {
        id(parameter) for parameter in folded.parameters()
    }
    x = image(64, 2)
    assert difference(folded, dense.eval(), x) < 1e-4
    rebuilt = build_network(name, 4, 64)
    apply_folds(rebuilt, folds)
    rebuilt.load_state_dict(folded.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(x), folded(x))


def test_an_activation_and_dropout_inside_a_batch_norm_are_kept():
    from timm.layers import BatchNormAct2d, DropBlock2d

    norm = BatchNormAct2d(4, act_layer=nn.PReLU, drop_layer=DropBlock2d)
    dense = trained_like(nn.Sequential(nn.Conv2d(3, 4, 3), norm))
    fresh = copy.deepcopy(dense)
    dense[1].act.weight.data.fill_(0.7)
    folded, folds = fold_batch_norms(dense, image())
    assert difference(folded, dense, image(12, 2)) < 1e-5
    apply_folds(fresh, folds)
    fresh.load_state_dict(folded.state_dict())
    assert difference(fresh, dense, image(12, 2)) < 1e-5


def test_tied_weights_are_untied_where_one_is_folded():
    dense = Wired(lambda net, x: net.relu(net.bn(net.conv(x))) + net.other(x))
    dense.other.weight = dense.conv.weight
    folded, folds = fold_batch_norms(trained_like(dense), image())
    assert len(folds) == 1
    assert difference(folded, dense, image(12, 2)) < 1e-5


@pytest.mark.parametrize("fold", [Fold("conv", "missing"), Fold("bn", "conv"), Fold("conv", "relu"), Fold("", "bn")])
def test_folds_of_another_network_are_refused(fold):
    with pytest.raises(CompressionError, match="no convolution"):
        apply_folds(Wired(read_again), [fold])


def test_a_network_without_batch_norms_is_copied():
    dense = build_network("digits_cnn", 4, 16)
    folded, folds = fold_batch_norms(dense, image(16))
    assert folds == ()
    assert folded is not dense
    assert weights_digest(folded) == weights_digest(dense)


def test_an_input_that_is_normalised_in_place_stays_and_all_is_folded():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(self.conv(x.sub_(0.5).div_(0.25)))

    x = image()
    before = x.clone()
    _, folds = fold_batch_norms(trained_like(InPlace()), x)
    assert len(folds) == 1
    assert torch.equal(x, before)
