from pathlib import Path

import pytest
import yaml

import studies
from hscc_search.config import DEFAULT_STORAGE, StudyConfig, find_study_file
from hscc_search.errors import ConfigError

SMALLEST = {"name": "own", "data": {"source": "folder", "path": "images"}, "model": {"name": "alexnet"}}


@pytest.fixture
def study_file(tmp_path):
    """Write the smallest study file with dotted keys changed: ``study_file({"data.path": "elsewhere"})``."""

    def write(changes=(), text=None):
        tree = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALLEST.items()}
        for dotted, value in dict(changes).items():
            *sections, last = dotted.split(".")
            holder = tree
            for section in sections:
                holder = holder.setdefault(section, {})
            holder[last] = value
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(tree) if text is None else text)
        return path

    return write


def message_of(path, **overrides):
    with pytest.raises(ConfigError) as caught:
        StudyConfig.from_file(path, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


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


def test_a_space_has_an_energy_or_a_budget(study_file):
    space = StudyConfig.from_file(study_file(), space={"budget": {"low": 2, "high": 8}}).space
    assert (space.energy, space.budget.high) == (None, 8)
    both = {"budget": {"low": 2, "high": 8}, "energy": {"low": 0.5, "high": 0.9}}
    assert "give energy or budget, not both" in message_of(study_file(), space=both)
    assert "low 9" in message_of(study_file(), space={"budget": {"low": 9, "high": 8}})


@pytest.mark.parametrize("path", studies.files(), ids=lambda path: path.stem)
def test_every_shipped_study_file_is_valid_and_named_like_its_file(path, monkeypatch, tmp_path):
    monkeypatch.setenv("BRAIN_TUMOR_MRI", str(tmp_path))
    assert StudyConfig.from_file(path).name == path.stem
    assert find_study_file(path.stem) == path


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
        ("data.mean", [0.5, 0.5], "3"),
        ("data.std", [0.5, 0.5], "3"),
        ("training.flip", "sometimes", "boolean"),
        ("storage", 5, "string"),
        ("model.name", None, "string"),
        ("trials", 0, "equal to 1"),
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
        ("finetuning.temperature", 0, "greater than 0"),
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
def test_a_wrong_entry_is_named_with_its_key_its_value_and_what_is_allowed(study_file, key, value, allowed):
    changes = {key: value}
    if key.startswith("space.") and key.count(".") == 2:
        section = key.rpartition(".")[0]
        changes = {f"{section}.low": 1, f"{section}.high": 1, **changes}
    path = study_file(changes)
    message = message_of(path)
    shown = value[0] if isinstance(value, list) and value[0] != 0.5 else value
    assert str(path) in message
    assert key in message
    assert repr(shown) in message
    assert allowed in message.replace(repr(shown), "", 1).replace(key, "", 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectives": ["flops", "flops"]}, "objectives: every objective once"),
        ({"objectives": ["accuracy"]}, "at least 2 items"),
        ({"objectives": ["flops", "macs", "accuracy", "latency", "macro_f1"]}, "at most 4 items"),
        ({"constraints": [{"metric": "speed", "at_most": 1}]}, "constraints.0.metric: there is no metric 'speed'"),
        ({"constraints": [{"metric": "flops", "at_best": 1}]}, "allowed here are metric, at_least, at_most"),
        ({"constraints": [{"metric": "latency"}]}, "latency needs either at_least or at_most"),
        ({"constraints": [{"metric": "latency", "at_least": 1, "at_most": 2}]}, "needs either at_least or at_most"),
        ({"sampler": "grid"}, "sampler grid needs levels"),
        ({"space": {"region_strategy": ["grid", "grid"]}}, "region_strategy: every choice once"),
    ],
)
def test_what_does_not_go_together_is_refused(study_file, changes, said):
    assert said in message_of(study_file(changes))


def test_a_grid_may_have_levels_of_energies_or_of_budgets(study_file):
    for rule in ({"energy": {"low": 0.5, "high": 0.9, "levels": 3}}, {"budget": {"low": 2, "high": 8, "levels": 3}}):
        assert StudyConfig.from_file(study_file({"sampler": "grid", "space": rule})).sampler == "grid"


def test_a_range_whose_low_end_is_above_its_high_end_is_refused_with_both(study_file):
    message = message_of(study_file({"space.regions": {"low": 5, "high": 2}}))
    assert "space.regions" in message
    assert "5" in message
    assert "2" in message


@pytest.mark.parametrize("key", ["name", "data", "model"])
def test_a_missing_key_is_named(study_file, key):
    text = yaml.safe_dump({name: value for name, value in SMALLEST.items() if name != key})
    assert f"{key}: missing" in message_of(study_file(text=text))


@pytest.mark.parametrize(
    "text",
    [
        "name: [",
        "- a list",
        "",
        "name: own\x00",
        "trials: 2020-13-45",
        "trials: !!int many",
        "trials: !!timestamp never",
        "[" * 3000,
    ],
    ids=["unclosed", "list", "empty", "control", "date", "integer", "timestamp", "deep"],
)
def test_a_file_that_is_no_mapping_of_keys_is_refused_by_name(study_file, text):
    path = study_file(text=text)
    assert str(path) in message_of(path)


