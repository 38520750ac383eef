import json
from pathlib import Path

import pytest

from hscc_search.config import DEFAULT_STORAGE, BudgetRange, SpaceConfig, StudyConfig
from hscc_search.config.space import COPY_PRICE
from hscc_search.errors import ConfigError, quoted

# What hscc-search 0.1.0 stored of three studies: those that come with the package, and one of defaults alone.
STORED = json.loads((Path(__file__).parent / "stored-0.1.0.json").read_text())


def test_a_file_without_options_gets_every_default(study_file):
    config = StudyConfig.from_file(study_file())
    assert (config.seed, config.trials, config.timeout, config.storage) == (0, 40, None, DEFAULT_STORAGE)
    assert (config.data.image_size, config.data.validation, config.data.test) == (224, 0.15, 0.15)
    assert (config.training.epochs, config.training.mixup, config.training.flip) == (45, 0.0, True)
    assert (config.compression.region_strategy, config.compression.calibration_images) == ("grid", 512)
    assert (config.space.regions.high, config.space.clusters.high, config.space.energy.low) == (9, 3, 0.6)
    assert config.model.checkpoint is None
    assert (config.sampler, config.objectives, config.constraints) == ("auto", ("flops", "accuracy"), ())
    assert (config.space.per, config.start, config.patience) == ("network", (), None)
    assert (config.latency.runtime, config.latency.batch_size) == ("onnxruntime", 1)


def test_a_space_has_an_energy_or_a_budget(study_file, refusal):
    space = StudyConfig.from_file(study_file(), space={"budget": {"low": 2, "high": 8}}).space
    assert (space.energy, space.budget.high) == (None, 8)
    both = {"budget": {"low": 2, "high": 8}, "energy": {"low": 0.5, "high": 0.9}}
    assert "give energy or budget, not both" in refusal(study_file(), space=both)
    assert "low 9" in refusal(study_file(), space={"budget": {"low": 9, "high": 8}})


@pytest.mark.parametrize("space", [{}, {"energy": None}, {"budget": None}, {"energy": None, "budget": None}])
def test_energy_has_a_default_where_there_is_no_budget(study_file, space):
    assert StudyConfig.from_file(study_file({"space": space})).space == SpaceConfig()
    assert SpaceConfig().rule == SpaceConfig().energy == SpaceConfig.model_fields["energy"].default


