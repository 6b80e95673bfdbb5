"""Merging: aggregation of clients' updates, private means."""

from lowrank_opt.merging.aggregate import Aggregate as Aggregate
from lowrank_opt.merging.aggregate import aggregate as aggregate
from lowrank_opt.merging.clients import adapter_updates as adapter_updates
from lowrank_opt.merging.clients import lora_operators as lora_operators
