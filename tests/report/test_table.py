from dataclasses import replace

import pytest

from hscc_search.report.table import columns, front_line, rows


def test_the_dense_network_leads_the_front_and_close_trials_follow(study):
    table = rows(study)
    numbers = [row.cells[0] for row in table]
    close = sorted(study.close, key=lambda point: -study.confidence.probability[point.trial])
    assert numbers == ["dense", *(str(point.trial) for point in (*study.front, *close))]
    assert all(len(row.cells) == len(columns(study)) for row in table)
    kinds = {row.cells[0]: row.kind for row in table}
    assert kinds.pop("dense") == "dense"
    assert kinds.pop(str(study.confidence.knee)) == "knee"
    assert all(kinds[str(point.trial)] == "front" for point in study.front if str(point.trial) in kinds)
    assert all(kinds[str(point.trial)] == "close" for point in close if str(point.trial) in kinds)
    assert rows(study, most_close=0) == table[: 1 + len(study.front)]


def test_a_table_has_a_column_for_each_sampled_value_unless_there_are_too_many(study):
    assert columns(study)[1:4] == ("regions", "clusters", "energy")
    assert rows(study)[0].cells[1:4] == ("-", "-", "-")
    by_layer = {f"energy@{layer}": 0.9 for layer in range(8)}
    points = tuple(replace(point, sample=by_layer) for point in study.points)
    assert columns(replace(study, points=points))[1] == "GMACs"


def test_the_line_below_counts_infeasible_and_close_trials(constrained):
    infeasible = sum(not point.feasible for point in constrained.points)
    line = front_line(constrained)
    assert f"hypervolume {constrained.hypervolume:.4f} (reference FLOPs " in line
    assert f"{infeasible} of 6 trials violate a constraint" in line
    assert ("more trials cannot be told apart from the front" in line) == bool(constrained.close)


@pytest.mark.parametrize("missing", ["none finished", "none feasible"])
def test_a_study_without_a_front_says_so(constrained, missing):
    points = tuple(replace(point, violations={"accuracy >= 0.99": 1 + point["flops"]}) for point in constrained.points)
    study = replace(constrained, points=points if missing == "none feasible" else ())
    if missing == "none feasible":
        nearest = min(study.points, key=lambda point: point["flops"])
        reason = f"no trial is feasible: trial {nearest.trial} comes nearest, it violates accuracy >= 0.99 by "
    else:
        reason = "no trial is finished yet"
    assert front_line(study).startswith(reason)
    assert "hypervolume 0.0000" in front_line(study)
    assert [row.kind for row in rows(study)] == ["dense"]
    assert len(rows(study)[0].cells) == len(columns(study))
