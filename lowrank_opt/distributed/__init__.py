"""Completion over several processes, on `torch.distributed`: entries are split, factors are whole.

No solver lives here: those with the trait `distributed` compute with a part of the entries as
with all of them. Nothing of this is imported before it is used.
"""

from lowrank_opt.completion.results.cut import predict_entries as predict_entries
from lowrank_opt.distributed.complete import complete as complete
from lowrank_opt.distributed.cut import CutPart as CutPart
from lowrank_opt.distributed.cut import cut_columns as cut_columns
from lowrank_opt.distributed.cut import cut_rows as cut_rows
from lowrank_opt.distributed.exchange import Processes as Processes
from lowrank_opt.distributed.folder import read_folder as read_folder
from lowrank_opt.distributed.maps import own_map as own_map
from lowrank_opt.distributed.processes import ProcessPart as ProcessPart
from lowrank_opt.distributed.split import gather_observations as gather_observations
from lowrank_opt.distributed.split import own_rows as own_rows
from lowrank_opt.distributed.split import split_rows as split_rows
from lowrank_opt.distributed.store import SharedStore as SharedStore