@pytest.mark.parametrize("energy", [{}, {"energy": None}])
def test_a_budget_leaves_no_energy(study_file, energy):
    """Also where null is said, as it is stored."""
    space = StudyConfig.from_file(study_file({"space": {**energy, "budget": {"low": 2, "high": 8}}})).space
    assert space.energy is None
    assert space.rule == space.budget == BudgetRange(low=2, high=8)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("trails", 3, "trials"),
        ("data.image_sise", 64, "image_size"),
        ("training.epoch", 4, "epochs"),
        ("space.regions.middle", 5, "low, high"),
        ("trials", "many", "integer"),
        ("trials", True, "integer"),
        ("trials", 2.5, "integer"),
        ("trials", {"low": 1}, "integer"),
        ("data.path", 17, "path"),
        ("training.flip", "sometimes", "boolean"),
        ("storage", 5, "string"),
        ("model.name", None, "string"),
        ("trials", 0, "equal to 1"),
        ("trials", 10**12, "equal to 1000000"),
        ("patience", 10**12, "equal to 1000000"),
        ("training.epochs", 10**9, "equal to 100000"),
        ("training.batch_size", 10**9, "equal to 65536"),
        ("training.learning_rate", 1e300, "equal to 100"),
        ("training.weight_decay", 1e300, "equal to 100"),
        ("training.mixup", 1e300, "equal to 1000"),
        ("finetuning.epochs", 10**9, "equal to 100000"),
        ("finetuning.learning_rate", 1e300, "equal to 100"),
        ("finetuning.temperature", 1e-300, "equal to 0.01"),
        ("compression.calibration_images", 10**12, "equal to 1000000"),
        ("data.image_size", 10**9, "equal to 1024"),
        ("space.regions.high", 10**9, "equal to 1024"),
        ("space.energy.levels", 10**9, "equal to 1000"),
        ("model.name", "x" * 201, "at most 200"),
        ("timeout", 0, "greater than 0"),
        ("seed", -1, "equal to 0"),
        ("seed", 10**30, "less than"),
        ("data.image_size", 7, "equal to 8"),
        ("data.validation", 0.5, "less than 0.5"),
        ("data.test", 0, "greater than 0"),
        ("data.mean", [float("nan"), 0.5, 0.5], "finite"),
        ("training.learning_rate", float("inf"), "finite"),
        ("training.momentum", 1, "less than 1"),
        ("compression.calibration_images", 0, "equal to 8"),
        ("compression.region_strategy", "hexagons", "'grid'"),
        ("compression.cluster_strategy", "kmeans", "'coactivation'"),
        ("compression.rank_multiple", 0, "equal to 1"),
        ("compression.region_gain", 1.5, "equal to 1"),
        ("finetuning.epoch", 1, "epochs"),
        ("finetuning.epochs", -1, "equal to 0"),
        ("finetuning.learning_rate", 0, "greater than 0"),
        ("finetuning.distillation", 1.1, "equal to 1"),
        ("finetuning.temperature", 0, "equal to 0.01"),
        ("space.energy.high", 1.5, "equal to 1"),
        ("space.regions.low", 0, "equal to 1"),
        ("space.budget.low", 1, "greater than 1"),
        ("name", "two words", "pattern"),
        ("sampler", "best", "'auto'"),
        ("patience", 0, "equal to 1"),
        ("latency.runtime", "tensorrt", "'onnxruntime'"),
        ("latency.batch_size", 0, "equal to 1"),
        ("objectives", ["speed", "accuracy"], "recall:CLASS"),
        ("objectives", ["recall:", "accuracy"], "recall:CLASS"),
        ("space.per", "channel", "'network'"),
        ("space.region_strategy", ["hexagons"], "'grid'"),
        ("space.rank_multiple", [0], "equal to 1"),
        ("space.energy.levels", 1, "equal to 2"),
    ],
)
def test_a_wrong_entry_is_named_with_its_key_its_value_and_what_is_allowed(study_file, refusal, key, value, allowed):
    changes = {key: value}
    if key.startswith("space.") and key.count(".") == 2:
        section = key.rpartition(".")[0]
        changes = {f"{section}.low": 1, f"{section}.high": 1, **changes}
    path = study_file(changes)
    message = refusal(path)
    shown = quoted(value[0] if isinstance(value, list) and value[0] != 0.5 else value)
    assert str(path) in message
    assert key in message
    assert shown in message
    assert allowed in message.replace(shown, "", 1).replace(key, "", 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.mean": [0.5, 0.5]}, "data: mean: 2 numbers for 3 channels: use 3, or normalisation: dataset"),
        ({"data.std": [0.5, 0.5, 0.5], "data.channels": 1}, "data: std: 3 numbers for 1 channel: use 1"),
        ({"data.normalisation": "dataset", "data.mean": [0.5] * 3}, "mean and std belong together"),
        ({"data.channels": 2}, "channels: image files give 1 or 3 channels, not 2"),
        ({"data.image_size": [96, 7]}, "data.image_size: [96, 7] is not allowed: use a whole number greater than"),
        ({"data.image_size": [96, 160, 3]}, "data.image_size: [96, 160, 3] is not allowed"),
        ({"data.image_size": "large"}, "data.image_size: 'large' is not allowed"),
        ({"data.image_size": [1024, 512], "latency.batch_size": 1024}, "1024 images of 1024 x 512 pixels do not fit"),
        ({"data.range": [5, 5]}, "range: [5.0, 5.0] is not allowed: use [low, high], with high above low"),
        ({"data.window": [40, 1]}, "window: [40.0, 1.0] is not allowed: use [centre, width], with a width above 1"),
        ({"data.resize_to": 256}, "resize_to belongs to resize: crop"),
        (
            {"data.resize_to": 200, "data.resize": "crop", "data.image_size": 224},
            "resize_to: 200 is less than image_size",
        ),
        ({"data.range": [0, 1], "data.window": [40, 400]}, "range and window say the same"),
        ({"objectives": ["flops", "flops"]}, "objectives: every objective once"),
        ({"objectives": ["accuracy"]}, "at least 2 items"),
        ({"objectives": ["flops", "macs", "accuracy", "latency", "macro_f1"]}, "at most 4 items"),
        ({"constraints": [{"metric": "speed", "at_most": 1}]}, "constraints.0.metric: there is no metric 'speed'"),
        ({"constraints": [{"metric": "flops", "at_best": 1}]}, "allowed here are metric, at_least, at_most"),
        ({"space.budget": {"low": 2, "high": 1e300}}, "space.budget.high: 1e+300 is not allowed"),
        ({"trails": 3}, "did you mean trials? allowed here are name"),
        ({"training.epoch": 3}, "did you mean epochs?"),
        ({"constraints": [{"metric": "flops", "at_mots": 1}]}, "did you mean at_most?"),
        ({"training": 3}, "training: 3 is not allowed: it is a section"),
        ({"space.precision": "int8"}, "precision: 'int8' is not allowed: it is a list, such as [float32, int8]"),
        ({"space.region_strategy": "grid"}, "'grid' is not allowed: it is a list, such as [grid, bands]"),
        ({"space.rank_multiple": 8}, "space.rank_multiple: 8 is not allowed: it is a list, such as [8]"),
        ({"objectives": "flops"}, "objectives: 'flops' is not allowed: it is a list, such as [flops, accuracy]"),
        ({"objectives": ["flops"]}, "objectives: ['flops'] is not allowed: it is a list of at least 2 items, not 1"),
        ({"columns": "auroc"}, "columns: 'auroc' is not allowed: it is a list, such as [auroc]"),
        ({"start": {"regions": 1}}, "start: {'regions': 1} is not allowed: it is a list, each item after a '- '"),
        ({"data.mean": 0.5}, "data.mean: 0.5 is not allowed: it is a list, such as [0.485, 0.456, 0.406]"),
        ({"data.window": 400}, "data.window: 400 is not allowed: it is a list, such as [400, ...]"),
        ({"constraints": [{"metric": "accuracy", "at_least": 90}]}, "at_least 90: accuracy is a share, 0 to 1"),
        ({"constraints": [{"metric": "recall:a", "at_most": -1}]}, "at_most -1: recall:a is a share, 0 to 1"),
        ({"constraints": [{"metric": "latency", "at_most": 0}]}, "at_most 0: latency is above 0"),
        ({"training.batch_size": 65536}, "training.batch_size: 65536 images of 224 x 224 pixels do not fit"),
        ({"data.image_size": 1024, "latency.batch_size": 1024}, "latency.batch_size: 1024 images of 1024 x 1024"),
        ({"data.path": "x" * 256}, "255 between two slashes"),
        ({"model.checkpoint": "x/" * 2047}, "at most 4095 bytes"),
        ({"data.path": "a\0b"}, "the character \\0"),
        ({"storage": "sqlite:///" + "x" * 2000}, "at most 2000 characters"),
        ({"start": [{"regions": 10**400}]}, "start.0.regions"),
        ({"constraints": [{"metric": "latency"}]}, "latency needs either at_least or at_most"),
        ({"constraints": [{"metric": "latency", "at_least": 1, "at_most": 2}]}, "needs either at_least or at_most"),
        ({"sampler": "grid"}, "sampler grid needs levels"),
        ({"metrics": {"dice": "no function"}}, "metrics.dice.function: 'no function' is not allowed"),
        ({"metrics": {"dice": {"function": "a:b", "bettr": "lower"}}}, "metrics.dice.bettr: unknown key"),
        ({"metrics": {"dice": {"function": "a:b", "bettr": "lower"}}}, "did you mean better?"),
        ({"metrics": {"dice": {"function": "a:b", "worst": 2}}}, "worst 2 and best 1 do not go with better: higher"),
        ({"metrics": {"two words": "a:b"}}, "'two words' is no name"),
        ({"metrics": {"auroc": "a:b"}}, "'auroc' is a metric already"),
        ({"metrics": {"dice": "a:b"}, "columns": ["dise"]}, "columns.0: there is no metric 'dise': use flops"),
        ({"columns": ["sensitivity@1.5:cat"]}, "columns.0: there is no metric 'sensitivity@1.5:cat'"),
        ({"columns": ["latency"]}, "columns.0: latency is no metric of answers"),
        ({"constraints": [{"metric": "log_loss", "at_most": 0}]}, "at_most 0: log_loss is above 0"),
        ({"constraints": [{"metric": "auroc", "at_least": 95}]}, "at_least 95: auroc is a share, 0 to 1"),
        ({"space": {"region_strategy": ["grid", "grid"]}}, "region_strategy: every choice once"),
    ],
)
def test_what_does_not_go_together_is_refused(study_file, refusal, changes, said):
    assert said in refusal(study_file(changes))


