import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from dicom_files import write_dicom
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from hscc_search.compression.form import NetworkForm
from hscc_search.config import DataConfig
from hscc_search.data.decode import pixels_of, read_image
from hscc_search.evaluation.predictions import pixel_values
from hscc_search.export import run
from hscc_search.export.folder import Architecture, Pictures
from hscc_search.export.manifest import write_json

PHOTOGRAPH = load_sample_image("flower.jpg")[100:161, 200:293]
ORIENTATION = 0x0112


def config_of(**data):
    return DataConfig(path="images", image_size=[24, 40], **data)


def folder_of(tmp_path, config, dtype):
    """What the script reads of a folder, of a study whose images were of a type."""
    pictures = Pictures.of(config, np.dtype(dtype))
    shown = (0.5,) * config.channels
    write_json(
        tmp_path / "architecture.json",
        Architecture("digits_cnn", ("a", "b"), pictures, shown, shown, NetworkForm((), (), {})).stored(),
    )
    return run.Folder(tmp_path)


WRONG = {
    "channels": ["3", True, 3.0, None],
    "image_size": [[24], [24, 40, 1], "24", {"height": 24}, [24, 40.0], None],
    "resize": ["stretch", None, ["crop"]],
    "resize_to": ["24", 0.5, [24], True],
    "bounds": [
        [1, 0],
        [0, 0],
        [0],
        [0, 1, 2],
        "01",
        7,
        {},
        [0, True],
        [0.5, 10**400],
        [float("nan"), 1],
        [0, float("inf")],
    ],
    "values": ["int64", None, 8, ["uint8"]],
    "classes": [["a", "a"], ["a", 1], "ab", {"a": 0}, None, [["a"]]],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_value_that_the_script_cannot_use_is_named_by_its_key(tmp_path, key):
    folder_of(tmp_path, config_of(), np.uint8)
    path = tmp_path / "architecture.json"
    tree = json.loads(path.read_text())
    for wrong in WRONG[key]:
        path.write_text(json.dumps({**tree, key: wrong}))
        with pytest.raises(run.Refused, match=rf"json does not say how images are read: {key} has a wrong value$"):
            run.Folder(tmp_path)
    del tree[key]
    path.write_text(json.dumps(tree))
    with pytest.raises(run.Refused, match=rf"json does not say how images are read: {key} is missing$"):
        run.Folder(tmp_path)


def pixels_by_study(path, config):
    return pixel_values(torch.from_numpy(pixels_of(read_image(path, config), config).copy()[None])).numpy()


RESIZED = ({"resize": "squeeze"}, {"resize": "crop"}, {"resize": "pad"}, {"resize": "crop", "resize_to": 47})


@pytest.mark.parametrize(("channels", "resized"), list(product((1, 3), RESIZED)))
@pytest.mark.parametrize("stated", [{}, {"range": [3000, 50_000]}, {"window": [30_000, 20_000]}])
@pytest.mark.parametrize("kind", ["8 bits", "8 bits beside 16", "16 bits", "turned"])
def test_the_script_reads_what_the_study_reads(tmp_path, channels, resized, stated, kind):
    config, path = config_of(channels=channels, **resized, **stated), tmp_path / "picture.png"
    exif = Image.Exif()
    exif[ORIENTATION] = 6 if kind == "turned" else 1
    photograph = PHOTOGRAPH if kind.startswith("8") else PHOTOGRAPH[..., 0].astype(np.uint16) * 257 + 11
    Image.fromarray(photograph).save(path, exif=exif)
    wide = kind != "8 bits"
    pixels = folder_of(tmp_path, config, np.uint16 if wide else np.uint8).read(path)
    assert (pixels.dtype, pixels.shape) == (np.float32, (1, channels, 24, 40))
    np.testing.assert_array_equal(pixels, pixels_by_study(path, config))


@pytest.mark.parametrize("stated", [{}, {"range": [-1000, 3000]}, {"window": [40, 400]}])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_script_reads_dicom_as_the_study_does(tmp_path, stated, kind, channels):
    config = config_of(channels=channels, **stated)
    window = {"WindowCenter": [400, 1], "WindowWidth": [900, 2], "RescaleSlope": 2, "RescaleIntercept": -1024}
    path = write_dicom(tmp_path / "slice.dcm", PHOTOGRAPH[..., 0].astype(np.uint16) * 8, kind, **window)
    pixels = folder_of(tmp_path, config, np.uint16).read(path)
    assert (pixels.dtype, pixels.shape) == (np.float32, (1, channels, 24, 40))
    np.testing.assert_array_equal(pixels, pixels_by_study(path, config))
    assert len(np.unique(pixels)) > 50


@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, True), (np.int32, True), (np.float32, False)])
def test_the_script_refuses_values_of_which_no_range_is_known(tmp_path, dtype, wide):
    Image.fromarray(PHOTOGRAPH[..., 0].astype(dtype)).save(tmp_path / "picture.tif")
    folder = folder_of(tmp_path, config_of(), np.uint16 if wide else np.uint8)
    with pytest.raises(run.Refused, match=r"convert (the image|it) to 8"):
        folder.read(tmp_path / "picture.tif")


