import shlex
from pathlib import Path

import click
import pytest

from hscc_search.cli.options import Decimal, Whole, absolute, command_line, decimals, integers, names, naming_storage
from hscc_search.config import DEFAULT_STORAGE


def test_numbers_stand_between_commas():
    assert integers("--seeds", "0,1,12") == [0, 1, 12]
    assert decimals("--budgets", "3,4.5") == [3.0, 4.5]


def test_a_number_that_is_there_twice_counts_once():
    assert integers("--seeds", "2,0,2,0") == [2, 0]
    assert decimals("--budgets", "3,6,3.0") == [3.0, 6.0]


def test_names_come_with_commas_between_or_by_repeating():
    assert names(["pt2,uint8"]) == names(["pt2", "uint8"]) == names(["pt2, uint8", "pt2"]) == ("pt2", "uint8")
    assert names([]) == ()


@pytest.mark.parametrize("text", ["", "1;2", "1,two", "1,", "\u0663", "1,\uff12", "1_0"])
@pytest.mark.parametrize("read", [integers, decimals])
def test_what_is_no_number_is_refused_with_the_option(read, text):
    with pytest.raises(click.BadParameter) as refused:
        read("--some", text)
    assert refused.value.param_hint == "--some"
    assert repr(text) in refused.value.message


def test_whole_numbers_have_no_fraction():
    with pytest.raises(click.BadParameter, match="whole numbers"):
        integers("--seeds", "0.5")


@pytest.mark.parametrize("text", ["nan", "3,inf", "1e400"])
def test_numbers_are_finite(text):
    with pytest.raises(click.BadParameter, match="finite"):
        decimals("--some", text)


@pytest.mark.parametrize("text", ["-1", "0,4294967296", "1" + "0" * 4000])
def test_seeds_are_those_of_a_study_file(text):
    with pytest.raises(click.BadParameter, match="below"):
        integers("--some", text)
    assert integers("--some", "4294967295") == [2**32 - 1]


@pytest.mark.parametrize("text", ["\u0663", "\uff110", "1_0", "3²"])
@pytest.mark.parametrize("kind", [Whole(min=1), Decimal(min=0)])
def test_the_digits_of_a_number_are_0_to_9(kind, text):
    with pytest.raises(click.BadParameter, match="is no number: a number has the digits 0 to 9"):
        kind.convert(text, None, None)
    assert kind.convert("12", None, None) == kind.convert(12, None, None) == 12


def test_a_next_command_names_a_storage_that_is_not_the_default_and_no_password():
    assert naming_storage(DEFAULT_STORAGE) == ()
    assert naming_storage("sqlite:///my.db") == ("--storage", "sqlite:///my.db")
    assert "secret" not in "".join(naming_storage("postgresql://user:secret@host/studies"))


def test_a_command_can_be_pasted_whatever_is_in_its_words():
    words = ["front", "digits", *naming_storage('sqlite:///my $(touch studies)\'s "file".db'), "--html", Path("a b; c")]
    assert shlex.split(command_line(*words)) == [str(word) for word in words]


def test_a_path_of_an_option_is_relative_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute(Path("images")) == tmp_path / "images"
    assert absolute(None) is None
