import math
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.errors import ConfigError
from hscc_search.pareto.rules import Bound, Bounds, ByTrial, Knee, WholeFront, amount, parse_rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("knee", Knee()),
        ("all", WholeFront()),
        ("trial:0", ByTrial(0)),
        ("trial:12", ByTrial(12)),
        ("min-accuracy:0", Bound("accuracy", ">=", 0.0)),
        ("min-accuracy:0.9", Bound("accuracy", ">=", 0.9)),
        ("min-accuracy:1", Bound("accuracy", ">=", 1.0)),
        ("max-flops:2.5e9", Bound("flops", "<=", 2.5e9)),
        ("max-flops:1.2G", Bound("flops", "<=", 1.2e9)),
        ("max-parameters:350k", Bound("parameters", "<=", 350_000.0)),
        ("min-auroc:0.9", Bound("auroc", ">=", 0.9)),
        ("max-log_loss:0.9", Bound("log_loss", "<=", 0.9)),
        ("min-recall:grade:2:0.9", Bound("recall:grade:2", ">=", 0.9)),
        ("min-recall:<5mm:0.9", Bound("recall:<5mm", ">=", 0.9)),
        ("min-sensitivity@0.95:cat:0.9", Bound("sensitivity@0.95:cat", ">=", 0.9)),
        ("max-dice:-3", Bound("dice", "<=", -3.0)),
        ("max-flops:inf", Bound("flops", "<=", math.inf)),
        ("budget:6", Bound("budget", ">=", 6.0)),
        ("accuracy>=0.88", Bounds((Bound("accuracy", ">=", 0.88),))),
        ("accuracy<0.9", Bounds((Bound("accuracy", "<", 0.9),))),
        (
            "accuracy >= 0.88 and  latency<=5 and flops <1.2G",
            Bounds((Bound("accuracy", ">=", 0.88), Bound("latency", "<=", 5.0), Bound("flops", "<", 1.2e9))),
        ),
        ("flops>1M and flops<=3M", Bounds((Bound("flops", ">", 1e6), Bound("flops", "<=", 3e6)))),
        ("recall:glioma_tumor>=0.8", Bounds((Bound("recall:glioma_tumor", ">=", 0.8),))),
        ("sensitivity@0.95:meningioma_tumor>0.8", Bounds((Bound("sensitivity@0.95:meningioma_tumor", ">", 0.8),))),
        (
            "recall:salt and pepper>=0.8 and recall:<5mm>=0.7",
            Bounds((Bound("recall:salt and pepper", ">=", 0.8), Bound("recall:<5mm", ">=", 0.7))),
        ),
        ("regions@stage1<=4", Bounds((Bound("regions@stage1", "<=", 4.0),))),
        ("energy@features.0<0.9", Bounds((Bound("energy@features.0", "<", 0.9),))),
        ("dice>=-3 and budget>=6", Bounds((Bound("dice", ">=", -3.0), Bound("budget", ">=", 6.0)))),
    ],
)
def test_each_rule_is_read(text, rule):
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ""),
        ("best", ""),
        ("Knee", ""),
        ("All", ""),
        ("knee:1", ""),
        ("trial", ""),
        ("trial:", ""),
        ("trial:one", ""),
        ("trial:1234567890123456789", ""),
        ("trial:-1", ""),
        ("trial:\u0663", ""),
        ("trial:3²", ""),
        ("trial:1_0", ""),
        ("max-flops:\uff11.2G", "flops is compared with what is no number"),
        ("max-flops:1_000", "flops is compared with what is no number"),
        ("budget:\u0666", "budget is compared with what is no number"),
        ("flops<=1_0.5M", "flops is compared with what is no number"),
        ("trial:1.5", ""),
        ("min-accuracy", ""),
        ("min-accuracy:", ""),
        ("min-accuracy:high", ""),
        ("min-accuracy:1.2", "accuracy is a share, from 0 to 1"),
        ("min-accuracy:-0.1", "accuracy is a share"),
        ("min-accuracy:nan", ""),
        ("max-accuracy:0.5", "of accuracy more is better: use min-accuracy:0.5"),
        ("min-flops:5", "of flops less is better: use max-flops:5"),
        ("min-log_loss:0.5", "of log_loss less is better: use max-log_loss:0.5"),
        ("max-log_loss:0", "log_loss is above 0"),
        ("max-budget:6", "of budget more is better: use min-budget:6"),
        ("min-recall:cat:2", "recall:cat is a share"),
        ("min-two words:0.5", "'two words' is no name"),
        ("most-accuracy:0.5", ""),
        ("max-flops:", ""),
        ("max-flops:0", "flops is above 0"),
        ("max-flops:-5", "flops is above 0"),
        ("max-flops:many", ""),
        ("max-flops:nan", ""),
        ("max-flops:1.2GG", ""),
        ("budget", ""),
        ("budget:", "budget is compared with what is no number"),
        ("budget:6x", "budget is compared with what is no number"),
        ("budget:0", "budget is above 0"),
        ("budget:inf", "budget is finite"),
        ("accuracy", ""),
        ("accuracy>=", ""),
        (">=0.9", "'' is no name"),
        ("accuracy=0.9", ""),
        ("accuracy==0.9", ""),
        ("accuracy=>0.9", "'accuracy=' is no name"),
        ("accuracy>=88", "accuracy is a share, from 0 to 1"),
        ("accuracy>=88%", "accuracy is compared with what is no number; k, M and G stand for"),
        ("accuracy>=nan", "accuracy is compared with what is no number"),
        ("flops<=1.2g", "flops is compared with what is no number"),
        ("flops<=1.2 G", ""),
        ("flops<=-1", "flops is above 0"),
        ("flops>inf", "flops is finite"),
        ("accuracy>=0.9 and", ""),
        ("accuracy>=0.9 and ", ""),
        ("and accuracy>=0.9", "'and accuracy' is no name of a metric; bounds are joined by 'and'"),
        ("accuracy>=0.9 or flops<=1G", "bounds are joined by 'and'"),
        ("accuracy>=0.9, flops<=1G", "bounds are joined by 'and'"),
        ("accuracy>=0.9 && flops<=1G", "bounds are joined by 'and'"),
        ("accuracy>=0.9 and latency<=fast", "latency is compared with what is no number"),
        ("0.8<=accuracy", ""),
        ("knee and flops<=1G", "'knee and flops' is no name"),
        ("recall:>=0.5", "'recall:' is no name"),
    ],
)
def test_a_malformed_rule_is_quoted_with_what_is_wrong_and_the_rules_that_exist(text, reason):
    with pytest.raises(ConfigError, match="use knee, trial:N, all, min-accuracy:X") as refused:
        parse_rule(text)
    assert repr(text) in str(refused.value)
    assert reason in str(refused.value)


