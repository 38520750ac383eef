import json

import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hscc_search
from hscc_search.config import StudyConfig
from hscc_search.dense.opened import open_dense
from hscc_search.errors import DataError, ExportError, HsccError, ModelError, StudyError
from hscc_search.evaluation.predictions import predict
from hscc_search.session import read_study, run_study, search


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return run_study(
        StudyConfig.from_file(
            "digits",
            name="session",
            storage=f"sqlite:///{tmp_path_factory.mktemp('session')}/studies.db",
            trials=3,
            data__image_size=8,
            training__epochs=2,
            compression__calibration_images=64,
            refine__trials="none",
            start=[{"regions": 1, "clusters": 1, "energy": 0.8}, {"regions": 4, "clusters": 2, "energy": 0.95}],
        ),
        device="cpu",
    )


@pytest.fixture(scope="module")
def validation(study):
    opened = open_dense(study.config, "cpu")
    return lambda network: predict(network, opened.parts.validation, opened.config.data, opened.device)


def test_a_table_has_a_row_per_trial(study):
    table = study.dataframe()
    assert table.index.name == "trial"
    assert table.index.tolist() == [0, 1, 2]
    assert table.loc[1, ["regions", "clusters", "energy"]].tolist() == [4, 2, 0.95]
    for point in study.points:
        assert table.loc[point.trial, "accuracy"] == point["accuracy"]
        assert table.loc[point.trial, "accuracy error"] == point.errors["accuracy"]
        assert table.loc[point.trial, "on front"] == (point in study.front)
    assert table["probability"].between(0, 1).all()


def test_the_figure_is_that_of_the_page(study):
    figure = study.figure()
    assert figure.layout.title.text
    assert sum(len(trace.x) for trace in figure.data if trace.mode and "markers" in trace.mode) >= len(study.front)


@pytest.mark.parametrize("trial", [1, "trial:1"])
def test_a_trial_becomes_its_network_in_one_call(study, validation, trial):
    network = study.compressed(trial)
    answers = validation(network).argmax(axis=1)
    assert answers.astype("<u2").tobytes() == study.points[1].predictions
    assert any(parameter.requires_grad for parameter in network.parameters())


def test_a_point_of_the_front_is_as_good_as_its_number(study, validation):
    point = study.select("knee")
    assert study.choose("knee").point == point
    assert study.select("budget>=1 and accuracy>=0") == study.select("min-accuracy:0")
    assert (validation(study.compressed(point)) == validation(study.compressed())).all()


def test_a_network_that_was_trained_further_is_exported_and_measured_anew(study, validation, tmp_path):
    network = study.compressed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.01)
    folder = study.export(0, tmp_path / "tuned", network=network)
    loaded = hscc_search.load(folder)
    for own, exported in zip(network.parameters(), loaded.network.parameters(), strict=True):
        assert torch.equal(own, exported)
    metrics = json.loads((folder / "metrics.json").read_text())
    own_accuracy = (validation(network).argmax(axis=1) == study.record.labels).mean()
    assert metrics["compressed"]["validation"]["metrics"]["accuracy"] == own_accuracy
    assert metrics["trained_further"]
    assert "trained further in a way of the user's own" in (folder / "README.md").read_text()


def test_a_network_of_another_form_is_not_exported_as_the_trial(study, tmp_path):
    with pytest.raises(ExportError, match=r"not of the form of trial 0: .* differ"):
        study.export(0, tmp_path / "other", network=study.compressed(1))
    assert not list(tmp_path.iterdir())


def test_trials_that_do_not_exist_are_refused(study):
    with pytest.raises(StudyError, match="trial 7"):
        study.compressed(7)


def test_a_study_that_is_read_again_is_the_same(study):
    again = read_study(study.config.storage, "session")
    assert type(again) is type(study)
    assert again.points == study.points
    assert again.dataframe().equals(study.dataframe())


def brightest(scores, targets):
    """A metric of the test's own: the share of images whose second class is scored higher than the first rightly."""
    return float(((scores[:, 1] > scores[:, 0]) == (targets == 1)).mean())


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(128, 2)),
        )


