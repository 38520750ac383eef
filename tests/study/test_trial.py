import torch
from torch import nn

from hscc_search.compression.setting import Setting
from hscc_search.config import StudyConfig
from hscc_search.data import load_dataset, split
from hscc_search.dense.opened import Opened
from hscc_search.evaluation.counters import measure_cost
from hscc_search.study.trial import prepare, run_trial


class WithProducts(nn.Module):
    """A network with multiply-adds outside of all layers: attention between positions."""

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
    torch.manual_seed(0)
    network = WithProducts().eval()
    opened = Opened(config, dataset, split(dataset, 0.15, 0.15, 0), network, torch.device("cpu"))
    prepared = prepare(opened)
    assert prepared.dense_cost == measure_cost(network, 16)
    assert prepared.dense_cost.macs == prepared.dense_cost.macs_torch == prepared.calibration.macs
    assert prepared.calibration.inspection.macs_outside > 0
    for setting in (Setting(regions=4, energy=0.7), Setting(budget=1.05)):
        result = run_trial(prepared, setting)
        counted = measure_cost(result.compressed.network, 16)
        for metric in ("macs", "flops", "parameters", "megabytes"):
            assert result.measured[metric] == getattr(counted, metric)
        assert result.measured["macs"] < prepared.dense_cost.macs
