"""The choice of all ranks, by the rule that a setting asks for."""

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.ranks.by_budget import design_by_budget
from hscc_search.compression.ranks.by_energy import design_by_energy
from hscc_search.compression.ranks.design import LayerDesign
from hscc_search.compression.setting import Setting


def choose_ranks(calibration: Calibration, setting: Setting) -> dict[str, LayerDesign]:
    """Divide the layers and choose all ranks by the dense network's responses.

    Returns:
        The design of each layer by its name, in execution order.

    Raises:
        CompressionError: the budget is out of reach, or the setting has no energy for a layer.
    """
    records = calibration.records
    if setting.budget is not None:
        return design_by_budget(calibration, records, setting)
    return {record.name: design_by_energy(calibration, record, setting.of(record.name)) for record in records}
