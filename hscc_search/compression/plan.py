"""The plan of a compressed network: the outcome for each of its layers. Needs no torch."""

from dataclasses import asdict, dataclass
from typing import Any

from hscc_search.compression.form import RegionRanks, total_rank


@dataclass(frozen=True)
class LayerPlan:
    """The outcome for one layer.

    Attributes:
        name: the layer's path in the network.
        macs_dense: multiply-adds per image of the dense layer.
        macs: multiply-adds per image of the compressed layer. A factored region of P_r positions and total rank K_r
            takes P_r * K_r * (D + Cout), with D the input channels that a filter sees times its taps. An encoder takes
            the positions of the input map times the channels before and behind it, once for all regions.
        ranks: for each group of a convolution (one, if it is not grouped) the ranks of each region; empty where the
            layer was not compressed.
        input_ranks: for each group the number of channels that its input is brought to, None where it keeps them; empty
            where the layer was not compressed.
        left_dense: why the layer was not compressed, None where it was.
    """

    name: str
    macs_dense: int
    macs: int
    ranks: tuple[tuple[RegionRanks, ...], ...] = ()
    input_ranks: tuple[int | None, ...] = ()
    left_dense: str | None = None

    @property
    def regions(self) -> int:
        """Number of regions, 0 where the layer was not compressed."""
        return len(self.ranks[0]) if self.ranks else 0

    @property
    def summary(self) -> str:
        """The ranks of the layer in a few words, or why it was left dense."""
        if self.left_dense is not None:
            return f"left dense: {self.left_dense}"
        totals = ", ".join(str(total_rank(ranks) or "dense") for regions in self.ranks for ranks in regions)
        inputs = ", ".join(str(count or "all") for count in self.input_ranks)
        return f"total rank per region: {totals}" + (f"; of {inputs} inputs" if any(self.input_ranks) else "")

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> "LayerPlan":
        """Undo :meth:`stored`.

        Format 4 had one list for the regions of all groups, with the number of regions per group beside it, and an
        empty list for a region that stays dense.
        """
        groups = tree["ranks"]
        if "regions" in tree:
            count = tree["regions"]
            groups = [groups[first : first + count] for first in range(0, len(groups), count or 1)]
        ranks = tuple(tuple(tuple(ranks) if ranks else None for ranks in regions) for regions in groups)
        values = {name: value for name, value in tree.items() if name != "regions"}
        return cls(**{**values, "ranks": ranks, "input_ranks": tuple(tree["input_ranks"])})
