import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_sample_image

from hscc_search.compression.inspection import Inspection
from hscc_search.compression.plan import LayerPlan
from hscc_search.config import DataConfig, StudyConfig
from hscc_search.data.decode import pixels_of, read_image
from hscc_search.evaluation.cost import CountedCost
from hscc_search.evaluation.quality import Quality
from hscc_search.export.card import model_card
from hscc_search.export.folder import Metrics, Pictures, Results
from hscc_search.export.loading import load


def quality(accuracy):
    metrics = {"accuracy": accuracy, "macro_f1": accuracy / 2, "recall:cat": 1.0, "recall:dog": accuracy - 0.125}
    return Quality(metrics, dict.fromkeys(metrics, 0.015625))


def metrics_of(**changed):
    dense = CountedCost(3_000_000_000, 6_000_000_000, 7_000_000, 28.0, 3_000_000_000, {})
    compressed = CountedCost(1_000_000_000, 2_000_000_000, 1_234_567, 4.94, 1_000_000_000, {})
    given = {
        "study": "pets",
        "trial": 12,
        "sample": {"regions": 4, "energy": 0.875},
        "finetuning_epochs": 0,
        "trained_further": False,
        "classes": ("cat", "dog"),
        "validation_images": 90,
        "test_images": 80,
        "dense": Results(dense, quality(0.75), quality(0.625)),
        "compressed": Results(compressed, quality(0.5), quality(0.375)),
        "right": 30,
        "torch_differs_on": 0,
    }
    return Metrics(**{**given, **changed})


def card_of(plan=(), notices=(), trained_elsewhere=False, **changed):
    inspection = Inspection((), 3_000_000_000, 7_000_000, 1e-6, 512)
    config = StudyConfig.from_file("digits")
    return model_card(metrics_of(**changed), config, plan, inspection, notices, trained_elsewhere)


@pytest.fixture
def run_card(exported, monkeypatch):
    """Run the code of a card on an image file, and return its variables."""
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(exported)
    monkeypatch.syspath_prepend(exported)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(image):
        variables = {}
        exec(code.replace('"../image.jpg"', repr(str(image))), variables)
        return variables

    return run


def test_the_code_of_a_card_classifies_an_image(run_card, exported, test_part, onnx_scores, capsys, tmp_path):
    image = tmp_path / "image.png"
    Image.fromarray(test_part.images[0].transpose(1, 2, 0)).save(image)
    run_card(image)
    assert capsys.readouterr().out.strip() == str(onnx_scores(exported, test_part.images[:1])[0].argmax())


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[("RGB", suffix) for suffix in ("jpg", "png", "tif", "webp")],
        *[(mode, "png") for mode in ("1", "L", "LA", "P", "RGBA")],
        *[("CMYK", suffix) for suffix in ("jpg", "tif")],
        ("YCbCr", "tif"),
    ],
)
def test_the_code_of_a_card_decodes_as_the_study_does(run_card, exported, study, onnx_scores, tmp_path, mode, suffix):
    data = study.config.data
    photograph = Image.fromarray(load_sample_image("flower.jpg")[100:160, 200:290])
    photograph = photograph.quantize(16) if mode == "P" else photograph.convert(mode)
    if mode in ("LA", "RGBA"):
        photograph.putalpha(128)
    decoded, path = {}, tmp_path / f"image.{suffix}"
    orientations = range(1, 9) if suffix in ("jpg", "png") and mode == "RGB" else (1, 6, 7)
    for orientation in orientations:
        exif = Image.Exif()
        exif[0x0112] = orientation
        photograph.save(path, exif=exif)
        with Image.open(path) as stored:
            assert stored.mode == mode
        pixels = pixels_of(read_image(path, data), data)
        variables = run_card(path)
        np.testing.assert_array_equal(variables["pixels"][0], pixels.astype(np.float32) / 255)
        np.testing.assert_array_equal(variables["scores"], onnx_scores(exported, pixels[None]))
        decoded[orientation] = pixels.tobytes()
    assert len(set(decoded.values())) == len(orientations)  # so that an orientation that is ignored is found


