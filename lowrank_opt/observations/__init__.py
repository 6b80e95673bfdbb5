"""Observed entries of a matrix: validated index pairs, values, and their compressed views.

Reading tables and ids into entries is in `tables`.
"""

from lowrank_opt.observations.observations import Observations as Observations
from lowrank_opt.observations.sparsity import CompressedAxis as CompressedAxis
from lowrank_opt.observations.sparsity import SparsityPattern as SparsityPattern
