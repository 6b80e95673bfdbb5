"""Loss and predictions on the observed entries, without entries x rank temporaries.

Loops in numba on the CPU, batches in plain torch elsewhere; no solver lives here.
"""

from lowrank_opt.kernels.dispatch import observed_entries as observed_entries
from lowrank_opt.kernels.dispatch import observed_squared_loss as observed_squared_loss
