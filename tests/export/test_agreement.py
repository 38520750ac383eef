"""All files of an export agree on each test image, with each region strategy; `benchmark_agreement.py` has networks."""

import shutil
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from agreement import MOST, MOST_STEPS, OPTIMISED, STEPS, UNOPTIMISED, gaps_of

from hscc_search.config import RegionStrategy
from hscc_search.export.export import export
from hscc_search.export.folder import CARD, ONNX, read_architecture
from hscc_search.export.formats import FORMATS, Extras
from hscc_search.study.opening import open_again
from hscc_search.study.space import space_of
from hscc_search.study.trial import prepare


@pytest.fixture(scope="module")
def divided(study, tmp_path_factory):
    """Export a trial with one layer of four regions: ``divided(strategy)``; each is written once."""
    prepared = prepare(open_again(study.record, study.config, "cpu"), study.record.dense)
    by_layer = study.config.model_copy(update={"space": study.config.space.model_copy(update={"per": "layer"})})
    prepared = replace(prepared, opened=replace(prepared.opened, config=by_layer))
    common = {"energy": 0.9, "clusters": 2, "regions": 1}
    names = space_of(by_layer, prepared.calibration).distributions
    folder = tmp_path_factory.mktemp("agreement")

    def make(strategy, precision="float32", formats=()):
        out = folder / f"{strategy}-{precision}"
        if not out.exists():
            values = {name: common[name.partition("@")[0]] for name in names}
            sample = {**values, "regions@5": 4, "region_strategy": strategy, "precision": precision}
            point = replace(study.front[0], sample=sample, int8={})
            extras = Extras(formats, accept_loss=True)
            export(study, point, by_layer, out, "cpu", prepared=prepared, extras=extras)
        regions = {name: len(layer.ranks[0]) for name, layer in read_architecture(out).form.layers.items()}
        assert regions["5"] == (1 if strategy == "none" else 4)
        return out

    return make


@pytest.fixture(scope="module")
def inputs(test_part):
    return np.asarray(test_part.images[:], np.float32) / np.float32(255)


@pytest.mark.parametrize("strategy", get_args(RegionStrategy))
def test_float_files_agree_on_each_test_image(strategy, divided, inputs):
    formats = ("pt2",) if strategy == "grid" else ()
    gaps, _, _ = gaps_of(divided(strategy, formats=formats), inputs)
    assert {OPTIMISED, UNOPTIMISED, *(FORMATS[name] for name in formats)} <= gaps.keys()
    for name, gap in gaps.items():
        assert gap.absolute <= MOST, name
        assert gap.classes == 0, name


@pytest.mark.parametrize("strategy", ["random"])
def test_integers_agree_with_themselves_and_the_card_says_how_far_from_float_they_are(strategy, divided, inputs):
    folder = divided(strategy, "int8")
    gaps, exact, answers = gaps_of(folder, inputs)
    for name, gap in gaps.items():
        assert gap.absolute <= MOST_STEPS * np.ptp(answers) / STEPS, name
        assert gap.classes == 0, name
    differing = int((exact.argmax(axis=1) != answers.argmax(axis=1)).sum())
    assert (
        f"both differ on {differing} of {len(inputs)} images, with a mean divergence of" in (folder / CARD).read_text()
    )


def test_a_file_of_another_network_does_not_agree(divided, inputs, tmp_path):
    copy = shutil.copytree(divided("random"), tmp_path / "copy")
    shutil.copy(divided("none") / ONNX, copy / ONNX)
    gaps, _, _ = gaps_of(copy, inputs)
    assert min(gap.absolute for gap in gaps.values()) > MOST
