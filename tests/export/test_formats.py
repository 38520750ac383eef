import json
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional

from hscc_search import load
from hscc_search.cli.entry import commands
from hscc_search.compression.form import NetworkForm
from hscc_search.data import Part
from hscc_search.dense.networks import DigitsCNN
from hscc_search.errors import ConfigError, ExportError
from hscc_search.export import formats
from hscc_search.export import run as run_module
from hscc_search.export.export import export
from hscc_search.export.folder import Architecture, Pictures
from hscc_search.export.formats import FORMATS, Extras, check_formats, formats_list, write_formats
from hscc_search.export.manifest import write_json, write_manifest
from hscc_search.export.run import Folder
from hscc_search.export.runtimes import OPENERS, write_openvino
from hscc_search.export.verifying import verify
from hscc_search.runtime.deployed import Deployed
from hscc_search.runtime.int8 import write_int8
from hscc_search.runtime.onnx import write_onnx

PHOTOGRAPH = Image.fromarray(load_sample_image("flower.jpg"))
SIZES = ((640, 427), (93, 61), (20, 10), (40, 24), (41, 100))


NAMES = tuple(FORMATS)
UNCHECKED = ("model.pt2", "model-openvino.xml", "model.pte")


@pytest.fixture(scope="module")
def written(study, tmp_path_factory):
    """A trial exported with all formats, and what was found of them."""
    folder = tmp_path_factory.mktemp("formats") / "folder"
    divided = [point for point in study.points if point.sample["regions"] > 1]
    point = min(divided, key=lambda point: point.sample["regions"])  # lowering takes seconds, more with each region
    return folder, export(study, point, study.config, folder, extras=Extras(NAMES)).formats


def run(path, values):
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: values})[0]


def test_each_file_answers_as_model_onnx(written, test_part):
    folder, found = written
    assert set(found) == set(FORMATS.values())
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    sizes["model-openvino.xml"] += sizes["model-openvino.bin"]
    assert all(each["bytes"] == sizes[name] for name, each in found.items())
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


def test_the_commands_of_a_card_answer_as_model_onnx(written, test_part, monkeypatch):
    folder, _ = written
    pixels = np.asarray(test_part.images[:1], np.float32) / 255
    expected = run(folder / "model.onnx", pixels)
    card = (folder / "README.md").read_text()
    lines = [line for line in card.splitlines() if line.startswith(tuple(f"- `{name}`" for name in UNCHECKED))]
    assert len(lines) == len(UNCHECKED)
    import executorch.runtime  # which warns where nothing keeps it from that

    monkeypatch.chdir(folder)
    for line in lines:
        values = {"torch": torch, "openvino": openvino, "executorch": executorch, "pixels": pixels}
        *before, command = re.findall(r"`(\w[^`]*[)\]])`", line)
        exec("\n".join(before), values)
        scores = eval(command, values)
        scores = scores.detach().numpy() if isinstance(scores, torch.Tensor) else scores
        np.testing.assert_allclose(scores, expected, atol=1e-4, err_msg=command)


@pytest.mark.parametrize("name", ["pt2", "openvino", "executorch"])
def test_inputs_whose_memory_is_in_another_order_are_answered_alike(written, test_part, name):
    folder, _ = written
    pixels = np.asarray(test_part.images[:4], np.float32) / 255
    by_channel = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    scores = OPENERS[name](folder / FORMATS[name])(by_channel)
    np.testing.assert_allclose(scores, run(folder / "model.onnx", pixels), atol=1e-4)


def test_no_file_tells_of_the_machine(written):
    folder, _ = written
    with zipfile.ZipFile(folder / "model.pt2") as packed:
        inner = [packed.read(name) for name in packed.namelist()]
    assert {"model-openvino.xml", "model-openvino.bin", "model.pte"} <= {path.name for path in folder.iterdir()}
    for content in (*inner, *(path.read_bytes() for path in folder.iterdir() if path.name != "run.py")):
        for word in (str(ROOT), str(folder.parent.parent), "site-packages", "hscc_search/"):
            assert word.encode() not in content


