"""All operations of a `Backend`, in plain torch."""

from lowrank_opt.kernels.batches.entries import entries as entries
from lowrank_opt.kernels.batches.entries import entries_gradient as entries_gradient
from lowrank_opt.kernels.batches.entries import squared_loss as squared_loss
from lowrank_opt.kernels.batches.gaussian import draw as draw
from lowrank_opt.kernels.batches.gaussian import pack as pack
from lowrank_opt.kernels.batches.gaussian import posterior as posterior
from lowrank_opt.kernels.batches.ranking import best_columns as best_columns
from lowrank_opt.kernels.batches.rows import improve_rows as improve_rows
from lowrank_opt.kernels.batches.rows import nonnegative_rows as nonnegative_rows
from lowrank_opt.kernels.batches.rows import solve_rows as solve_rows
from lowrank_opt.kernels.batches.steps import steps as steps

reads_half = False
