import browser
import pytest
from playwright.sync_api import sync_playwright

from hscc_search.config import StudyConfig
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
