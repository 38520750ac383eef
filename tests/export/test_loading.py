import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import hscc_search
from hscc_search.errors import CompressionError, ExportError

# What searches, and what learns regions and clusters.
NOT_NEEDED = {
    "optuna",
    "sklearn",
    "skimage",
    "hscc_search.search",
    "hscc_search.compression.compress",
    "hscc_search.compression.division",
    "hscc_search.compression.ranks",
}


def test_the_loaded_module_gives_the_same_scores(exported, test_part, onnx_scores):
    module = hscc_search.load(exported)
    with torch.no_grad():
        by_torch = module(torch.from_numpy(test_part.images[:]).float() / 255).numpy()
    np.testing.assert_allclose(by_torch, onnx_scores(exported, test_part.images), rtol=1e-3, atol=1e-3)


def test_the_loaded_module_trains(exported):
    module = hscc_search.load(exported)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_another_image_size_is_refused(exported):
    with pytest.raises(CompressionError, match=r"takes shape \(images, 3, 8, 8\), not \(1, 3, 24, 24\)"):
        hscc_search.load(exported)(torch.zeros(1, 3, 24, 24))


def test_loading_imports_nothing_of_what_searches_or_compresses(exported):
    code = (
        "import sys; from hscc_search import load; load(sys.argv[1]); "
        f"print(*sorted({NOT_NEEDED!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, exported], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_changed_file_is_refused(exported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(ExportError, match=r"model.safetensors was changed since the export"):
        hscc_search.load(copy)


@pytest.mark.parametrize("name", ["architecture.json", "model.safetensors"])
def test_a_missing_file_is_refused(exported, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / name).unlink()
    with pytest.raises(ExportError, match=f"{name} is missing"):
        hscc_search.load(copy)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"sha256": 1}'])
def test_a_folder_without_a_readable_manifest_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ExportError, match=r"it has no readable manifest\.json|manifest\.json is damaged"):
        hscc_search.load(tmp_path)
