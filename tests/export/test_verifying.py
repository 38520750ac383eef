import json
import os
import re
import shutil

import numpy as np
import onnx
import pytest
from PIL import Image

from hscc_search.errors import ConfigError, DataError, ExportError, HsccError
from hscc_search.export.folder import ONNX, WEIGHTS
from hscc_search.export.run import Folder, Refused, in_words
from hscc_search.export.verifying import accuracy_on, verify

FILES = (
    *("README.md", "architecture.json", "config.yaml", "metrics.json", "model.onnx", "model.safetensors"),
    *("reference.json", "run.py"),
)


def test_a_folder_as_it_was_exported_is_verified(exported):
    verified = verify(exported)
    assert (verified.files, verified.not_run) == (len(FILES), {})
    assert verified.gaps.keys() == {ONNX, WEIGHTS}
    assert max(verified.gaps.values()) < 1e-5


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_and_a_missing_file_are_found(exported, changed, tmp_path, name):
    assert {path.name for path in exported.iterdir()} == {*FILES, "manifest.json"}
    middle = (exported / name).stat().st_size // 2

    def change(content):
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]

    folder = changed(name, change, sealed=False)
    with pytest.raises(ExportError, match=rf"{name} was changed since the export"):
        verify(folder)
    (folder / name).unlink()
    with pytest.raises(ExportError, match=rf"{name} is missing"):
        verify(folder)
    (folder / name).symlink_to(exported / name)
    with pytest.raises(ExportError, match=rf"{name} is no regular file"):
        verify(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ExportError, match=rf"{name} is no regular file"):
        verify(folder)


def test_a_signature_of_the_manifest_may_lie_beside_it(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / "manifest.json.sig").write_text("-----BEGIN SSH SIGNATURE-----")
    assert verify(folder).files == len(FILES)


@pytest.mark.parametrize("name", [".hidden", "model2.onnx", "__pycache__"])
def test_an_additional_file_is_found(exported, tmp_path, name):
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / name).mkdir() if name == "__pycache__" else (folder / name).touch()
    with pytest.raises(ExportError, match=rf"{name} is additional"):
        verify(folder)


@pytest.mark.parametrize(
    "digests",
    [
        {"../secret": "0" * 64},
        {"/etc/passwd": "0" * 64},
        {"a/b": "0" * 64},
        {"..\\secret": "0" * 64},
        {"C:secret": "0" * 64},
        {"..": "0" * 64},
        {"manifest.json": "0" * 64},
        {"a\nb": "0" * 64},
        {"model.onnx": 7},
        {"model.onnx": "0"},
        {},
        [],
        {str(number): "0" * 64 for number in range(1000)},
    ],
    ids=[
        *("up", "absolute", "below", "up elsewhere", "a drive", "the folder above", "itself", "a line", "a number"),
        *("a short digest", "none", "a list", "a thousand"),
    ],
)
def test_a_manifest_that_names_what_is_no_file_of_its_folder_is_refused(changed, tmp_path, digests):
    (tmp_path / "secret").write_text("not to be read")

    def change(content):
        own = json.loads(content)["sha256"]
        return json.dumps({"sha256": {**own, **digests} if digests and digests != [] else digests}).encode()

    folder = changed("manifest.json", change)
    for attacked in (verify, load):
        with pytest.raises(ExportError) as refused:
            attacked(folder)
        assert "\n" not in str(refused.value)
        assert "manifest.json" in str(refused.value)


def load(folder):
    from hscc_search import load

    return load(folder)


def test_a_manifest_from_elsewhere_is_refused(exported, changed):
    folder = changed("manifest.json", lambda content: re.sub(rb'": "..', b'": "00', content))
    for attacked in (verify, load):
        with pytest.raises(ExportError, match="was changed since the export"):
            attacked(folder)


BOMB = (
    b"a: &a ["
    + b"x," * 9
    + b"]\n"
    + b"".join(
        b"%c: &%c [%s]\n" % (97 + level, 97 + level, b",".join([b"*%c" % (96 + level)] * 9)) for level in range(1, 20)
    )
)


@pytest.mark.parametrize(
    "content",
    [
        BOMB,
        b"[" * 5000,
        b"a: " + b"x" * 2_000_000,
        b"!!python/object/apply:os.system [touch ran]",
        b"",
        b"- 1",
        b"a: &a [*a]",
    ],
    ids=["aliases", "nested", "large", "a call", "empty", "a list", "a circle"],
)
def test_a_config_that_is_a_bomb_is_refused_and_nothing_runs(changed, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    folder = changed("config.yaml", lambda _: content)
    with pytest.raises(ExportError) as refused:
        verify(folder)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b'{"scores": 1}',
        b'{"tolerances": {"model.onnx": 1e300}, "scores": {"model.onnx": [[0]]}}',
        b'{"scores": NaN}',
    ],
    ids=["empty", "a number", "any answer is right", "not finite"],
)
def test_answers_that_were_made_up_are_refused(changed, content):
    with pytest.raises(ExportError, match=r"reference.json is damaged|does not answer as at export"):
        verify(changed("reference.json", lambda _: content))


