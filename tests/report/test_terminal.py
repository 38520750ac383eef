import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.table import Table

from hscc_search.progress import Notice, Progress
from hscc_search.report import terminal
from hscc_search.report.terminal import counting_lines, front_table, out_console, progress_bars


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_notice_is_shown_at_once_and_as_it_is(monkeypatch, capsys, on_terminal):
    line = f"training: none: [brackets] stay {'and long lines, too' * 9}"
    shown = io.StringIO()
    if on_terminal:
        monkeypatch.setattr(
            terminal, "err_console", Console(file=shown, force_terminal=True, width=80, color_system=None)
        )
    with progress_bars() as report:
        report(Progress("reading", 1, 2))
        report(Notice(line))
    lines = (shown.getvalue() if on_terminal else capsys.readouterr().err).splitlines()
    assert sum(shown_line.removeprefix("\x1b[2K") == line for shown_line in lines) == 1


def test_a_table_of_many_columns_fits_and_breaks_no_number(constrained):
    more = {"region_strategy": "coactivation", "budget": 3.25}
    points = tuple(replace(point, sample={**point.sample, **more}) for point in constrained.points)
    console = Console(width=140, file=io.StringIO(), emoji=False)
    console.print(front_table(replace(constrained, points=points)))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 140
    for network in (constrained.dense, *constrained.front):
        assert any(f"{network['accuracy']:.4f} ± {network.errors['accuracy']:.4f}" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_narrow_table_leaves_columns_out_and_names_them(study, width):
    console = Console(width=width, file=io.StringIO(), emoji=False)
    console.print(front_table(study, width))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for network in (study.dense, *study.front):
        assert f"{study.dense['flops'] / network['flops']:.2f}x" in text
        assert f"{network['accuracy']:.4f} ± {network.errors['accuracy']:.4f}" in text
    named = " ".join(text.partition("left out for want of width: ")[2].split()).partition(" (")[0]
    assert named.split(", ")[: 2 if width < 100 else 0] == (["GMACs", "macro F1"] if width < 100 else [])


@pytest.mark.parametrize(
    ("counted", "words"),
    [
        ({"macs_torch": 1, "uncounted": {}}, ["warning: fvcore counts", "torch 1: one of them misses an operator"]),
        ({"uncounted": {"gelu": 3}}, ["operators that are not counted: gelu (3)"]),
        ({"uncounted": {}}, []),
    ],
    ids=["counters disagree", "not counted", "all counted"],
)
def test_notes_on_the_counting_of_flops(study, counted, words):
    record = study.record
    record = replace(record, dense=replace(record.dense, cost=replace(record.dense.cost, **counted)))
    text = "".join(counting_lines(replace(study, record=record)))
    assert bool(text) == bool(words)
    assert all(part in text for part in words)


def test_names_are_no_markup_and_no_emoji(capsys):
    name = "scan [left] [/] [bold]x :eye: \\[y]"
    table = Table(name, title=name, caption=name)
    table.add_row(name)
    out_console.print(table)
    assert capsys.readouterr().out.count(name) == 4


def test_a_progress_bar_shows_names_as_they_are(monkeypatch):
    shown = Console(file=io.StringIO(), force_terminal=True, width=120, emoji=False, markup=False)
    monkeypatch.setattr(terminal, "err_console", shown)
    with progress_bars() as report:
        report(Progress("exporting to [left]\n\x1b[31m\udcff", 1, 2, "writing [/] model"))
    text = shown.file.getvalue()
    assert r"exporting to [left]\n\x1b[31m\xff" in text
    assert "writing [/] model" in text
