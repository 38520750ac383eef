import json
import subprocess
import sys

import pytest
import torch
from geometry import SIDE, OnMaps, Residual, seeded, smooth_images
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.form import Fold, LayerForm, NetworkForm
from hscc_search.compression.rebuild import rebuild
from hscc_search.compression.setting import Setting
from hscc_search.dense.networks import DigitsCNN
from hscc_search.errors import CompressionError

# Rebuilds and runs a network in a process that refuses all imports which learn regions, choose ranks or search.
WITHOUT_LEARNING = """
import json
import sys

class Refuse:
    refused = (
        "hscc_search.compression.division",
        "hscc_search.compression.ranks",
        "hscc_search.compression.fitting",
        "hscc_search.compression.baselines",
        "hscc_search.compression.compress",
        "hscc_search.compression.calibration.calibrate",
        "hscc_search.search",
        "sklearn",
        "skimage",
        "scipy",
        "optuna",
    )

    def find_spec(self, name, path=None, target=None):
        if f"{name}.".startswith(tuple(f"{refused}." for refused in self.refused)):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Refuse())
import torch
from hscc_search.compression.form import NetworkForm
from hscc_search.compression.rebuild import rebuild

folder = sys.argv[1]
network = torch.load(f"{folder}/dense.pt", weights_only=False)
with open(f"{folder}/form.json") as file:
    network = rebuild(network, NetworkForm.from_stored(json.load(file)))
network.load_state_dict(torch.load(f"{folder}/weights.pt"))
with torch.no_grad():
    torch.save(network.eval()(torch.load(f"{folder}/images.pt")), f"{folder}/scores.pt")
"""


def test_a_compressed_network_is_rebuilt_and_run_without_what_learns_regions(tmp_path):
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(24, 24, 5, padding=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 5),
    ).eval()
    compressed = compress(calibrate(dense, smooth_images(48)), Setting(4, 2, budget=3, region_gain=0))
    form = compressed.form
    assert form.folds
    assert any(len(layer.pieces) > 1 for layer in form.layers.values())
    assert any(any(layer.input_ranks) for layer in form.layers.values())
    images = smooth_images(3, seed=1)
    torch.save(dense, tmp_path / "dense.pt")
    torch.save(compressed.network.state_dict(), tmp_path / "weights.pt")
    torch.save(images, tmp_path / "images.pt")
    (tmp_path / "form.json").write_text(json.dumps(form.stored()))
    subprocess.run([sys.executable, "-c", WITHOUT_LEARNING, str(tmp_path)], check=True, timeout=300)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "scores.pt"), compressed.network(images))


@pytest.mark.parametrize(
    "build", [lambda: DigitsCNN(5, SIDE), Residual, OnMaps], ids=["digits_cnn", "residual", "maps"]
)
@pytest.mark.parametrize(
    "values", [{"regions": 4, "clusters": 2, "energy": 0.8}, {"budget": 2}, {"energy": 1.0}], ids=str
)
def test_the_form_and_the_weights_rebuild_the_network(build, values):
    compressed = compress(calibrate(seeded(build), smooth_images(32)), Setting(**values))
    again = rebuild(seeded(build, seed=7), NetworkForm.from_stored(json.loads(json.dumps(compressed.form.stored()))))
    again.load_state_dict(compressed.network.state_dict())
    images = smooth_images(5, seed=2)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), compressed.network(images))


def test_the_form_of_a_network_comes_back_from_json_as_it_was():
    form = compress(calibrate(seeded(Residual), smooth_images(32)), Setting(4, 2, 0.8)).form
    assert form.folds == (Fold("stem.0", "stem.1"), Fold("reduce", "norm"), Fold("mix", "norm_mix"))
    assert list(form.layers) == ["stem.0", "reduce", "grouped", "project", "mix"]
    assert NetworkForm.from_stored(json.loads(json.dumps(form.stored()))) == form


@pytest.mark.parametrize(
    ("name", "ranks", "message"),
    [
        ("1", (((2,),),), "layer 1 is neither a convolution nor fully connected, and the form compresses it"),
        ("0", (((2,),), ((2,),)), "layer 0 has 1 groups of channels, and its form 2"),
        ("2", (((2,),),), "layer 2 has 4 groups of channels, and its form 1"),
        ("4", (((2,), (2,)),), "layer 4 is fully connected, and its form has 2 regions"),
        ("4", (((2,),), ((2,),)), "layer 4 has 1 groups of channels, and its form 2"),
    ],
)
def test_a_form_that_a_layer_cannot_have_is_refused(name, ranks, message):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(8 * 4 * 4, 5)
    )
    form = LayerForm((1, 1), ranks, (), (None,) * len(ranks))
    with pytest.raises(CompressionError, match=f"^{message}$"):
        rebuild(network, NetworkForm((), (), {name: form}))