KINDS = {"photograph": "jpg", "drawing": "png", "grey": "png", "16 bits": "png", "compressed": "webp"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_that_was_turned_is_read_upright(tmp_path, kind, orientation):
    """40 of 40: each orientation of EXIF in five kinds of files, against the study's own reader."""
    wide, path = kind == "16 bits", tmp_path / f"picture.{KINDS[kind]}"
    pixels = PHOTOGRAPH[..., 0] if kind in ("grey", "16 bits") else PHOTOGRAPH
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels.astype(np.uint16) * 257 if wide else pixels).save(path, exif=exif)
    config = config_of()
    found = folder_of(tmp_path, config, np.uint16 if wide else np.uint8).read(path)
    np.testing.assert_array_equal(found, pixels_by_study(path, config))
    turned = ImageOps.exif_transpose(Image.open(path)).size != (93, 61)
    assert turned == (orientation > 4)


@given(st.sampled_from(["uint8", "uint16", "float32"]), st.sampled_from([1, 3, 4]), st.integers(8, 40))
def test_made_inputs_are_the_same_each_time_and_differ_from_each_other(values, channels, side):
    pictures = Pictures((side, side + 3), channels, values=values)
    shown = (0.5,) * channels
    with tempfile.TemporaryDirectory() as folder:
        architecture = Architecture("digits_cnn", ("a", "b"), pictures, shown, shown, NetworkForm((), (), {}))
        write_json(Path(folder) / "architecture.json", architecture.stored())
        inputs, again = (run.Folder(folder).made_inputs() for _ in range(2))
    assert (inputs.dtype, inputs.shape) == (np.float32, (8, channels, side, side + 3))
    np.testing.assert_array_equal(inputs, again)
    assert len({each.tobytes() for each in inputs}) == 8
    assert 0.02 < inputs.std(axis=(1, 2, 3)).min() < 1.2
    assert values == "float32" or (inputs.min() >= 0 and inputs.max() <= 1)


def test_a_file_of_an_input_of_its_own_is_read_and_nothing_is_unpickled(tmp_path):
    folder = folder_of(tmp_path, config_of(), np.float32)
    numbers = np.random.default_rng(0).standard_normal((3, 24, 40)).astype(np.float32)
    np.save(tmp_path / "input.npy", numbers)
    np.testing.assert_array_equal(folder.read(tmp_path / "input.npy"), numbers[None])
    np.save(tmp_path / "small.npy", numbers[:, :8])
    np.save(tmp_path / "pickled.npy", np.array([print], object))
    for name, said in (("small.npy", r"shape \(3, 8, 40\)"), ("pickled.npy", "cannot read")):
        with pytest.raises(run.Refused, match=said):
            folder.read(tmp_path / name)


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """The Python of an environment that has onnxruntime, numpy, pillow and what these need, and nothing else."""
    environment = tmp_path_factory.mktemp("device")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    names, waiting = set(), ["onnxruntime", "numpy", "pillow"]
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            needed = [line for line in metadata.requires(name) or () if "extra ==" not in line]
            waiting += [re.split(r"[^\w.-]", line)[0] for line in needed]
    for name in names:
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    return environment / "bin" / "python"