@pytest.mark.parametrize("text", ["trial:{}", "min-accuracy:{}", "most:{}", "flops<={}", "{}<=1", "a<1 {}"])
def test_a_rule_of_any_length_is_refused_in_short(text):
    for content in ("9" * 5000, "<" * 5000, "a<1 and " * 5000, " " * 5000 + "<"):
        with pytest.raises(ConfigError, match="cannot select") as refused:
            parse_rule(text.format(content))
        assert len(str(refused.value)) < 700


NAMES = ("flops", "parameters", "latency", "accuracy", "recall:salt and pepper", "dice", "regions@stage1", "budget")
bounds = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.sampled_from(["<=", ">=", "<", ">"]),
        st.integers(1, 999_999).map(lambda n: n / 1_000_000),
        st.sampled_from(["", "e3", "e6", "e9"]),
        st.sampled_from(["", " ", "  "]),
    ),
    min_size=1,
    max_size=5,
)


@given(bounds)
@settings(max_examples=100, deadline=None)
def test_an_expression_reads_as_it_was_written_and_as_it_is_shown(rows):
    suffixes = {"": "", "e3": "k", "e6": "M", "e9": "G"}
    texts, read = [], []
    for name, sign, value, power, space in rows:
        power = "" if name.startswith(("accuracy", "recall")) else power
        texts.append(f"{name}{space}{sign}{space}{value:.6f}{suffixes[power]}")
        read.append(Bound(name, sign, float(f"{value:.6f}{power}")))
    rule = parse_rule(" and ".join(texts))
    assert rule == Bounds(tuple(read))
    assert parse_rule(str(rule)) == rule


@given(st.sampled_from(["<=", ">=", "<", ">"]), st.integers(-3, 3), st.integers(-3, 3))
def test_a_bound_is_kept_or_missed_by_the_difference(sign, value, limit):
    bound = Bound("dice", sign, float(limit))
    compare = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}[sign]
    assert bound.keeps(value) == compare(value, limit)
    if bound.keeps(value):
        assert bound.missed_by(value) == 0
    else:
        assert bound.missed_by(value) == abs(value - limit)


def test_nan_keeps_no_bound():
    for sign in ("<=", ">=", "<", ">"):
        assert not Bound("dice", sign, 0.5).keeps(math.nan)
        assert Bound("dice", sign, 0.5).missed_by(math.nan) == math.inf


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("flops", 999_999.9, "1M FLOPs"),
        ("flops", 12_345, "12.3k FLOPs"),
        ("macs", 7, "7 MACs"),
        ("parameters", 2.5e9, "2.5G parameters"),
        ("latency", 0.12345, "0.123 ms"),
        ("megabytes", 3, "3 MB"),
        ("accuracy", 0.00012, "0.00012"),
        ("budget", 0.456, "0.456x"),
    ],
)
def test_a_difference_is_told_in_the_unit_of_its_metric(metric, value, text):
    assert amount(metric, value) == text
