"""Work on a study: take a trial, measure it and store it, until the study has all its trials."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from optuna.trial import FrozenTrial

from hscc_search.errors import DiskFullError, StudyError, one_line
from hscc_search.pareto.hypervolume import stagnant
from hscc_search.pareto.objectives import excesses, objectives_of, quality_of, title, violations
from hscc_search.pareto.points import Point
from hscc_search.progress import Progress, Report, silent
from hscc_search.study.propose import Proposal, Tried, propose
from hscc_search.study.record import TrialRecord, refines
from hscc_search.study.refinement import refinement_of, to_refine
from hscc_search.study.space import precision_of
from hscc_search.study.trial import Prepared, TrialResult, run_trial
from hscc_search.study.workers.ledger import Ledger

# Failed trials in a row after which a worker gives up: they have a common cause that more trials would not remove.
_FAILURES_IN_A_ROW = 5
# Seconds between two looks at what other workers have finished.
LOOK_SECONDS = 0.3
_SEARCHING = "searching"
# Why a study ends before it has all its trials: by its timeout, or with a space that holds fewer samples than it wants.
_TIME_IS_OVER = "the time is over"
NOTHING_LEFT = "nothing is left to try, since every sample of the space was tried"


def work(
    ledger: Ledger, prepared: Prepared, report: Report = silent, keep_on: Callable[[], bool] = lambda: True
) -> str:
    """Work on a study until all its trials are finished, by this worker or by others, and then refine its front.

    Ctrl-C, and a full disk, hand the current trial back.

    Args:
        ledger: of the study.
        prepared: what the study's trials share.
        report: told of each trial.
        keep_on: asked before each trial; False ends the work.

    Returns:
        Why the work ended before all trials were finished, which is reported as well; empty where they are.

    Raises:
        StudyError: several trials of this worker in a row fail.
        DiskFullError: there is no room for a trial's temporary files.
    """
    config, began = prepared.config, time.monotonic()

    def time_is_over() -> bool:
        return config.timeout is not None and time.monotonic() - began > config.timeout

    try:
        reason = _search(ledger, prepared, report, lambda: keep_on() and not time_is_over())
        if time_is_over():
            reason = _TIME_IS_OVER
        elif keep_on():
            _refine_front(ledger, prepared, report, lambda: keep_on() and not time_is_over())
    # A disk that is full is no fault of a sample. Ctrl-C may come while a trial is taken, measured or stored.
    except (KeyboardInterrupt, DiskFullError):
        ledger.hand_back_own()
        raise
    report(Progress(_SEARCHING, ledger.finished, config.trials, reason))
    return reason


def _search(ledger: Ledger, prepared: Prepared, report: Report, keep_on: Callable[[], bool]) -> str:
    """Draw and measure trials until the study has all; return why there are fewer, empty where there are not."""
    config = prepared.config
    failed_in_a_row, settled = 0, False
    report(Progress(_SEARCHING, ledger.finished, config.trials))
    while keep_on():
        if config.patience is not None and stagnant(ledger.as_it_stands().searched.hypervolumes(), config.patience):
            return "the hypervolume no longer grows"
        trial = ledger.claim(config.trials, _chooser(ledger, prepared))
        if trial is None:
            if not all(claimed.state.is_finished() for claimed in ledger.trials()):
                time.sleep(LOOK_SECONDS)  # another worker may fail its trial or hand it back
            elif ledger.finished >= config.trials:
                return ""
            elif settled:
                return NOTHING_LEFT
            else:
                settled = True  # the last trial may have failed after the claim and left room for another
            continue
        settled = False
        result = _measure_and_store(ledger, prepared, trial, report)
        failed_in_a_row = failed_in_a_row + 1 if isinstance(result, str) else 0
        note = f"trial {trial.number}{_in_short(prepared, result)}"
        report(Progress(_SEARCHING, ledger.finished, config.trials, note))
        if failed_in_a_row == _FAILURES_IN_A_ROW:
            raise StudyError(f"{failed_in_a_row} trials in a row failed, the last one because {result}")
    return ""


def _refine_front(ledger: Ledger, prepared: Prepared, report: Report, keep_on: Callable[[], bool]) -> None:
    """Measure the trials of the front again, refined, each as a trial of its own: the second stage of a study."""
    wanted = to_refine(ledger.as_it_stands())
    while wanted and keep_on():
        trial = ledger.claim_refinement(wanted)
        if trial is None:
            if all(claimed.state.is_finished() for claimed in ledger.trials()):
                return
            time.sleep(LOOK_SECONDS)  # another worker may hand its trial back
            continue
        result = _measure_and_store(ledger, prepared, trial, report)
        note = f"trial {trial.number}, which is {refines(trial)} refined{_in_short(prepared, result)}"
        report(Progress("refining the front", ledger.refined_of(wanted), len(wanted), note))


def _in_short(prepared: Prepared, result: TrialResult | str) -> str:
    if isinstance(result, str):
        return f" failed: {result}"
    ratio = prepared.calibration.macs / result.compressed.macs
    metric = quality_of(prepared.config)
    in_vain = result.refined and not result.refined["best_epoch"]
    note = "; no pass brought it nearer to the dense network" if in_vain else ""
    return f": {ratio:.2f}x fewer FLOPs, {title(metric)} {result.measured[metric]:.4f}{note}"


def _timed_as(result: TrialResult, unrefined: Point) -> TrialResult:
    """Give a refined network the latency of the one that it was: other weights in the same operators take as long.

    Were it measured again, noise of the clock would decide whether refining pays.
    """
    alike = list(result.int8.get("in_float", ())) == list(unrefined.int8.get("in_float", ()))
    if "latency" not in unrefined.metrics or not alike:
        return result
    metrics = {**result.measured.metrics, "latency": unrefined["latency"]}
    return replace(result, measured=replace(result.measured, metrics=metrics))


def _chooser(ledger: Ledger, prepared: Prepared) -> Callable[[Sequence[Tried]], Proposal | None]:
    objectives = objectives_of(prepared.config)

    def choose(tried: Sequence[Tried]) -> Proposal | None:
        # Seeded by the number of trials, so that an interrupted study draws the samples of an unbroken one.
        return propose(ledger.space, objectives, tried, prepared.config.seed * 1_000_003 + len(tried))

    return choose


def _measure_and_store(ledger: Ledger, prepared: Prepared, trial: FrozenTrial, report: Report) -> TrialResult | str:
    """Run one trial and store its result; return the result, or the reason why the trial failed."""
    unrefined = refines(trial)
    refined = unrefined is not None or prepared.config.refine.trials == "all"
    refinement = refinement_of(prepared.config) if refined else None
    try:
        with ledger.heartbeat(trial):
            setting, precision = ledger.space.setting(trial.params), precision_of(trial.params)
            result = run_trial(prepared, setting, refinement, report, precision)
        if unrefined is not None:
            result = _timed_as(result, ledger.point(unrefined))
    except DiskFullError:
        raise
    except Exception as error:
        reason = one_line(error, with_type=True)
        ledger.fail(trial, reason)
        return reason
    config, measured = prepared.config, result.measured
    record = TrialRecord(
        measured,
        trial.params,
        violations(config, measured.metrics),
        result.compressed.plan,
        result.refined,
        refines(trial),
        result.int8,
        result.compressed.divided,
    )
    values = [measured[objective.metric] for objective in objectives_of(config)]
    ledger.finish(trial, values, list(excesses(config, measured.metrics).values()), record.stored())
    return result