def test_an_exported_folder_runs_by_its_card_where_there_is_nothing_else(device, exported, tmp_path, test_part):
    folder = shutil.copytree(exported, tmp_path / "folder")
    card = (folder / "README.md").read_text()
    install, *commands = [
        line for block in re.findall(r"```console\n(.*?)```", card, re.DOTALL) for line in block.splitlines()
    ]
    assert install == "pip install onnxruntime numpy pillow"
    Image.fromarray(test_part.images[0].transpose(1, 2, 0)).save(tmp_path / "image.jpg")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def on_device(*arguments, code=0):
        done = subprocess.run([device, *arguments], cwd=folder, env=clean, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout or done.stderr

    assert "None" in on_device("-c", "from importlib.util import find_spec; print(find_spec('torch'))")
    words = [shlex.split(command) for command in commands]
    assert [word[:3] for word in words] == [["python", "run.py", name] for name in ("verify", "predict", "benchmark")]
    outputs = [on_device(*word[1:]) for word in words]
    assert outputs[0].startswith("verified: 8 files")
    assert re.fullmatch(r"\.\./image\.jpg: \d \(0\.\d{4}\)\n", outputs[1])
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert measured == json.loads(outputs[2])
    stored = json.loads((folder / "metrics.json").read_text())
    assert (measured["study"], measured["trial"], measured["threads"]) == (stored["study"], stored["trial"], 1)
    assert measured["sha256"] == json.loads((folder / "manifest.json").read_text())["sha256"]["model.onnx"]
    for batch in ("1", "32"):
        assert 0 < measured["latency"][batch]["median_ms"] <= measured["latency"][batch]["p95_ms"]
    assert measured["latency"]["32"]["median_ms"] > measured["latency"]["1"]["median_ms"]
    assert measured["peak_memory_mb"] > 10

    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert f": {on_device('-c', code).strip()} (" in outputs[1]
    assert on_device("run.py", "verify") == outputs[0]  # nothing was left behind
    refused = on_device("run.py", "predict", "nowhere.jpg", code=2)
    assert refused == "error: cannot read image nowhere.jpg: no such file\n"
    (folder / "README.md").write_text("changed")
    assert "README.md was changed since the export" in on_device("run.py", "verify", code=2)


def test_the_page_on_exported_folders_runs(exported, tmp_path, test_part):
    page = (ROOT / "studies" / "EXPORTED.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "server.py").write_text(code)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "server.py", exported, str(port)], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        Image.fromarray(test_part.images[0].transpose(1, 2, 0)).save(tmp_path / "image.png")

        def post(content):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("POST", "/", content)
            answer = connection.getresponse()
            return answer.status, json.load(answer)

        while True:
            with contextlib.suppress(ConnectionRefusedError):
                status, answer = post((tmp_path / "image.png").read_bytes())
                break
            assert server.poll() is None
            time.sleep(0.05)
        expected = run.Folder(exported).answer(tmp_path / "image.png")
        assert (status, answer) == (200, {**expected, "image": None})
        assert post(b"no image") == (400, {"error": "this is no image that the network takes"})
    finally:
        server.kill()
        server.wait()
    for command in re.findall(r"run\.py (.*)", "".join(re.findall(r"```console\n(.*?)```", page, re.DOTALL))):
        words = {"image.jpg": str(tmp_path / "image.png"), "4": "1", "pi.json": str(tmp_path / "pi.json")}
        arguments = [words.get(word, word) for word in command.split()]
        subprocess.run([sys.executable, exported / "run.py", *arguments], check=True, capture_output=True)
    assert json.loads((tmp_path / "pi.json").read_text())["study"] == "digits"


@pytest.mark.parametrize(
    "number", ["1_0", "\u0661", "\uff11", "0", "257", "+4", "-1", " 4", "4.0", "", "9" * 5000, "a\nb"]
)
def test_threads_are_a_plain_number_or_refused_in_one_line(monkeypatch, capsys, number):
    monkeypatch.setattr(sys, "argv", ["run.py", "benchmark", f"--threads={number}"])
    with pytest.raises(SystemExit) as left:
        run.main()
    said = capsys.readouterr()
    assert (left.value.code, said.out) == (2, "")
    assert said.err.startswith(f"error: --threads {number!a}"[:500])
    assert said.err.count("\n") == 1


@given(size=st.floats(1e-5, 1e5), share=st.floats(0, 1))
def test_a_gap_is_a_share_of_the_largest_score_however_small_the_scores_are(size, share):
    expected = size * np.array([[1.0, -0.5, 0.25]])
    assert run.gap_between(expected + share * size * np.array([[0, 1, 0]]), expected) == pytest.approx(share, abs=1e-9)
    assert not run.gap_between(np.full_like(expected, np.nan), expected) <= 1
