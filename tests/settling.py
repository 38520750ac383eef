"""Random networks as if they were trained."""

import torch
from geometry import smooth_images
from torch import nn

from hscc_search.dense.networks import kaiming_initialise

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def settle(network, image_size):
    """Set batch norms as after training: statistics near those of images, affine parts that are no identity.

    With statistics that have nothing to do with the responses, these vanish or explode in a deep network.
    """
    generator = torch.Generator().manual_seed(0)

    def uniform(like, low, high):
        return torch.empty_like(like).uniform_(low, high, generator=generator)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        kaiming_initialise(network)
    for name, parameter in network.named_parameters():
        if name.endswith("layer_scale"):  # of ConvNeXt; begins at 1e-6, which switches the blocks off
            parameter.copy_(uniform(parameter, 0.5, 1.5))
    norms = [module for module in network.modules() if isinstance(module, NORMS)]
    for norm in norms:
        norm.weight.copy_(uniform(norm.weight, 0.5, 1.5))
        norm.bias.copy_(uniform(norm.bias, -0.5, 0.5))
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    network(
        torch.cat([smooth_images(8, 98, image_size), torch.randn(8, 3, image_size, image_size, generator=generator)])
    )
    for norm in norms:
        norm.eval()
        norm.running_mean += uniform(norm.running_mean, -0.5, 0.5) * norm.running_var.sqrt()
        norm.running_var *= uniform(norm.running_var, 0.5, 2)
    return network
