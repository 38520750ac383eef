import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import layer_with, target_of

from hscc_search.compression.baselines.alds import GROUPS, group_ladder
from hscc_search.compression.baselines.low_rank import truncated_pair


@given(st.integers(1, 8), st.integers(1, 12), st.sampled_from([(), (1, 1), (2, 1)]), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_every_grouping_is_tried_and_the_bound_holds(outputs, channels, kernel, seed):
    weight = torch.randn(outputs, channels * math.prod(kernel), generator=torch.Generator().manual_seed(seed))
    layer = layer_with(weight, (channels, *kernel) if kernel else ())
    target = target_of(layer, 7)
    ladder = group_ladder(target)
    norm = float(torch.linalg.matrix_norm(weight.double(), 2))
    every = [(target.macs, 0.0)]
    for groups in (groups for groups in GROUPS if channels % groups == 0):
        blocks = [np.linalg.svd(block, compute_uv=False) for block in np.split(weight.double().numpy(), groups, axis=1)]
        for rank in range(1, len(blocks[0]) + 1):
            dropped = max(values[rank] if rank < len(values) else 0 for values in blocks)
            every.append((7 * rank * (weight.shape[1] + groups * outputs), math.sqrt(groups) * dropped / norm))
    for error in (0, 0.1, 0.3, 0.6, 1.0):
        cheapest = min(macs for macs, bound in every if bound <= error + 1e-12)
        assert ladder.macs[ladder.cheapest_within(error)] == cheapest
    for bound, ranks in zip(ladder.errors, ladder.ranks, strict=True):
        if ranks is not None:
            pair = truncated_pair(layer, *ranks)
            x = torch.eye(weight.shape[1]).view(-1, *((channels, *kernel) if kernel else (weight.shape[1],)))
            residual = (pair(x) - layer(x)).detach().flatten(1).double()
            assert float(torch.linalg.matrix_norm(residual, 2)) <= (bound + 1e-5) * norm
