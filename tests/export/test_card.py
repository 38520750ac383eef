import re

from PIL import Image

from hscc_search.compression.plan import LayerPlan
from hscc_search.config import StudyConfig
from hscc_search.evaluation.cost import CountedCost
from hscc_search.evaluation.quality import Quality
from hscc_search.export.card import model_card
from hscc_search.export.folder import Metrics, Results


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
        "classes": ("cat", "dog"),
        "validation_images": 90,
        "test_images": 80,
        "dense": Results(dense, quality(0.75), quality(0.625)),
        "compressed": Results(compressed, quality(0.5), quality(0.375)),
        "right": 30,
        "torch_differs_on": 0,
    }
    return Metrics(**{**given, **changed})


def card_of(plan=(), **changed):
    return model_card(metrics_of(**changed), StudyConfig.from_file("digits"), plan)


def test_the_code_of_a_card_classifies_an_image(exported, test_part, onnx_scores, monkeypatch, capsys, tmp_path):
    card = (exported / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(exported)
    image = tmp_path / "image.png"
    Image.fromarray(test_part.images[0].transpose(1, 2, 0)).save(image)
    exec(code.replace('"image.jpg"', repr(str(image))), {})
    assert capsys.readouterr().out.strip() == str(onnx_scores(exported, test_part.images[:1])[0].argmax())


def test_a_card_says_what_was_compressed_and_how():
    card = card_of()
    assert card.startswith("# pets: digits_cnn, 3.00x fewer FLOPs\n")
    assert "Trial 12 of study pets, compressed by HSCC (arXiv 2604.23375) with regions 4, energy 0.8750.\n" in card
    assert "fine-tuned for 1 epoch.\n" in card_of(finetuning_epochs=1)
    assert "fine-tuned for 3 epochs.\n" in card_of(finetuning_epochs=3)


def test_a_card_compares_both_networks_with_their_errors_and_units():
    card = card_of()
    for row in (
        "| accuracy, test part | 0.6250 ± 0.0156 | 0.3750 ± 0.0156 |",
        "| macro F1, test part | 0.3125 ± 0.0156 | 0.1875 ± 0.0156 |",
        "| accuracy, validation part | 0.7500 ± 0.0156 | 0.5000 ± 0.0156 |",
        "| recall of dog, test part | 0.500 | 0.250 |",
        "| GMACs per image | 3.0000 | 1.0000 |",
        "| GFLOPs per image | 6.0000 | 2.0000 |",
        "| parameters | 7,000,000 | 1,234,567 |",
        "| size in MB | 28.0 | 4.9 |",
    ):
        assert row in card.splitlines()
    assert "(80 in the test part, 90 in the validation part)" in card
    assert "One multiply-add is one MAC and two FLOPs." in card


def test_a_card_says_what_became_of_each_layer():
    plan = (
        LayerPlan("features.0", 900, 300, (((4, 3), None),), (None,)),
        LayerPlan("classifier", 500, 500, left_dense="tiny"),
        LayerPlan("unused", 0, 0, left_dense="unused"),
    )
    card = card_of(plan)
    assert "| features.0 | 2 | total rank per region: 7, dense | 3.00x |" in card
    assert "| classifier | - | left dense: tiny | 1.00x |" in card
    assert "unused" not in card
