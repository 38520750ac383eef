import optuna
import pytest
from optuna.trial import TrialState, create_trial

from hscc_search.config import StudyConfig
from hscc_search.storage import existing_storage
from hscc_search.study.catalogue import copy_study
from hscc_search.study.study import run_study

START = (
    {"regions": 1, "clusters": 1, "energy": 0.7},
    {"regions": 4, "clusters": 2, "energy": 0.95},
    {"regions": 1, "clusters": 1, "energy": 0.998},
)


@pytest.fixture(scope="session")
def bounded():
    """Configure a study over three objectives, in which the poorest networks violate a constraint."""

    def make(url, name="bounded", trials=6):
        return StudyConfig.from_file(
            "digits",
            name=name,
            storage=url,
            trials=trials,
            data__image_size=8,
            training__epochs=2,
            refine__trials="none",
            compression__calibration_images=64,
            objectives=["latency", "accuracy", "parameters"],
            constraints=[{"metric": "accuracy", "at_least": 0.75}, {"metric": "latency", "at_most": 1000.0}],
            latency={"runtime": "torch"},
            start=list(START),
        )

    return make


@pytest.fixture(scope="session")
def bounded_url(bounded, tmp_path_factory):
    """A storage with that study, finished and with one failed trial, that no test changes."""
    url = f"sqlite:///{tmp_path_factory.mktemp('stored')}/studies.db"
    run_study(bounded(url))
    study = optuna.load_study(study_name="bounded", storage=existing_storage(url))
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"failure": "RuntimeError: no memory"}))
    return url


@pytest.fixture
def own_url(bounded_url, tmp_path):
    """A copy of that study in a storage of the test's own."""
    url = f"sqlite:///{tmp_path}/own.db"
    copy_study(bounded_url, "bounded", "bounded", url)
    return url