def test_the_code_of_a_card_of_eight_bit_images_refuses_others(run_card, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.full((8, 8), 5000, np.uint16)).save(path)
    with pytest.raises(Exception, match="convert it to 8 bits per channel"):  # a Refused of the folder's own module
        run_card(path)


def test_the_torch_module_takes_the_pixels_of_a_card(run_card, exported, tmp_path):
    path = tmp_path / "image.jpg"
    Image.fromarray(load_sample_image("flower.jpg")[100:160, 200:290]).save(path)
    variables = run_card(path)
    scores = load(exported)(torch.from_numpy(variables["pixels"])).detach().numpy()
    np.testing.assert_allclose(scores, variables["scores"], rtol=1e-4, atol=1e-4)


def test_names_of_classes_stay_in_their_cells_and_their_words():
    names = ("scan [left]", "a|b", "*", "`x`", "<b>", "quote\"'")
    both = Results(metrics_of().dense.cost, *[Quality({}, {})] * 2)
    values = {"accuracy": 0.5, "macro_f1": 0.5, **{f"recall:{name}": 0.25 for name in names}}
    both = replace(both, validation=Quality(values, values), test=Quality(values, values))
    card = card_of(classes=names, dense=both, compressed=both)
    for shown in ("scan [left]", "a\\|b", "\\*", "\\`x\\`", "\\<b>"):
        assert re.search(rf"^\| \d \| {re.escape(shown)} \| 0.250 \| 0.250 \|$", card, re.MULTILINE)


def test_a_name_that_a_comma_or_a_line_would_divide_stays_one():
    card = card_of(classes=("cat", "dog, brown", 'the "other", too', "two\nlines"))
    assert 'before softmax: cat, "dog, brown", "the \\\\"other\\\\", too", two\\\\nlines. ' in card
    assert "| 3 | two\\\\nlines | - | - |" in card.splitlines()


def test_many_classes_stand_in_their_table_alone():
    names = tuple(f"a rather long name of a class of things, number {number}" for number in range(40))
    card = card_of(classes=names)
    assert "one score per class, before softmax: the 40 classes below, in their order. " in card
    rows = [row.split(" | ")[1] for row in card.splitlines() if "a rather long name" in row]
    assert rows == list(names)


def test_a_card_says_which_operators_its_flops_leave_out():
    assert "two FLOPs. The trial" in card_of()
    cost = replace(metrics_of().compressed.cost, uncounted={"relu_": 7, "max_pool2d": 3}, notes=("a: fvcore misses 2",))
    said = "two FLOPs; operators of the compressed network that are not counted: relu_ (7), max_pool2d (3); MACs are "
    assert f"{said}torch's count: a: fvcore misses 2. The trial" in card_of(
        compressed=replace(metrics_of().compressed, cost=cost)
    )


def test_a_card_says_what_was_compressed_and_how():
    card = card_of()
    assert "\n\n# pets: digits_cnn, 3.00x fewer FLOPs\n" in card
    assert "Trial 12 of study pets, compressed by HSCC (arXiv 2604.23375) with regions 4, energy 0.8750.\n" in card
    assert "fine-tuned for 1 epoch.\n" in card_of(finetuning_epochs=1)
    assert "fine-tuned for 3 epochs.\n" in card_of(finetuning_epochs=3)
    further = card_of(trained_further=True)
    assert ", then trained further in a way of the user's own, and measured anew.\n" in further
    assert "which images the compressed network was trained on is not known" in further


