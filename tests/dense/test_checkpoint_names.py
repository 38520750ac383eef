import pytest
import torch
from torch import nn

from hscc_search.dense.checkpoint_names import fit
from hscc_search.dense.weights import load_checkpoint, load_weights, weights_digest
from hscc_search.errors import ModelError


def network(classes=3):
    """A network with a batch norm and several layers below one another."""
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return nn.ModuleDict({"features": body, "head": nn.Linear(4, classes)})


def trained():
    torch.manual_seed(1)
    made = network()
    with torch.no_grad():
        made["features"][1].running_mean.add_(0.5)
    return made


def renamed(change):
    return {change(name): value for name, value in trained().state_dict().items()}


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        (lambda name: f"module.{name}", "stripped 'module.' from all names"),
        (lambda name: f"_orig_mod.{name}", "stripped '_orig_mod.' from all names"),
        (lambda name: f"model.{name}", "stripped 'model.' from all names"),
        (lambda name: f"module._orig_mod.{name}", "stripped 'module._orig_mod.' from all names"),
        (lambda name: f"a.long.way.{name}", "stripped 'a.long.way.' from all names"),
        (lambda name: name.replace("features.", "features.module."), "dropped 'module' or '_orig_mod' in names"),
        (
            lambda name: f"net.{name.replace('head', 'head._orig_mod')}",
            "dropped 'module' or '_orig_mod' in names and stripped 'net.' from all names",
        ),
    ],
    ids=["module", "_orig_mod", "model", "both", "any", "within", "within and before"],
)
def test_names_that_a_wrapper_changed_fit_and_it_is_said(change, remark):
    fresh = network()
    assert load_weights(fresh, renamed(change), "w.pt") == (remark,)
    assert weights_digest(fresh) == weights_digest(trained())


def test_a_network_within_another_module_takes_the_names_of_the_network_itself():
    wrapped = nn.ModuleDict({"backbone": network()})
    assert load_weights(wrapped, trained().state_dict(), "w.pt") == ("put 'backbone.' before them",)
    assert weights_digest(wrapped["backbone"]) == weights_digest(trained())
    other = nn.ModuleDict({"backbone": network()})
    remarks = load_weights(other, renamed(lambda name: f"model.{name}"), "w.pt")
    assert remarks == ("stripped 'model.' from all names and put 'backbone.' before them",)
    assert weights_digest(other) == weights_digest(wrapped)


def test_names_that_fit_as_they_are_stay():
    module = nn.ModuleDict({"module": network()})
    state = {f"module.{name}": value for name, value in trained().state_dict().items()}
    assert load_weights(module, state, "w.pt") == ()


def test_an_average_of_weights_is_loaded_without_its_count_of_steps():
    averaged = torch.optim.swa_utils.AveragedModel(trained(), use_buffers=True)
    fresh = network()
    assert load_weights(fresh, averaged.state_dict(), "w.pt") == ("stripped 'module.' from all names",)
    assert weights_digest(fresh) == weights_digest(trained())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_batch_norms_without_counters_are_loaded(prefix):
    state = {f"{prefix}{name}": value for name, value in trained().state_dict().items() if "batches" not in name}
    fresh = network()
    remarks = load_weights(fresh, state, "w.pt")
    assert remarks[-1] == "its batch norms have no num_batches_tracked"
    assert weights_digest(fresh) == weights_digest(trained())


def test_counters_that_the_network_does_not_have_are_left_out():
    frozen = nn.Sequential(nn.Conv2d(3, 4, 3))
    state = {**frozen.state_dict(), "1.num_batches_tracked": torch.tensor(7)}
    assert load_weights(frozen, state, "w.pt") == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_loaded_as_float32(dtype):
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in renamed(str).items()}
    fresh = network()
    assert load_weights(fresh, state, "w.pt") == (f"converted {str(dtype).removeprefix('torch.')} to float32",)
    assert {value.dtype for value in fresh.parameters()} == {torch.float32}
    torch.testing.assert_close(fresh.state_dict(), trained().state_dict(), rtol=1e-2, atol=1e-3)


