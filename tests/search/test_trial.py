import torch
from torch import nn

from hscc_search.compression.setting import Setting
from hscc_search.config import StudyConfig
from hscc_search.data import load_dataset, split
from hscc_search.evaluation.counters import measure_cost
from hscc_search.search.trial import make_bench

CPU = torch.device("cpu")


class WithProducts(nn.Module):
    """Some of its multiply-adds lie in no layer: positions look at each other."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(16, 10)

    def forward(self, x):
        x = self.twice(self.twice(self.first(x).relu()).relu()).relu()
        positions = x[:, :, ::4, ::4].flatten(2)
        likeness = (positions.transpose(1, 2) @ positions).softmax(dim=2)
        return self.last((positions @ likeness).mean(dim=2))


def test_the_cost_of_a_trial_is_what_fvcore_counts_also_outside_of_layers():
    config = StudyConfig.from_file("digits", compression__calibration_images=32)
    dataset = load_dataset(config.data)
    parts = split(dataset, 0.15, 0.15, 0)
    torch.manual_seed(0)
    network = WithProducts().eval()
    bench = make_bench(config, network, dataset.classes, parts.train, parts.validation, CPU)
    assert bench.dense_cost == measure_cost(network, 16)
    assert bench.dense_cost.macs == bench.dense_cost.macs_torch > bench.calibration.macs
    for setting in (Setting(regions=4, energy=0.7), Setting(budget=1.05)):
        measured = bench.measure(setting)
        counted = measure_cost(measured.compressed.network, 16)
        assert measured.cost.stored() == {key: getattr(counted, key) for key in measured.cost.stored()}
        assert measured.cost.macs < bench.dense_cost.macs
