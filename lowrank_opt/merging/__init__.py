"""Merging: aggregation of clients' updates, private means."""

from lowrank_opt.merging.aggregate import Aggregate as Aggregate
from lowrank_opt.merging.aggregate import aggregate as aggregate
from lowrank_opt.merging.clients import adapter_updates as adapter_updates
from lowrank_opt.merging.clients import lora_operators as lora_operators
from lowrank_opt.merging.intervention import rescale_intruders as rescale_intruders
from lowrank_opt.merging.intervention import shrunk_to_norm_of as shrunk_to_norm_of
from lowrank_opt.merging.model_updates import add_updates as add_updates
from lowrank_opt.merging.model_updates import model_updates as model_updates
from lowrank_opt.merging.singular_basis import SingularBasis as SingularBasis
from lowrank_opt.merging.spectral import SpectralWarning as SpectralWarning
from lowrank_opt.merging.spectral import intruder_free_radius as intruder_free_radius
from lowrank_opt.merging.spectral import singular_bases as singular_bases
from lowrank_opt.merging.spectral import spectral_report as spectral_report
from lowrank_opt.merging.spectral_tables import ModelSpectralReport as ModelSpectralReport
from lowrank_opt.merging.spectral_tables import SpectralReport as SpectralReport