def stripes(count, seed):
    """Images of lying and of standing stripes, float32, shape (1, 12, 20)."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(2, (count,), generator=generator)
    wave = torch.arange(12)[:, None] * (1 - targets)[:, None, None] + torch.arange(20)[None] * targets[:, None, None]
    images = (wave * (1 + torch.rand(count, 1, 1, generator=generator))).sin()
    return TensorDataset((images + torch.randn(images.shape, generator=generator))[:, None], targets)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    network, (images, targets) = Small(), stripes(256, 0).tensors
    optimizer = torch.optim.Adam(network.parameters(), 0.005)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), targets).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def searched(trained):
    return search(
        trained,
        train=DataLoader(stripes(256, 0), batch_size=32),
        validation=stripes(120, 1),
        test=stripes(120, 2),
        metrics={"brightest": brightest},
        trials=3,
        refine={"trials": "none"},
        classes=["lying", "standing"],
        progress=False,
    )


def test_objects_in_memory_are_searched(searched, trained):
    table = searched.dataframe()
    assert len(table) == 3
    assert [objective.metric for objective in searched.objectives] == ["flops", "brightest"]
    assert (table["brightest"] <= 1).all()
    assert searched.record.classes == ("lying", "standing")
    assert searched.dense["accuracy"] > 0.8
    assert searched.dense["brightest"] == searched.dense["accuracy"]
    assert searched.dense["parameters"] == sum(parameter.numel() for parameter in trained.parameters())


def test_a_network_in_memory_is_exported_and_loaded_with_it(searched, trained, tmp_path):
    folder = searched.export("knee", tmp_path / "small")
    images = stripes(8, 3).tensors[0]
    with torch.no_grad():
        by_torch = hscc_search.load(folder, trained)(images)
        assert torch.allclose(by_torch, searched.compressed("knee")(images), atol=1e-4)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    by_onnx = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    assert torch.allclose(torch.from_numpy(by_onnx), by_torch, atol=1e-4)
    with pytest.raises(ModelError, match=r"give it to hscc_search\.load"):
        hscc_search.load(folder)


def test_a_study_of_objects_keeps_them_where_it_is_located(searched):
    assert searched.located().given is searched.given is not None


def test_a_study_of_objects_goes_on_with_the_same_objects_alone(trained, tmp_path):
    def go_on(network, trials):
        kept = {
            "name": "kept",
            "storage": f"sqlite:///{tmp_path}/studies.db",
            "refine": {"trials": "none"},
            "progress": False,
        }
        return search(network, stripes(64, 0), stripes(60, 1), stripes(60, 2), trials=trials, **kept)

    assert len(go_on(trained, 1).points) == 1
    assert len(go_on(trained, 2).points) == 2
    with pytest.raises(StudyError, match="other weights of the dense network"):
        go_on(Small().eval(), 3)
    with pytest.raises(DataError, match="objects in the memory"):
        read_study(f"sqlite:///{tmp_path}/studies.db", "kept").compressed(0)


def of_patients(dataset, first):
    """Items with the patient of each, of whom each has four."""
    return [(image, target, first + position // 4) for position, (image, target) in enumerate(dataset)]


def test_groups_of_objects_are_drawn_together_and_never_stand_in_two_parts(trained):
    alike = {"trials": 1, "progress": False, "seed": 3}
    parts = [of_patients(stripes(60, seed), first) for seed, first in ((0, 0), (1, 15), (2, 30))]
    grouped = search(trained, *parts, **alike)
    assert len(set(grouped.record.groups.tolist())) == 15
    leaking = [parts[0], of_patients(stripes(60, 1), 0), parts[2]]
    with pytest.raises(DataError, match=r"15 of 30 groups, 120 images, stand in two"):
        search(trained, *leaking, **alike)
    allowed = search(trained, *leaking, **alike, data={"allow_leaks": True})
    assert any("stand in two" in notice for notice in allowed.record.notices)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"metrics": {"own": lambda scores, targets: 1.0}}, "own must be a function that is defined at the top"),
        ({"trials": 0}, "trials"),
        ({"validation": [(torch.zeros(1, 12, 20), 0), (torch.zeros(1, 12), 1)]}, r"validation\[1\]"),
        ({"objectives": ["flops", "beauty"]}, "there is no metric 'beauty'"),
    ],
)
def test_wrong_objects_are_refused_in_one_line(trained, change, error):
    objects = {"train": stripes(64, 0), "validation": stripes(60, 1), "test": stripes(60, 2), "progress": False}
    with pytest.raises(HsccError, match=error) as refused:
        search(trained, **{**objects, **change})
    assert "\n" not in str(refused.value)


class MapsInADict(nn.Module):
    """Says of each position whether it is bright, at once as trained: by a 3 x 3 mean."""

    def __init__(self):
        super().__init__()
        self.smooth, self.scores = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        with torch.no_grad():
            self.smooth.weight.copy_(self.smooth.weight * 0.05 + 1 / 9)
            self.scores.weight.copy_(torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 8, 1, 1))

    def forward(self, images):
        return {"maps": self.scores(self.smooth(images)), "images": images}


def the_maps(answer):
    return answer["maps"]


def overlap(scores, targets):
    found = scores.argmax(axis=1)
    return 2 * (found * targets).sum() / (found + targets).sum()


def bright_maps(count, seed):
    images = torch.randn(count, 1, 12, 20, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(images, (nn.functional.avg_pool2d(images, 3, 1, 1) > 0)[:, 0].long())


MAPS = {"train": bright_maps(64, 0), "validation": bright_maps(40, 1), "test": bright_maps(40, 2), "progress": False}


def test_a_network_in_memory_that_answers_with_maps_in_a_dict(tmp_path):
    torch.manual_seed(0)
    network, model = MapsInADict().eval(), {"output": f"{__name__}:the_maps"}
    study = search(network, **MAPS, metrics={"overlap": overlap}, trials=2, model=model, refine={"trials": "none"})
    assert "overlap" in study.dataframe()
    assert study.dense["overlap"] > 0.8
    assert not network._forward_hooks  # it is not changed
    folder, images = study.export("knee", tmp_path / "small"), MAPS["test"].tensors[0]
    with torch.no_grad():
        scores = hscc_search.load(folder, network, trust=True)(images)
    assert scores.shape == (40, 2, 12, 20)
    said = json.loads((folder / "metrics.json").read_text())["compressed"]["test"]["metrics"]
    assert said["overlap"] == pytest.approx(float(overlap(scores.numpy(), MAPS["test"].tensors[1].numpy())), abs=2e-3)


def test_maps_have_no_metric_by_default():
    with pytest.raises(HsccError, match="its targets are maps, and it names no objectives"):
        search(MapsInADict(), **MAPS, trials=1)