def test_the_files_of_openvino_are_the_same_each_time(written, tmp_path):
    folder, _ = written
    write_openvino(folder / "model.onnx", tmp_path / "model-openvino.xml")
    for name in ("model-openvino.xml", "model-openvino.bin"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_verify_runs_each_file_and_those_that_are_loaded_unchecked_only_on_trust(written):
    folder, _ = written
    verified = verify(folder)
    assert verified.gaps.keys() == {"model.onnx", "model.safetensors", "model-float16.onnx", "model-uint8.onnx"}
    assert verified.not_run.keys() == {*UNCHECKED}
    assert all(why.endswith(": --trust runs it") for why in verified.not_run.values())
    verified = verify(folder, trust=True)
    assert verified.gaps.keys() == {"model.onnx", "model.safetensors", *FORMATS.values()}
    assert max(verified.gaps.values()) < 1e-5
    assert verified.not_run == {}


def test_verify_says_what_runs_a_file_that_it_cannot_run(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # as where it is not installed
    monkeypatch.setitem(sys.modules, "executorch", None)
    verified = verify(written[0], trust=True)
    assert verified.not_run == {
        "model-openvino.xml": "its runtime is not installed: pip install 'hscc-search[openvino]'",
        "model.pte": "its runtime is not installed: pip install 'hscc-search[executorch]'",
    }
    assert "model.pt2" in verified.gaps


def test_the_script_of_the_folder_runs_what_onnx_runtime_can(written):
    folder, _ = written
    assert run_module.answering(folder, ".onnx") == ["model.onnx", "model-float16.onnx", "model-uint8.onnx"]
    done = subprocess.run([sys.executable, folder / "run.py", "verify"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("verified: ")


def negated(content):
    """The weights of OpenVINO with a block of them, which lies in the largest tensor, of the other sign."""
    first = len(content) // 8 * 4
    block = -np.frombuffer(content[first : first + 4096], np.float32)
    return content[:first] + block.tobytes() + content[first + 4096 :]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model-openvino.bin", negated, r"model-openvino.xml does not answer as at export: scores differ by"),
        ("model-openvino.xml", lambda _: b"no model", r"model-openvino.xml cannot be run: \w+"),
        ("model.pt2", lambda _: b"no model", r"model.pt2 cannot be run: \w+"),
        ("model.pte", lambda _: b"no model", r"model.pte cannot be run: \w+"),
        ("model-uint8.onnx", lambda _: b"no model", r"ONNX Runtime cannot open .*model-uint8.onnx"),
    ],
)
def test_a_changed_file_is_found_though_the_manifest_fits(written, tmp_path, name, change, said):
    folder = shutil.copytree(written[0], tmp_path / "folder")
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    write_manifest(folder)
    with pytest.raises(ExportError, match=said) as refused:
        verify(folder, trust=True)
    assert "\n" not in str(refused.value)
    if name != "model-uint8.onnx":
        verify(folder)  # which loads none of these


def test_a_file_whose_answers_were_left_out_is_told(written, tmp_path):
    folder = shutil.copytree(written[0], tmp_path / "folder")
    reference = json.loads((folder / "reference.json").read_text())
    del reference["scores"]["model-uint8.onnx"], reference["scores"]["model.pte"]
    write_json(folder / "reference.json", reference)
    write_manifest(folder)
    verified = verify(folder, trust=True)
    assert verified.not_run == dict.fromkeys(
        ("model-uint8.onnx", "model.pte"), "what it answered at export was not written down"
    )


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
    assert len(write_formats(folder, Extras(("uint8", "openvino")), module, None, of_integers=False).found) == 2
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


def raw_images(shape, count=64):
    channels, height, width = shape
    sizes = (count, height, width) if channels == 1 else (count, height, width, 3)
    return np.random.default_rng(1).integers(0, 256, sizes, np.uint8)


@pytest.mark.parametrize("of_integers", [False, True])
def test_raw_images_of_the_networks_size_are_answered_as_floats_are(untrained, tmp_path, of_integers):
    folder, shape = shutil.copytree(untrained[0], tmp_path / "folder"), untrained[1].shape
    raw = raw_images(shape)
    pixels = raw[:, None] if shape[0] == 1 else raw.transpose(0, 3, 1, 2)
    pixels = pixels.astype(np.float32) / np.float32(255)
    if of_integers:
        module = Deployed(DigitsCNN(10, shape), *[(0.5,) * shape[0]] * 2, shape).eval()
        write_int8(module, shape, pixels, folder / "model.onnx")
        write_formats(folder, Extras(("uint8",)), module, None, of_integers)
    expected = run(folder / "model.onnx", pixels)
    scores = np.concatenate([run(folder / "model-uint8.onnx", image) for image in raw])
    assert np.abs(scores - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("of_integers", [False, True])
def test_raw_images_that_are_scaled_a_little_otherwise_are_refused(untrained, tmp_path, monkeypatch, of_integers):
    """256 in place of 255 changes answers by less than resizing may."""
    folder = shutil.copytree(untrained[0], tmp_path / "folder")

    def scale_otherwise(folder, module):
        written = onnx.load(untrained[0] / "model-uint8.onnx")
        (white,) = [tensor for tensor in written.graph.initializer if tensor.name == "reading_white"]
        white.CopyFrom(onnx.numpy_helper.from_array(np.array(256, np.float32), white.name))
        onnx.save(written, folder / "model-uint8.onnx")

    monkeypatch.setitem(formats._WRITERS, "uint8", scale_otherwise)
    said = (
        r"uint8 answers otherwise than model.onnx to images of its size: scores differ by 0\.00\d+ of the largest, more"
    )
    with pytest.raises(ExportError, match=said):
        write_formats(folder, Extras(("uint8",)), None, None, of_integers)


@pytest.mark.parametrize("untrained", [1], indirect=True)
def test_what_openvino_makes_of_8_bit_integers_is_within_a_step_and_its_accuracy_is_measured(untrained, tmp_path):
    folder = shutil.copytree(untrained[0], tmp_path / "folder")
    shape = untrained[1].shape
    coarse = torch.rand(48, shape[0], 4, 4, generator=torch.Generator().manual_seed(0))
    images = functional.interpolate(coarse, size=shape[1:], mode="bicubic").clamp(0, 1).numpy()
    module = Deployed(DigitsCNN(10, shape), *[(0.5,) * shape[0]] * 2, shape).eval()
    write_int8(module, shape, images, folder / "model.onnx")
    pixels = (images * 255).astype(np.uint8)
    expected = run(folder / "model.onnx", pixels.astype(np.float32) / 255)
    test = Part(pixels, expected.argmax(axis=1), np.arange(len(pixels)))
    further = write_formats(folder, Extras(("pt2", "openvino")), module, test, of_integers=True)
    scores = OPENERS["openvino"](folder / "model-openvino.xml")(pixels.astype(np.float32) / 255)
    assert np.abs(scores - expected).max() <= 0.05 * max(1, np.abs(expected).max())
    assert further.found["model-openvino.xml"]["accuracy"] == (scores.argmax(1) == expected.argmax(1)).mean() > 0.9
    assert (folder / "model-openvino.bin").stat().st_size < 0.4 * (untrained[0] / "model-openvino.bin").stat().st_size
    assert further.tolerances == {"model.pt2": 1e-3, "model-openvino.xml": pytest.approx(0.051)}
    card = formats_list(further.found, shape[0] == 1, of_integers=True)
    assert "- `model.pt2`: the torch module, which is the float32 network that was rounded, for torch alone" in card


@pytest.fixture
def torn(tmp_path):
    """A network whose two classes score alike but for the last bit, so that each way to add takes other ones."""
    shape = (3, 8, 8)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
    )
    with torch.no_grad():
        network[-1].weight[1] = network[-1].weight[0] * (1 + 1e-7)
        network[-1].bias[:] = 0.1
    shown = (0.5,) * 3
    architecture = Architecture("torn", ("a", "b"), Pictures(8), shown, shown, NetworkForm((), (), {}))
    write_json(tmp_path / "architecture.json", architecture.stored())
    return tmp_path, Deployed(network, shown, shown, shape).eval()


@pytest.mark.parametrize(("name", "of_integers"), [("float16", False), ("openvino", True)])
def test_a_format_that_loses_accuracy_is_refused_unless_that_is_accepted(torn, name, of_integers):
    folder, module = torn
    images = np.random.default_rng(0).integers(0, 256, (400, 3, 8, 8), np.uint8)
    pixels = images.astype(np.float32) / 255
    if of_integers:
        write_int8(module, (3, 8, 8), pixels[:64], folder / "model.onnx")
    else:
        write_onnx(module, (3, 8, 8), folder / "model.onnx")
    test = Part(images, run(folder / "model.onnx", pixels).argmax(axis=1), np.arange(400))
    with pytest.raises(ExportError, match=rf"^in format {name} the test accuracy .* --accept-loss") as refused:
        write_formats(folder, Extras((name,)), module, test, of_integers)
    assert "\n" not in str(refused.value)
    found = write_formats(folder, Extras((name,), accept_loss=True), module, test, of_integers).found[FORMATS[name]]
    assert found["accuracy"] < 0.99
    assert found["gap"] < 1e-3


class Bright(nn.Module):
    """A network whose scores of images that are white all over are beyond the largest float16."""

    def forward(self, images):
        brightness = images.mean(dim=(1, 2, 3))
        return torch.stack([brightness, 1 - brightness + 1000 * (1000 * (brightness - 0.9).relu())], dim=1)


def test_a_float16_file_that_answers_infinity_is_refused_though_a_loss_is_accepted(torn):
    folder, _ = torn
    module = Deployed(Bright(), (0.0,) * 3, (1.0,) * 3, (3, 8, 8)).eval()
    write_onnx(module, (3, 8, 8), folder / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (400, 3, 8, 8), np.uint8)
    images[:50] = 255
    test = Part(images, run(folder / "model.onnx", images.astype(np.float32) / 255).argmax(axis=1), np.arange(400))
    said = "^in format float16 50 test images are answered with NaN or infinity: leave the format out$"
    with pytest.raises(ExportError, match=said):
        write_formats(folder, Extras(("float16",), accept_loss=True), module, test, of_integers=False)


@pytest.mark.parametrize("name", ["openvino", "executorch"])
def test_a_format_whose_package_is_not_installed_is_refused_before_any_work(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    storage = tmp_path / "studies.db"
    arguments = ["export", "digits", "--storage", f"sqlite:///{storage}", "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(commands, [*arguments, "--format", f"pt2,{name}"])
    assert isinstance(refused.exception, ConfigError)
    said = f"format {name} needs a package that is not installed: pip install 'hscc-search[{name}]'"
    assert str(refused.exception) == said
    assert not [*tmp_path.iterdir()]


def test_a_format_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="no format 'pt3': give pt2, float16, uint8, openvino, executorch"):
        Extras(("pt2", "pt3"))


@pytest.mark.parametrize(
    ("names", "of_integers", "pictures", "said"),
    [
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
        write_formats(folder, Extras(("uint8",)), load(exported), test_part, of_integers=False)