def test_a_card_compares_both_networks_with_their_errors_and_units():
    card = card_of()
    for row in (
        "| accuracy, test part | 0.6250 ± 0.0156 | 0.3750 ± 0.0156 |",
        "| macro F1, test part | 0.3125 ± 0.0156 | 0.1875 ± 0.0156 |",
        "| accuracy, validation part | 0.7500 ± 0.0156 | 0.5000 ± 0.0156 |",
        "| 1 | dog | 0.500 | 0.250 |",
        "| GMACs per image | 3.0000 | 1.0000 |",
        "| GFLOPs per image | 6.0000 | 2.0000 |",
        "| parameters | 7,000,000 | 1,234,567 |",
        "| size in MB | 28.0 | 4.9 |",
    ):
        assert row in card.splitlines()
    assert "(80 in the test part, 90 in the validation part)" in card
    assert "One multiply-add is one MAC and two FLOPs." in card


def test_a_card_begins_with_what_a_hub_of_models_reads():
    _, header, _ = card_of().split("---\n", 2)
    tree = yaml.safe_load(header)
    assert tree["pipeline_tag"] == "image-classification"
    assert tree["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.375}]
    assert yaml.safe_load(card_of(study="a: [b", maps=(4, 4)).split("---\n", 2)[1])["model-index"][0]["name"]


@pytest.mark.parametrize(("test", "said"), [(0.375, "12.5 ± 2.2 points higher, more than"), (0.5, "0.0 ± 2.2 points")])
def test_a_card_tells_how_far_the_test_part_is_from_the_validation_part(test, said):
    compressed = replace(metrics_of().compressed, test=quality(test))
    assert f"On the validation part its accuracy is {said}" in card_of(compressed=compressed)


@pytest.mark.parametrize("folder", ["/home/some body/images", "/data"])
def test_a_card_names_no_folder_of_a_machine(folder):
    card = card_of(notices=[f"nearly empty images: 2 of 9 ({folder}/a/1.png, {folder}/b/2.png); and/or 1/2"])
    assert "2 of 9 (1.png, 2.png); and/or 1/2" in card


def test_a_card_says_what_became_of_each_layer():
    plan = (
        LayerPlan("features.0", 900, 300, (((4, 3), None),), (None,)),
        LayerPlan("classifier", 500, 500, left_dense="tiny"),
        LayerPlan("unused", 0, 0, left_dense="unused"),
    )
    card = card_of(plan)
    assert "| features.0 | 0.0000 | 2 | total rank per region: 7, dense | 3.00x |" in card
    assert "| classifier | 0.0000 | - | left dense: tiny | 1.00x |" in card
    assert "unused" not in card


def test_a_card_says_that_images_of_training_are_not_known_and_repeats_the_warnings():
    known, unknown = card_of(), card_of(notices=["classes are small"], trained_elsewhere=True)
    assert "the test part was used for this table only" in known
    assert "the test part was used for this table only" not in unknown
    assert "the dense network was trained on is not known" in unknown
    assert "- classes are small\n" in unknown


def card_with(data, dtype):
    config = StudyConfig.from_file("digits")
    section = DataConfig(path="images", image_size=[24, 40], **data)
    inspection = Inspection((), 3_000_000_000, 7_000_000, 1e-6, 512)
    return model_card(metrics_of(), config, (), inspection, pictures=Pictures.of(section, np.dtype(dtype)))


@pytest.mark.parametrize(
    ("data", "files", "said"),
    [
        ({}, np.uint8, "RGB images of 24 x 40 pixels, float32 values 0 to 1, shape (images, 3, 24, 40)"),
        ({"channels": 1}, np.uint16, "grey images of 24 x 40 pixels"),
        ({}, np.uint16, "Values 0 and 65535 of a file of 16 bits are 0 and 1;"),
        ({"window": [40, 400]}, np.uint16, "Values -160 and 239 of a file of more than 8 bits are 0 and 1;"),
        ({}, np.float32, "inputs as the study's data set gives them, float32, shape (images, 3, 24, 40)."),
    ],
)
def test_a_card_says_what_the_network_takes(data, files, said):
    assert said in card_with(data, files)
