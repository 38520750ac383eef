"""The cost of a network: multiply-adds, FLOPs, parameters and bytes. Needs no torch."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Cost of one image. One multiply-add is one MAC and two FLOPs.

    Attributes:
        macs: multiply-adds of convolutions, fully connected layers and matrix products.
        flops: twice the MACs.
        parameters: number of weights and biases.
        megabytes: in 10^6 bytes, parameters and buffers; in a study with trials in 8-bit integers, the ONNX file.
    """

    macs: int
    flops: int
    parameters: int
    megabytes: float

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values by name."""
        return asdict(self)


@dataclass(frozen=True)
class CountedCost(Cost):
    """Cost of one image, its MACs counted by torch while the network runs, and compared with fvcore's count.

    Attributes:
        macs_torch: the same MACs; version 0.1.0 took fvcore's count for the cost.
        uncounted: operators that fvcore does not know, by name, and how often each occurs in one run.
        notes: what fvcore misses. Version 0.1.0 stored none.
    """

    macs_torch: int
    uncounted: dict[str, int]
    notes: tuple[str, ...] = ()

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values by name."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> "CountedCost":
        """Undo :meth:`stored`."""
        return cls(**{**tree, "notes": tuple(tree.get("notes", ()))})
