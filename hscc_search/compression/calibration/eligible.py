"""Which layers can be compressed, and why the others cannot."""

from collections import Counter

import torch
from torch import nn

# Groups of a convolution run one after the other once they are compressed.
MOST_GROUPS = 8


@torch.no_grad()
def _look(
    network: nn.Module, candidates: dict[str, nn.Conv2d | nn.Linear], image: torch.Tensor
) -> tuple[dict[str, int], dict[str, str]]:
    """Multiply-adds of each layer in execution order, and why some cannot be compressed, from one image."""
    macs: dict[str, int] = {}
    reasons: dict[str, str] = {}

    names = Counter(id(layer) for _, layer in network.named_modules(remove_duplicate=False))

    def look(name: str, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        if name in macs:
            reasons[name] = "called more than once in one pass"
        positions = output.numel() // layer.weight.shape[0]
        macs[name] = macs.get(name, 0) + positions * layer.weight.numel()
        if name == "":
            reasons.setdefault(name, "it is the whole network")
        if names[id(layer)] > 1:
            reasons.setdefault(name, "registered under more than one name")
        if len(output) != len(image):
            reasons.setdefault(name, "called on more than one position as if they were images")
        if isinstance(layer, nn.Linear) and output.dim() not in (2, 4):
            reasons.setdefault(name, f"called on {output.dim()} dimensions")
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            if layer.groups == layer.in_channels:
                reasons.setdefault(name, "depthwise")
            elif layer.groups > MOST_GROUPS:
                reasons.setdefault(name, f"{layer.groups} groups, too narrow each")
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            reasons.setdefault(name, f"padding mode {layer.padding_mode}")

    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: look(name, layer, inputs, output))
        for name, layer in candidates.items()
    ]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    for name in candidates.keys() - macs.keys():
        reasons[name] = "never called"
    return macs, reasons
