"""The peers that HSCC is compared with.

Each is one function ``compress_x(calibration, budget)``. It leaves the calibration's network as it is and returns an
ordinary torch network in evaluation mode whose convolutions and fully connected layers need at most 1 / budget of the
dense network's multiply-adds, and as nearly that as ranks allow. A budget that is out of reach is a
:class:`~hscc_search.errors.CompressionError` that names the ratio within reach.

``targets`` lists the layers that peers compress, ``ladder`` shares the budget among them, and ``low_rank`` makes their
factors. ``truncation`` holds the steps that ``global_svd`` and ``alds`` have in common. ``pruning`` and
``response_pca`` divide the budget by rules of their own.

The rank rule of Kim et al. for Tucker-2, variational Bayesian matrix factorisation (VBMF), is not offered, because no
library that is kept up has it. tensorly 0.10 and tensorly-torch 0.5 have no VBMF; musco-pytorch has one, but its last
release is 1.0.6 of October 2020 and demands tensorly 0.4.5; CasvandenBogaard/VBMF is no package. VBMF also gives one
rank per layer, not a rank per budget.
"""

from collections.abc import Callable

from torch import nn

from hscc_search.compression.baselines.alds import compress_alds
from hscc_search.compression.baselines.global_svd import compress_global_svd
from hscc_search.compression.baselines.pruning import compress_pruning
from hscc_search.compression.baselines.response_pca import compress_response_pca
from hscc_search.compression.baselines.tucker import compress_tucker
from hscc_search.compression.calibration.calibrate import Calibration

METHODS: dict[str, Callable[[Calibration, float], nn.Module]] = {
    "global-svd": compress_global_svd,
    "tucker-2": compress_tucker,
    "response-pca": compress_response_pca,
    "alds": compress_alds,
    "pruning": compress_pruning,
}