def test_a_grid_may_have_levels_of_energies_or_of_budgets(study_file):
    for rule in ({"energy": {"low": 0.5, "high": 0.9, "levels": 3}}, {"budget": {"low": 2, "high": 8, "levels": 3}}):
        assert StudyConfig.from_file(study_file({"sampler": "grid", "space": rule})).sampler == "grid"


def test_a_range_whose_low_end_is_above_its_high_end_is_refused_with_both(study_file, refusal):
    message = refusal(study_file({"space.regions": {"low": 5, "high": 2}}))
    assert "space.regions: low 5 is above high 2" in message


def test_source_and_path_must_fit(study_file, refusal):
    assert "--data" in refusal(study_file({"data": {"source": "folder"}}))
    assert "takes no path" in refusal(study_file({"data": {"source": "digits", "path": "images"}}))


@pytest.mark.parametrize(
    "harmless",
    [
        {"trials": 99},
        {"timeout": 5.0},
        {"patience": 5},
        {"sampler": "random"},
        {"start": [{"regions": 1, "clusters": 1, "energy": 0.9}]},
        {"storage": "sqlite:///other.db"},
        {"data__path": Path("/elsewhere")},
        {"model__checkpoint": Path("/elsewhere.pt")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_study_goes_on_when_a_path_or_a_length_changes(study_file, harmless):
    path = study_file()
    assert StudyConfig.from_file(path, **harmless).differences(StudyConfig.from_file(path)) == []


def test_differences_name_key_old_and_new_value(study_file):
    path = study_file()
    old, new = StudyConfig.from_file(path), StudyConfig.from_file(path, seed=4, space__regions={"low": 2, "high": 3})
    assert new.differences(old) == ["seed: 0 -> 4", "space.regions.high: 9 -> 3", "space.regions.low: 1 -> 2"]


@pytest.mark.parametrize("tree", STORED.values(), ids=STORED)
def test_a_study_of_the_version_before_reads_as_what_it_is(tree):
    config = StudyConfig.from_stored(tree, "storage")
    assert with_keys_of(tree, config.stored()) == tree
    assert (config.data.copies, config.data.class_level) == ("near", None)
    assert config.training.when == "always"  # as 0.1.0 did


@pytest.mark.parametrize(
    ("changes", "price"),
    [
        ({}, 0),
        ({"objectives": ["latency", "accuracy"]}, COPY_PRICE),
        ({"constraints": [{"metric": "latency", "at_most": 5}]}, COPY_PRICE),
        ({"objectives": ["latency", "accuracy"], "compression.copy_price": 0}, 0),
        ({"compression.copy_price": 7}, 7),
    ],
)
def test_copies_have_a_price_where_time_is_asked_for(study_file, changes, price):
    config = StudyConfig.from_file(study_file(changes))
    assert config.price_of_copies == price
    assert StudyConfig.from_stored(config.stored(), "storage").price_of_copies == price


def test_a_study_of_the_version_before_goes_on_without_prices(study_file):
    now = StudyConfig.from_file(study_file({"objectives": ["latency", "accuracy"]}))
    tree = now.stored()
    del tree["compression"]["copy_price"], tree["compression"]["weight_price"]
    before = StudyConfig.from_stored(tree, "storage")
    assert (before.price_of_copies, before.compression.weight_price) == (0, 0)
    assert now.as_started(before).differences(before) == []
    assert now.as_started(before).price_of_copies == 0


def with_keys_of(before, tree):
    """A tree without the keys that the version before did not have."""
    return {
        key: with_keys_of(before[key], value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if key in before
    }


def test_the_shipped_studies_go_on_where_the_version_before_began_them(monkeypatch):
    monkeypatch.setenv("BRAIN_TUMOR_MRI", "/images")
    for name in ("digits", "brain_tumor_alexnet"):
        before = StudyConfig.from_stored(STORED[name], "storage")
        assert StudyConfig.from_file(name).as_started(before).differences(before) == []


def test_what_trains_the_network_of_a_study_stays_unless_its_file_says_something_else(study_file):
    before = StudyConfig.from_file(study_file(), training__when="always")
    silent, said = StudyConfig.from_file(study_file()), StudyConfig.from_file(study_file({"training.when": "auto"}))
    assert silent.as_started(before).training.when == "always"
    assert silent.as_started(before).differences(before) == []
    assert said.as_started(before).differences(before) == ["training.when: always -> auto"]


def test_a_stored_study_reads_back_equal(study_file):
    changes = {"timeout": 60, "data.mean": [0.1, 0.2, 0.3], "model.checkpoint": "w.pt", "space.clusters.high": 4}
    config = StudyConfig.from_file(study_file({**changes, "space.clusters.low": 2}))
    again = StudyConfig.from_tree(config.stored(), "storage")
    assert again == config
    assert again.differences(config) == []


def test_with_paths_moves_images_and_checkpoint_and_nothing_else(study_file):
    config = StudyConfig.from_file(study_file())
    moved = config.with_paths(Path("/new/images"), Path("/new/weights.pt"))
    assert (moved.data.path, moved.model.checkpoint) == (Path("/new/images"), Path("/new/weights.pt"))
    assert moved.differences(config) == []
    assert config.with_paths(None, None) == config
    with pytest.raises(ConfigError, match="takes no path"):
        StudyConfig.from_file("digits").with_paths(Path("/new/images"), None)


@pytest.mark.parametrize(
    "changes",
    [
        {"objectives": ["recall:seven", "flops"]},
        {"constraints": [{"metric": "recall:seven", "at_least": 0.5}]},
        {"columns": ["recall:seven"]},
    ],
)
def test_a_recall_of_no_class_is_refused_with_the_classes(study_file, changes):
    config = StudyConfig.from_file(study_file(changes))
    with pytest.raises(ConfigError) as refused:
        config.check_classes(("cat", "dog"))
    assert str(refused.value) == "study own: recall:seven: there is no class 'seven': use cat, dog"
    config.check_classes(("seven", "eight"))


def test_a_recall_of_an_endless_class_among_many_is_refused_in_a_short_line(study_file):
    config = StudyConfig.from_file(study_file({"objectives": ["flops", "recall:" + "x" * 4000]}))
    with pytest.raises(ConfigError, match=r"there is no class 'x+\.\.\.x+': use class 0, class 1, ") as refused:
        config.check_classes([f"class {number}" for number in range(9999)])
    assert len(str(refused.value)) < 1000


def test_a_class_may_have_a_colon_in_its_name(study_file):
    config = StudyConfig.from_file(study_file({"objectives": ["flops", "recall:grade:2"]}))
    config.check_classes(("grade:1", "grade:2"))
    with pytest.raises(ConfigError, match="no class 'grade:2'"):
        config.check_classes(("grade", "2"))


def test_a_size_is_stored_as_one_side_where_both_are_equal(study_file):
    sizes = {64: 64, (64, 64): 64, (96, 160): [96, 160]}
    for given, stored in sizes.items():
        config = StudyConfig.from_file(
            study_file({"data.image_size": list(given) if isinstance(given, tuple) else given})
        )
        assert config.stored()["data"]["image_size"] == stored
        assert StudyConfig.from_stored(config.stored(), "again") == config


@pytest.mark.parametrize("source", ["memory", "python"])
@pytest.mark.parametrize("channels", [2, 4, 12])
def test_inputs_of_other_channels_stay_as_they_are(source, channels):
    data = {"source": source, "channels": channels, **({"factory": "mine:make"} if source == "python" else {})}
    config = StudyConfig.from_tree({"name": "other", "model": {"name": "mine:build"}, "data": data}, "other")
    assert (config.data.mean, config.data.std) == ((0.0,) * channels, (1.0,) * channels)


def test_one_channel_has_the_mean_of_imagenets_by_default(study_file):
    data = StudyConfig.from_file(study_file({"data.channels": 1})).data
    assert (data.mean, data.std, data.shape) == ((0.449,), (0.226,), (1, 224, 224))
    assert data.mean == pytest.approx([sum(StudyConfig.from_file(study_file({})).data.mean) / 3], abs=1e-3)


def test_a_computed_normalisation_is_taken_from_the_study_that_goes_on(study_file):
    asked = StudyConfig.from_file(study_file({"data.normalisation": "dataset"}))
    assert (asked.data.mean, asked.data.std) == ((), ())
    before = asked.model_copy(update={"data": asked.data.normalised_by((0.1,) * 3, (0.2,) * 3)})
    before = StudyConfig.from_stored(before.stored(), "stored")
    assert asked.differences(before)
    assert not asked.as_started(before).differences(before)
    stated = StudyConfig.from_file(study_file({"data.mean": [0.1] * 3, "data.std": [0.2] * 3}))
    assert stated.as_started(before).differences(before) == ["data.normalisation: dataset -> stated"]


def test_a_study_of_before_pictures_had_these_keys_has_not_changed(study_file):
    config = StudyConfig.from_file(study_file({}))
    tree = config.stored()
    for later in ("channels", "resize", "resize_to", "range", "window", "normalisation"):
        del tree["data"][later]
    assert not config.differences(StudyConfig.from_stored(tree, "stored"))


def test_a_metric_of_ones_own_is_a_function_alone_or_a_section(study_file):
    short = StudyConfig.from_file(
        study_file({"metrics": {"dice": "mine.metrics:dice"}, "columns": ["specificity:cat"]})
    )
    assert short.metrics["dice"].bounds == (0.0, 1.0)
    assert short.asked_metrics == ("flops", "accuracy", "specificity:cat", "dice")
    assert StudyConfig.from_stored(short.stored(), "stored") == short
    loss = {"function": "mine.metrics:dice", "better": "lower", "worst": 7}
    long = StudyConfig.from_file(study_file({"metrics": {"dice": loss}, "objectives": ["flops", "dice"]}))
    assert long.metrics["dice"].bounds == (7.0, 0.0)
    assert long.differences(short)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "names no objectives: say which, such as [flops, dice]"),
        ({"objectives": ["flops", "macro_f1"]}, "macro_f1 needs one class for each image: use flops"),
        ({"objectives": ["flops", "dice"], "columns": ["auroc:1"]}, "auroc:1 needs one class for each image"),
        ({"objectives": ["flops", "dice"], "training.mixup": 0.2}, "training.mixup"),
    ],
)
def test_what_needs_one_class_for_each_image_is_refused_for_maps(study_file, changes, said):
    config = StudyConfig.from_file(study_file({"metrics": {"dice": "module:dice"}, **changes}))
    with pytest.raises(ConfigError) as caught:
        config.check_maps()
    assert said in str(caught.value)


def test_costs_accuracy_and_own_metrics_are_those_of_maps(study_file):
    objectives = ["flops", "accuracy", "dice"]
    StudyConfig.from_file(study_file({"metrics": {"dice": "module:dice"}, "objectives": objectives})).check_maps()
