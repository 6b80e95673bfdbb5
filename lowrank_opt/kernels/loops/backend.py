"""All operations of a `Backend`, as numba loops."""

from lowrank_opt.kernels.batches.ranking import best_columns as best_columns
from lowrank_opt.kernels.loops.entries import entries as entries
from lowrank_opt.kernels.loops.entries import entries_gradient as entries_gradient
from lowrank_opt.kernels.loops.entries import squared_loss as squared_loss
from lowrank_opt.kernels.loops.rows import draw as draw
from lowrank_opt.kernels.loops.rows import improve_rows as improve_rows
from lowrank_opt.kernels.loops.rows import nonnegative_rows as nonnegative_rows
from lowrank_opt.kernels.loops.rows import pack as pack
from lowrank_opt.kernels.loops.rows import posterior as posterior
from lowrank_opt.kernels.loops.rows import solve_rows as solve_rows
from lowrank_opt.kernels.loops.steps import steps as steps

reads_half = False