def test_a_file_in_another_encoding_is_refused_by_name(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_bytes("name: grün".encode("latin-1"))
    assert str(path) in message_of(path)


@pytest.mark.parametrize("name", ["nothing", "x" * 300], ids=["missing", "longer than a file name"])
def test_a_study_that_does_not_exist_is_answered_with_those_that_do(name):
    message = message_of(name)
    assert name in message
    assert "brain_tumor_alexnet, digits" in message


def test_source_and_path_must_fit(study_file):
    assert "--data" in message_of(study_file({"data": {"source": "folder"}}))
    assert "takes no path" in message_of(study_file({"data": {"source": "digits", "path": "images"}}))


def test_places_in_a_file_are_relative_to_it_from_any_folder(study_file, monkeypatch, tmp_path):
    path = study_file({"model.checkpoint": "weights.pt", "data.path": "sub/images"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = StudyConfig.from_file(Path("..") / path.name)
    assert config.data.path.is_absolute()
    assert config.data.path.resolve() == tmp_path / "sub" / "images"
    assert config.model.checkpoint.resolve() == tmp_path / "weights.pt"


def test_places_in_a_file_may_be_absolute_or_start_at_home(study_file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = StudyConfig.from_file(study_file({"data.path": "~/images", "model.checkpoint": "/srv/weights.pt"}))
    assert config.data.path == Path("/home/someone/images")
    assert config.model.checkpoint == Path("/srv/weights.pt")


def test_the_home_of_a_user_who_does_not_exist_is_refused(study_file):
    assert "~nosuchuser" in message_of(study_file({"data.path": "~nosuchuser/images"}))


@pytest.mark.parametrize("form", ["$OWN_PLACE", "${OWN_PLACE}"])
def test_environment_variables_stand_for_places(study_file, monkeypatch, form):
    monkeypatch.setenv("OWN_PLACE", "/srv/own")
    config = StudyConfig.from_file(
        study_file({"data.path": f"{form}/a", "model.checkpoint": f"{form}/b", "storage": f"sqlite:///{form}/c"})
    )
    assert (config.data.path, config.model.checkpoint) == (Path("/srv/own/a"), Path("/srv/own/b"))
    assert config.storage == "sqlite:////srv/own/c"


@pytest.mark.parametrize(
    ("key", "override", "option", "value"),
    [
        ("data.path", "data__path", "--data", Path("/given")),
        ("model.checkpoint", "model__checkpoint", "--checkpoint", Path("/given")),
        ("storage", "storage", "--storage", "sqlite:////given"),
    ],
)
def test_an_unset_variable_matters_only_where_no_option_replaces_it(
    study_file, monkeypatch, key, override, option, value
):
    monkeypatch.delenv("OWN_PLACE", raising=False)
    path = study_file({key: "${OWN_PLACE}"})
    message = message_of(path)
    assert all(word in message for word in (key, "OWN_PLACE", option))
    config = StudyConfig.from_file(path, **{override: value})
    assert str(value) in (str(config.data.path), str(config.model.checkpoint), config.storage)


def test_overrides_replace_what_the_file_says_and_none_replaces_nothing(study_file):
    path = study_file({"trials": 7, "training.epochs": 3})
    config = StudyConfig.from_file(path, trials=9, training__momentum=0.5, storage=None, training__epochs=None)
    assert (config.trials, config.training.momentum, config.training.epochs) == (9, 0.5, 3)
    assert config.storage == DEFAULT_STORAGE


def test_overrides_are_checked_like_the_file(study_file):
    assert "trials" in message_of(study_file(), trials=0)
    assert "data: 3" in message_of(study_file({"data": 3}), data__path=Path("images"))


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
def test_a_study_goes_on_when_a_place_or_a_length_changes(study_file, harmless):
    path = study_file()
    assert StudyConfig.from_file(path, **harmless).differences(StudyConfig.from_file(path)) == []


def test_differences_name_key_old_and_new_value(study_file):
    path = study_file()
    old, new = StudyConfig.from_file(path), StudyConfig.from_file(path, seed=4, space__regions={"low": 2, "high": 3})
    assert new.differences(old) == ["seed: 0 -> 4", "space.regions.high: 9 -> 3", "space.regions.low: 1 -> 2"]


def test_a_stored_study_reads_back_equal(study_file):
    changes = {"timeout": 60, "data.mean": [0.1, 0.2, 0.3], "model.checkpoint": "w.pt", "space.clusters.high": 4}
    config = StudyConfig.from_file(study_file({**changes, "space.clusters.low": 2}))
    again = StudyConfig.from_tree(config.stored(), "storage")
    assert again == config
    assert again.differences(config) == []


def test_placed_moves_images_and_checkpoint_and_nothing_else(study_file):
    config = StudyConfig.from_file(study_file())
    moved = config.placed(Path("/new/images"), Path("/new/weights.pt"))
    assert (moved.data.path, moved.model.checkpoint) == (Path("/new/images"), Path("/new/weights.pt"))
    assert moved.differences(config) == []
    assert config.placed(None, None) == config
    with pytest.raises(ConfigError, match="takes no path"):
        StudyConfig.from_file("digits").placed(Path("/new/images"), None)
