"""The inspection of a network: which of its layers can be compressed. Needs no torch."""

import math
from dataclasses import asdict, dataclass
from typing import Any

# Share of the multiply-adds below which next to nothing is gained by compressing.
_SMALL_SHARE = 0.2


@dataclass(frozen=True)
class InspectedLayer:
    """A module of the dense network that multiplies and adds.

    Attributes:
        name: its path in the network.
        kind: in a few words, such as ``Conv2d 3x3``.
        macs: multiply-adds per image.
        parameters: number of its weights and biases.
        output: shape of its output for one image, channels first for a convolution; empty if it is never called, and
            where it is neither a Conv2d nor a Linear.
        left_dense: why it cannot be compressed, None where it can.
        samples: responses to the calibration images from which its factors are computed, at most; 0 where it is left
            dense.
        channels: number of its outputs; 0 where it is neither a Conv2d nor a Linear.
    """

    name: str
    kind: str
    macs: int
    parameters: int
    output: tuple[int, ...]
    left_dense: str | None
    samples: int
    channels: int


@dataclass(frozen=True)
class Inspection:
    """A network, layer by layer, before anything is compressed.

    Attributes:
        layers: each Conv2d and Linear in execution order, those that are never called, and then all other modules that
            multiply and add.
        macs: multiply-adds per image of the whole network, counted while it ran.
        parameters: number of weights and biases of the whole network.
        error: difference of the network's answers when every layer that can be compressed is replaced at full rank,
            relative to how much answers vary; rounding gives 1e-6 or so.
        images: number of calibration images.
        vary: whether answers to different images differ. Where they do not, as before training, the error says nothing.
    """

    layers: tuple[InspectedLayer, ...]
    macs: int
    parameters: int
    error: float
    images: int
    vary: bool = True

    @property
    def share(self) -> float:
        """Share of the multiply-adds that are in layers that can be compressed."""
        return sum(layer.macs for layer in self.layers if layer.left_dense is None) / max(self.macs, 1)

    @property
    def macs_outside(self) -> int:
        """Multiply-adds outside of all modules that are listed: in the forward pass of the network itself."""
        return self.macs - sum(layer.macs for layer in self.layers)

    def notices(self) -> tuple[str, ...]:
        """What a user should know before a search, one line each."""
        lines = []
        if not self.vary:
            lines.append("the network answers all images alike, so that the self-check could find no fault")
        if self.share < _SMALL_SHARE:
            least = f"more than {1 / (1 - self.share):.3g}x fewer FLOPs are out of reach" if self.share < 1 else ""
            lines.append(f"only {self.share:.1%} of the multiply-adds are in layers that can be compressed: {least}")
        short = [layer for layer in self.layers if layer.left_dense is None and layer.samples < layer.channels]
        if short:
            worst = max(short, key=lambda layer: layer.channels / layer.samples)
            enough = math.ceil(self.images * worst.channels / worst.samples)
            names = ", ".join(layer.name for layer in short[:3]) + (f" and {len(short) - 3} more" * (len(short) > 3))
            lines.append(
                f"{self.images} calibration images give fewer responses than layer {names} has channels, so that even "
                f"full rank changes answers to other images: {enough} images would do"
            )
        return tuple(lines)

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> "Inspection":
        """Undo :meth:`stored`."""
        layers = tuple(InspectedLayer(**{**layer, "output": tuple(layer["output"])}) for layer in tree["layers"])
        return cls(**{**tree, "layers": layers})

    def __str__(self) -> str:
        """A line for each layer, and one for the whole network."""
        lines = [
            f"{layer.name:40} {layer.kind:16} {layer.macs / 1e6:10.3f} MMACs  {layer.left_dense or 'compressible'}"
            for layer in self.layers
        ]
        lines.append(
            f"{self.macs / 1e6:.3f} MMACs in all, {self.share:.1%} of them in layers that can be compressed; "
            f"at full rank the answers differ by {self.error:.1g}"
        )
        return "\n".join([*lines, *self.notices()])
