"""The one door for row ids, column ids and values, in whatever they come.

Here live the rules: what is a matrix and what a list of triplets, which column is which, whether a
file has a header, what an id is, what is missing. What is done with entries lives in `observations`
and above; no solver, no model and no command is known here.
"""

from lowrank_opt.tables.ids import UNKNOWN as UNKNOWN
from lowrank_opt.tables.ids import Ids as Ids
from lowrank_opt.tables.ids import Labels as Labels
from lowrank_opt.tables.ids import Positions as Positions
from lowrank_opt.tables.ids import as_ids as as_ids
from lowrank_opt.tables.read import read_pairs as read_pairs
from lowrank_opt.tables.read import read_triplets as read_triplets
from lowrank_opt.tables.triplets import Triplets as Triplets
