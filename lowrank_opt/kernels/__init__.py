"""Loss and predictions on the observed entries, without entries x rank temporaries.

One protocol, `backend`: loops in numba on the CPU, batches in plain torch on every device, tiles in
Triton on CUDA.
No solver lives here.
"""

from lowrank_opt.kernels.backend import use_backend as use_backend
from lowrank_opt.kernels.dispatch import observed_entries as observed_entries
from lowrank_opt.kernels.dispatch import observed_squared_loss as observed_squared_loss
