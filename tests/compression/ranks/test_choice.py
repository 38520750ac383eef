import pytest
from designs import assert_ranks_fit, every_block, inputs_of

from hscc_search.compression.ranks.choice import choose_ranks
from hscc_search.compression.setting import Setting
from hscc_search.errors import CompressionError


@pytest.mark.parametrize("rule", [{"energy": 0.7}, {"channel_share": 0.2}, {"budget": 2.5}])
@pytest.mark.parametrize("multiple", [1, 2, 4, 8])
def test_total_ranks_are_multiples(calibration, rule, multiple):
    designs = choose_ranks(calibration, Setting(4, 2, rank_multiple=multiple, **rule))
    assert_ranks_fit(calibration, designs, multiple)
    assert any(designed.ranks is not None for designed in every_block(designs))


def test_the_macs_of_a_design_are_those_of_its_blocks(calibration):
    for name, design in choose_ranks(calibration, Setting(4, 2, energy=0.9)).items():
        inputs, expected = inputs_of(calibration, name), 0
        for designed in every_block({name: design}):
            outputs = len(designed.block.clusters)
            dense = designed.ranks is None
            expected += designed.block.area * (inputs * outputs if dense else sum(designed.ranks) * (inputs + outputs))
        assert design.macs == expected


def test_a_layer_that_is_dense_everywhere_is_not_divided(calibration):
    dense = 0
    for name, design in choose_ranks(calibration, Setting(4, 2, energy=1.0)).items():
        if all(ranks is None for regions in design.form.ranks for ranks in regions):
            dense += 1
            assert len(design.form.pieces) == 1, name
            assert len(design.partition.blocks[0]) == 1, name
            assert design.macs == calibration.record(name).macs
    assert dense


def test_layers_come_in_execution_order(residual):
    for rule in ({"budget": 2}, {"energy": 0.5}):
        designs = choose_ranks(residual, Setting(**rule))
        assert list(designs) == ["stem.0", "reduce", "grouped", "project", "mix"]


@pytest.mark.parametrize("rule", [{"budget": 2}, {"energy": 0.7}, {"channel_share": 0.3}])
def test_a_layer_has_values_of_its_own(residual, rule):
    by_layer = {"mix": {"regions": 4}, "reduce": {"clusters": 2}}
    designs = choose_ranks(residual, Setting(region_gain=0, by_layer=by_layer, **rule))
    assert [len(designs[name].partition.blocks[0]) for name in ("mix", "reduce", "project")] == [4, 1, 1]
    eigenvalues = {name: designs[name].partition.blocks[0][0].eigenvalues for name in ("mix", "reduce", "project")}
    assert [len(values) for values in eigenvalues.values()] == [1, 2, 1]


def test_energies_of_all_layers_need_none_in_common(residual):
    energies = {"stem.0": 0.8, "reduce": 0.7, "grouped": 0.6, "project": 0.9, "mix": 0.95}
    by_layer = {name: {"energy": energy} for name, energy in energies.items()}
    designs = choose_ranks(residual, Setting(by_layer=by_layer))
    for name, energy in energies.items():
        assert designs[name].form == choose_ranks(residual, Setting(energy=energy))[name].form
    del by_layer["mix"]
    with pytest.raises(CompressionError, match="no energy for layer mix"):
        choose_ranks(residual, Setting(by_layer=by_layer))


def test_a_layer_is_divided_once_for_all_rank_rules(residual):
    partitions = [
        choose_ranks(residual, Setting(4, 2, **rule))["mix"].partition
        for rule in (
            {"energy": 0.5},
            {"channel_share": 0.2},
            {"budget": 3, "region_gain": 0},
            {"budget": 1.5, "budget_of": "parameters", "region_gain": 0},
        )
    ]
    assert all(partition is partitions[0] for partition in partitions)
    assert choose_ranks(residual, Setting(4, 2, energy=0.5, seed=1))["mix"].partition is not partitions[0]
