import os
import subprocess
import sys

import pytest
from conftest import ROOT

# `networks.py` beside this folder imports timm, which imports torchvision.
ABOVE = "from torchvision import models\n\n\ndef make(classes):\n    return models.squeezenet1_1(num_classes=classes)\n"
INSIDE = """
def make(classes):
    from torch import nn
    from torchvision.ops import Conv2dNormActivation

    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(Conv2dNormActivation(3, 8), pool, nn.Flatten(), nn.Linear(8, classes))
"""
MODULES = {"own_inside": INSIDE, "own_above": ABOVE}


@pytest.mark.slow
def test_code_of_ones_own_imports_torchvision_beside_a_cpu_build(tmp_path):
    """In a process of their own: here torchvision has been imported by other means."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    program = (
        "from hscc_search.dense.networks import build_network\n"
        f"for name in {list(MODULES)}:\n"
        "    assert len(list(build_network(f'{name}:make', 5, 32).parameters()))\n"
        "    print(name)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == list(MODULES), done.stderr
