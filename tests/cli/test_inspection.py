import json

from click.testing import CliRunner

from hscc_search.cli import commands


def test_a_network_is_shown_layer_by_layer(monkeypatch, tmp_path):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path))
    shown = CliRunner().invoke(commands, ["inspect", "digits"], catch_exceptions=False)
    assert shown.exit_code == 0
    rows = [line.split() for line in shown.stdout.splitlines() if "Conv2d" in line or "Linear" in line]
    assert [row[0] for row in rows] == ["0", "2", "5", "7", "11", "13"]
    assert rows[-1][-3:] == ["left", "dense:", "tiny"]
    assert "100.0% of the MACs are in layers that can be compressed" in shown.stdout
    assert "self-check: with these layers replaced at full rank" in shown.stdout


def test_the_same_as_json(monkeypatch, tmp_path):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path))
    shown = CliRunner().invoke(commands, ["inspect", "digits", "--format", "json"], catch_exceptions=False)
    tree = json.loads(shown.stdout)
    assert sum(layer["macs"] for layer in tree["layers"]) == tree["macs"]
    assert tree["notices"] == []
