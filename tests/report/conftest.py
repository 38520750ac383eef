from dataclasses import replace

import browser
import optuna
import pytest
from optuna.trial import TrialState, create_trial
from playwright.sync_api import sync_playwright

from hscc_search.config import StudyConfig
from hscc_search.storage import open_storage
from hscc_search.study.record import FAILURE, TrialRecord
from hscc_search.study.stored_study import write_record
from hscc_search.study.study import run_study

# A small training and calibration, after which trials take a moment.
SMALL = {
    "data__image_size": 8,
    "training__epochs": 2,
    "compression__calibration_images": 64,
    "refine__trials": "none",
}


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """A study of two objectives that no test changes."""
    folder = tmp_path_factory.mktemp("study")
    return run_study(StudyConfig.from_file("digits", trials=8, storage=f"sqlite:///{folder}/studies.db", **SMALL))


@pytest.fixture(scope="session")
def constrained(tmp_path_factory):
    """A study with feasible trials and others that violate its constraint."""
    folder = tmp_path_factory.mktemp("constrained")
    config = StudyConfig.from_file(
        "digits",
        trials=6,
        storage=f"sqlite:///{folder}/studies.db",
        constraints=[{"metric": "accuracy", "at_least": 0.75}],
        start=[{"regions": 1, "clusters": 1, "energy": energy} for energy in (0.7, 0.95, 0.998)],
        **SMALL,
    )
    return run_study(config)


@pytest.fixture(scope="session")
def chromium():
    """The tab of a real browser."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser.find(), args=["--no-sandbox", "--disable-gpu"])
        yield started.new_page()
        started.close()


@pytest.fixture
def stored(tmp_path):
    """Store studies that a test has made up in one database: ``stored(study, name="made")``; returns its URL."""

    def store(study, name="made", open_trials=()):
        url = f"sqlite:///{tmp_path}/made.db"
        storage = open_storage(url)
        config = study.config.model_copy(update={"name": name, "storage": url})
        directions = ["maximize" if objective.maximise else "minimize" for objective in study.objectives]
        made = optuna.create_study(study_name=name, storage=storage, directions=directions)
        write_record(made, replace(study.record, config=config))
        for point in study.points:
            record = TrialRecord(point, point.sample, point.violations, study.plan_of(point.trial))
            values = [float(point[objective.metric]) for objective in study.objectives]
            excesses = {"constraints": list(point.violations.values())}
            made.add_trial(create_trial(values=values, user_attrs=record.stored(), system_attrs=excesses))
        for reason in study.failures.values():
            made.add_trial(create_trial(state=TrialState.FAIL, user_attrs={FAILURE: reason}))
        for state in open_trials:
            made.add_trial(create_trial(state=state))
        return url

    return store
