import shutil
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT
from PIL import Image
from sklearn.datasets import load_sample_image

from hscc_search import load
from hscc_search.compression.form import NetworkForm
from hscc_search.dense.networks import DigitsCNN
from hscc_search.errors import ConfigError, ExportError
from hscc_search.export import formats
from hscc_search.export.folder import Architecture, Pictures
from hscc_search.export.formats import FORMATS, check_formats, write_formats
from hscc_search.export.manifest import write_json
from hscc_search.export.run import Folder
from hscc_search.runtime.deployed import Deployed
from hscc_search.runtime.onnx import write_onnx

PHOTOGRAPH = Image.fromarray(load_sample_image("flower.jpg"))
SIZES = ((640, 427), (93, 61), (20, 10), (40, 24), (41, 100))


@pytest.fixture(scope="module")
def written(exported, test_part, tmp_path_factory):
    """A copy of the exported folder with all formats, and what was found of them."""
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("formats") / "folder")
    return folder, write_formats(folder, list(FORMATS), load(exported), test_part)


def run(path, values):
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: values})[0]


def test_each_file_answers_as_model_onnx(written, test_part):
    folder, found = written
    assert set(found) == set(FORMATS.values())
    assert all(each["bytes"] == (folder / name).stat().st_size for name, each in found.items())
    pixels = np.asarray(test_part.images[:20], np.float32) / 255
    expected = run(folder / "model.onnx", pixels)
    program = torch.export.load(folder / "model.pt2").module()
    for count in (1, 20):
        np.testing.assert_allclose(program(torch.from_numpy(pixels[:count])).detach(), expected[:count], atol=1e-4)
    np.testing.assert_allclose(run(folder / "model-float16.onnx", pixels), expected, atol=0.02)
    for image, scores in zip(test_part.images[:20], expected, strict=True):  # which has the network's size
        np.testing.assert_allclose(run(folder / "model-uint8.onnx", image.transpose(1, 2, 0))[0], scores, atol=1e-4)


def test_float16_takes_half_the_bytes_and_its_accuracy_was_measured(written, test_part):
    folder, found = written
    assert found["model-float16.onnx"]["bytes"] < 0.6 * (folder / "model.onnx").stat().st_size
    scores = run(folder / "model-float16.onnx", np.asarray(test_part.images[:], np.float32) / 255)
    assert found["model-float16.onnx"]["accuracy"] == (scores.argmax(axis=1) == test_part.labels).mean()
    assert {tensor.data_type for tensor in onnx.load(folder / "model-float16.onnx").graph.initializer} >= {10}


def test_no_file_tells_of_the_machine(written):
    folder, found = written
    with zipfile.ZipFile(folder / "model.pt2") as packed:
        inner = [packed.read(name) for name in packed.namelist()]
    for content in (*inner, *((folder / name).read_bytes() for name in found)):
        for word in (str(ROOT), str(folder.parent.parent), "site-packages", "hscc_search/"):
            assert word.encode() not in content


@pytest.fixture(scope="module", params=[1, 3])
def untrained(request, tmp_path_factory):
    """A folder of a network at 24 x 40 pixels that takes grey images, or colours."""
    shape = (request.param, 24, 40)
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    shown = (0.5,) * shape[0]
    module = Deployed(DigitsCNN(10, shape), shown, shown, shape).eval()
    write_onnx(module, shape, folder / "model.onnx")
    pictures = Pictures((24, 40), shape[0])
    classes = tuple(map(str, range(10)))
    form = NetworkForm((), (), {})
    architecture = Architecture("digits_cnn", classes, pictures, shown, shown, form)
    write_json(folder / "architecture.json", architecture.stored())
    write_formats(folder, ["uint8"], module, None)
    return folder, Folder(folder)


@pytest.mark.parametrize("size", SIZES)
def test_images_of_any_size_are_resized_in_the_graph_as_pillow_does(untrained, size):
    folder, exported = untrained
    image = PHOTOGRAPH.resize(size)
    image = image.convert("L") if exported.shape[0] == 1 else image
    reading = onnx.load(folder / "model-uint8.onnx")
    reading.graph.output.append(onnx.helper.make_tensor_value_info("reading_pixels", 1, [1, *exported.shape]))
    session = onnxruntime.InferenceSession(reading.SerializeToString())
    scores, pixels = session.run(None, {"image": np.asarray(image)})
    expected = exported.pixels(image)
    assert np.abs(pixels - expected).max() < 1.01 / 255
    assert (np.abs(pixels - expected) < 0.01 / 255).mean() > 0.75
    np.testing.assert_allclose(scores, exported.scores(expected), atol=0.01)


@pytest.mark.parametrize(
    ("names", "of_integers", "pictures", "said"),
    [
        (["pt3"], False, Pictures(8), "no format 'pt3': give pt2, float16, uint8"),
        (["pt2", "float16"], True, Pictures(8), "for float32 trials"),
        (["uint8"], False, Pictures(8, resize="crop"), "squeeze"),
        (["uint8"], False, Pictures(8, values="uint16"), "8 bits"),
        (["uint8"], False, Pictures(8, channels=4), "8 bits"),
    ],
)
def test_a_format_that_a_trial_has_not_is_refused_beforehand(names, of_integers, pictures, said):
    with pytest.raises(ConfigError, match=said):
        check_formats(names, of_integers, pictures)


def test_a_format_that_answers_otherwise_is_refused(exported, test_part, tmp_path, monkeypatch):
    folder = shutil.copytree(exported, tmp_path / "folder")
    monkeypatch.setattr(formats, "_TOLERANCES", {"uint8": 1e-6})
    with pytest.raises(ExportError, match=r"uint8 answers otherwise than model.onnx: scores differ by .* leave it out"):
        write_formats(folder, ["uint8"], load(exported), test_part)
