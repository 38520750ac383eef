"""The fit of a layer that answers with maps: a convolution, or a fully connected layer on maps."""

import torch
from torch import nn

from hscc_search.compression.calibration.calibrate import BATCH_SIZE
from hscc_search.compression.factors import balanced, refit
from hscc_search.compression.fitting.region import RegionFit, begin_region
from hscc_search.compression.fitting.target import FitTarget
from hscc_search.compression.fitting.weights import set_weights
from hscc_search.compression.input_axes import input_axes, input_covariance, input_metric
from hscc_search.compression.layers import Patch, RegionConv2d, region_modules
from hscc_search.compression.ranks.design import LayerDesign

# Fewest images that the covariance of the input channels is estimated from, where there are as many.
_COVARIANCE_IMAGES = 160


class MapsFit:
    """The fit of one group of a layer, or of all of it where it is not grouped.

    The maps of a batch are held as a list with one tensor (images, K, height, width) for each piece of the output map.

    Args:
        target: the dense layer and its responses.
        design: of the layer.
        group: index of the group.
        module: the compressed group, whose weights :meth:`run` sets.
    """

    def __init__(self, target: FitTarget, design: LayerDesign, group: int, module: nn.Module) -> None:
        self.target = target
        self.pieces = design.form.pieces
        self.convolution = module if isinstance(module, RegionConv2d) else None
        regions = zip(design.partition.blocks[group], design.form.ranks[group], region_modules(module), strict=True)
        self.regions = [begin_region(target.layer, block, ranks, region) for block, ranks, region in regions]

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Fit and set all weights.

        Args:
            x: the group's input, float (images, Cin, height, width) or (images, height, width, features).

        Returns:
            Its output, float (images, Cout, height, width) or (images, height, width, Cout).
        """
        self._set_filters(x)
        coordinates = [self._coordinates(batch) for batch in x.split(BATCH_SIZE)]
        for region in range(len(self.regions)):
            self._fit_region(region, coordinates)
        output = self._output(coordinates)
        for fit in self.regions:
            fit.finish()
        return output

    def _set_filters(self, x: torch.Tensor) -> None:
        """Set the encoder, if there is one, and the basis filters of all regions."""
        encoder = self.convolution.encoder if self.convolution else None
        if encoder is None:
            for fit in self.regions:
                set_weights(fit.filters, fit.basis)
            return
        inputs = self.target.record.inputs
        assert inputs is not None
        _set_encoder(encoder, self.regions, inputs.correlation, x[:: max(1, len(x) // _COVARIANCE_IMAGES)])

    def _coordinates(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Run the basis filters on a batch: one tensor of answers for each piece."""
        patches = self.convolution.cut(batch) if self.convolution else [Patch(batch)]
        return [
            patch.filtered(self.regions[piece.region].filters)
            for piece, patch in zip(self.pieces, patches, strict=True)
        ]

    def _fit_region(self, region: int, coordinates: list[list[torch.Tensor]]) -> None:
        """Fit one region's recombination to what its basis filters answer to all batches."""
        fit = self.regions[region]
        lattice = self.target.record.lattice
        numbers = [number for number, piece in enumerate(self.pieces) if piece.region == region]
        positions = torch.cat([lattice.within(self.pieces[number]) for number in numbers])
        if len(positions):
            dense = self.target.responses(fit.block, positions, fit.effects)
            samples = torch.cat([self._samples(number, coordinates) for number in numbers]).flatten(0, 1)
        else:
            # The region lies between the lattice's positions: fit it as if nothing had been compressed before.
            dense = self.target.responses(fit.block, fit.block.positions, fit.effects)
            samples = (dense - self.target.bias(fit.block) * fit.effects) @ fit.axes
        if fit.is_factored:
            recombination, bias = self.target.recombination(dense, samples, fit.axes, fit.effects)
        else:
            recombination, bias = refit(dense, samples, fit.axes)
        set_weights(fit.recombination, recombination / fit.effects[:, None], bias / fit.effects)

    def _samples(self, number: int, coordinates: list[list[torch.Tensor]]) -> torch.Tensor:
        """The coordinates at the lattice's positions in one piece, float (positions, images, K)."""
        lattice, piece = self.target.record.lattice, self.pieces[number]
        maps = [batch[number] for batch in coordinates]
        if isinstance(self.target.layer, nn.Linear):
            # On maps, a fully connected layer has the channels last.
            maps = [maps_of_batch.movedim(-1, 1) for maps_of_batch in maps]
        return torch.cat([lattice.values_within(piece, maps_of_batch) for maps_of_batch in maps], dim=1)

    def _output(self, coordinates: list[list[torch.Tensor]]) -> torch.Tensor:
        """Recombine the coordinates of all batches; those of a batch are dropped once used, to save memory."""
        joined = []
        for batch in coordinates:
            outputs = [
                self.regions[piece.region].recombination(maps) for piece, maps in zip(self.pieces, batch, strict=True)
            ]
            batch.clear()
            joined.append(self.convolution.join(outputs) if self.convolution else outputs[0])
        return torch.cat(joined)


def _set_encoder(encoder: nn.Conv2d, regions: list[RegionFit], correlation: float, x: torch.Tensor) -> None:
    """Set the convolution that brings the input to fewer channels, and the basis filters of all regions behind it.

    Args:
        encoder: the convolution.
        regions: of the group.
        correlation: of neighbouring input positions, 0 to 1.
        x: the layer's input for some images, float (images, Cin, height, width).
    """
    covariance = input_covariance(x)
    metric = torch.zeros_like(covariance)
    bases = []
    for fit in regions:
        assert isinstance(fit.filters, nn.Conv2d)
        basis = fit.basis.view(len(fit.basis), x.shape[1], *fit.filters.kernel_size).double()
        bases.append(basis)
        weight = torch.einsum("ok,kchw->ochw", fit.axes.double(), basis)
        # Relative effects leave out this scale, which weighs the regions against each other.
        scale = fit.block.effects.mean() * fit.block.area**0.5
        metric += input_metric(weight, scale.expand(len(weight)), correlation)
    encode, decode = input_axes(metric, covariance, encoder.out_channels)
    encoded = [torch.einsum("kchw,cr->rkhw", basis, decode) for basis in bases]
    encode, joined = balanced(encode, torch.cat([filters.flatten(1) for filters in encoded], dim=1).T)
    set_weights(encoder, encode)
    shares = joined.T.split([filters[0].numel() for filters in encoded], dim=1)
    for fit, filters, share in zip(regions, encoded, shares, strict=True):
        set_weights(fit.filters, share.reshape(filters.shape).transpose(0, 1))