def refusal(state, into=None):
    into = into or network()
    before = weights_digest(into)
    with pytest.raises(ModelError, match=r"^w\.pt is of another architecture than ") as caught:
        load_weights(into, state, "w.pt")
    assert weights_digest(into) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_that_fits_nearly_is_refused_with_the_nearest_reason():
    line = refusal(network(4).state_dict())
    assert "head.bias has shape (4,) instead of (3,)" in line
    assert "(it gives 4 classes and the images have 3)" in line
    line = refusal({f"module.{name}": value for name, value in network(4).state_dict().items()})
    assert "head.bias has shape" in line
    assert "(stripped 'module.' from all names)" in line
    line = refusal({f"module.{name}": value for name, value in renamed(str).items() if name != "head.bias"})
    assert ": head.bias is missing (stripped" in line


def test_a_checkpoint_of_something_else_is_refused_with_its_common_prefix():
    line = refusal({"encoder.block.one": torch.ones(1), "encoder.block.two": torch.ones(1)})
    assert "all its names begin with 'encoder.block.'" in line
    assert "and 8 more" in line
    assert "encoder" not in refusal({"one": torch.ones(1), "two": torch.ones(1)})


def test_values_of_another_kind_are_refused():
    state = {**renamed(str), "head.bias": torch.ones(3, dtype=torch.int8)}
    assert "head.bias holds int8 where floats are expected" in refusal(state)
    state = {**renamed(str), "head.bias": torch.full((3,), 1e300, dtype=torch.float64)}
    assert "head.bias holds values beyond float32" in refusal(state)
    state = {**renamed(str), "head.bias": torch.ones(3, dtype=torch.complex64)}
    assert "head.bias holds complex64 where floats are expected" in refusal(state)


def test_tied_weights_that_differ_in_a_checkpoint_are_refused():
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    state = {"0.weight": torch.ones(2, 2), "1.weight": torch.zeros(2, 2)}
    assert "0.weight and 1.weight differ, and are one tensor in the network" in refusal(state, tied)


def test_what_fits_is_by_the_networks_names_and_types():
    expected = network().state_dict()
    fitted = fit(renamed(lambda name: f"module.{name}"), expected)
    assert (fitted.problems, list(fitted.state)) == ((), list(expected))
    assert all(fitted.state[name].dtype == expected[name].dtype for name in expected)


@pytest.mark.parametrize("others", [["criterion.weight"], ["val_auroc.preds", "ema.features.0.weight", "a", "b"]])
def test_what_stands_beside_the_network_is_left_out_and_named(others):
    state = renamed(lambda name: f"model.{name}") | {name: torch.zeros(3) for name in others}
    made = network()
    (remark,) = load_weights(made, state, "checkpoint")
    assert remark.startswith(f"stripped 'model.' and left out {others[0]}")
    assert weights_digest(made) == weights_digest(trained())


def test_weights_of_a_key_are_taken_and_no_others(tmp_path):
    mean = {name: value * 0.5 if value.is_floating_point() else value for name, value in trained().state_dict().items()}
    plain = trained().state_dict()
    files = {
        "ema": ({"state_dict": plain, "ema": mean}, "ema"),
        "nested": ({"state_dict": plain, "callbacks": {"ema": {"weights": mean}}}, "callbacks.ema.weights"),
        "beginning": (
            {f"net.{name}": value for name, value in plain.items()}
            | {f"net_ema.{name}": value for name, value in mean.items()},
            "net_ema",
        ),
    }
    for name, (content, key) in files.items():
        torch.save(content, tmp_path / name)
        made = network()
        load_checkpoint(made, tmp_path / name, key)
        assert torch.equal(made["head"].weight, 0.5 * trained()["head"].weight)
        with pytest.raises(ModelError, match=r"no weights under model\.checkpoint_key 'average': it holds "):
            load_checkpoint(made, tmp_path / name, "average")