def test_a_model_that_answers_otherwise_is_found_though_the_manifest_fits(exported, changed):
    def change(content):
        model = onnx.load_from_string(content)
        values = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        array = onnx.numpy_helper.to_array(values) * np.float32(1.2)
        values.CopyFrom(onnx.numpy_helper.from_array(array, values.name))
        return model.SerializeToString()

    with pytest.raises(ExportError, match=r"model.onnx does not answer as at export: scores differ by 0\.\d+ of the"):
        verify(changed(ONNX, change))


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x08" * 1000])
def test_a_model_that_is_none_is_refused_in_one_line(changed, content):
    with pytest.raises(ExportError, match="ONNX Runtime cannot open") as refused:
        verify(changed(ONNX, lambda _: content))
    assert "\n" not in str(refused.value)


def test_a_model_that_reads_files_beside_it_is_refused(changed, tmp_path):
    """ONNX keeps large tensors in files of their own, whose names may say any place."""
    (tmp_path / "secret").write_bytes(bytes(4 * 32 * 27))

    def change(content):
        model = onnx.load_from_string(content)
        values = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        values.ClearField("raw_data")
        values.data_location = onnx.TensorProto.EXTERNAL
        values.external_data.add(key="location", value="../secret")
        return model.SerializeToString()

    with pytest.raises(ExportError, match="ONNX Runtime cannot open"):
        verify(changed(ONNX, change))


@pytest.fixture
def digits_as_files(test_part, tmp_path):
    """The images of the test part in folders of their classes."""
    for number, (pixels, label) in enumerate(zip(test_part.images, test_part.labels, strict=True)):
        folder = tmp_path / "images" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{number}.png")
    return tmp_path / "images"


def test_the_accuracy_on_other_images_is_measured(exported, digits_as_files, test_part):
    metrics = json.loads((exported / "metrics.json").read_text())
    found = accuracy_on(exported, digits_as_files)
    assert (found.images, found.at_export) == (len(test_part), None)
    assert found.accuracy == metrics["right"] / len(test_part)
    assert found.error == pytest.approx(metrics["compressed"]["test"]["errors"]["accuracy"], rel=0.2)


def test_images_of_other_classes_and_none_are_refused_in_one_line(exported, digits_as_files, tmp_path):
    shutil.rmtree(digits_as_files / "3")
    with pytest.raises(DataError, match="names 3, which no image has"):
        accuracy_on(exported, digits_as_files)
    with pytest.raises(HsccError, match="nowhere"):
        accuracy_on(exported, tmp_path / "nowhere")


def test_inputs_that_are_no_files_are_refused_in_one_line(changed, tmp_path):
    folder = changed("architecture.json", lambda content: content.replace(b'"values": "uint8"', b'"values": "float32"'))
    with pytest.raises(ConfigError, match="not read from files"):
        accuracy_on(folder, tmp_path)


def test_the_commands_verify_and_predict(cli, exported, digits_as_files, tmp_path):
    said = cli("verify", exported, "--data", digits_as_files, cwd=tmp_path).stdout
    assert "files: all 8 are as exported" in said
    assert "model.safetensors: answers as at export" in said
    assert re.search(r"accuracy: 0\.\d{4} ± 0\.\d{4} on 272 images of .*, which are not the study's", said)
    images = sorted((digits_as_files / "0").iterdir())[:3]
    lines = cli("predict", exported, *images, cwd=tmp_path).stdout.splitlines()
    answers = json.loads(cli("predict", exported, *images, "--format", "json", cwd=tmp_path).stdout)
    for line, answer, image in zip(lines, answers, images, strict=True):
        assert answer["image"] == str(image)
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        likeliest = max(answer["probabilities"], key=answer["probabilities"].get)
        assert line == f"{image}: {likeliest} ({answer['probabilities'][likeliest]:.4f})"
        assert answer["class"] == likeliest
    refused = cli("predict", exported, exported / "README.md", cwd=tmp_path, code=2)
    assert (refused.stdout, len(refused.stderr.splitlines())) == ("", 1)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (lambda names: names[::-1], "has other classes, or in another order"),
        (lambda names: names[:-1], r"scores 10 classes, and architecture.json names 9"),
        (lambda names: names[:1] * len(names), "does not say how images are read"),
        (lambda names: "0123456789", "has other classes, or in another order|does not say how"),
        (lambda names: ["\ud800", *names[1:]], "has other classes"),
    ],
)
def test_classes_are_those_that_the_onnx_file_names(changed, classes, words):
    def change(content):
        tree = json.loads(content)
        return json.dumps({**tree, "classes": classes(tree["classes"])}).encode()

    folder = changed("architecture.json", change)
    with pytest.raises(HsccError, match=words):
        verify(folder)


def test_a_line_holds_nothing_that_a_terminal_obeys():
    answer = {"image": "a\nb.png", "class": "\x1b[31mill\ud800", "probabilities": {"\x1b[31mill\ud800": 1.0}}
    assert in_words(answer) == "a?b.png: ?[31mill? (1.0000)"


def test_an_onnx_file_that_no_reader_takes_is_refused_before_it_is_read(changed):
    folder = changed("model.onnx", lambda content: content)
    with (folder / "model.onnx").open("r+b") as file:
        file.truncate(3 << 30)  # of which the disk holds nothing
    with pytest.raises(Refused, match=r"model.onnx is larger than 2,147,483,648 bytes"):
        _ = Folder(folder).session
