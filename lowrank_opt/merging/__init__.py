"""Merging: aggregation, private means, combined adapters, intruder dimensions.

Rooms: `clients`, `federated`, `combined`, `spectra`. Adapters themselves are in `nn`.
"""

from lowrank_opt.merging.clients.clients import adapter_updates as adapter_updates
from lowrank_opt.merging.clients.clients import lora_operators as lora_operators
from lowrank_opt.merging.combined.combine import Combination as Combination
from lowrank_opt.merging.combined.combine import combine as combine
from lowrank_opt.merging.combined.interference import Interference as Interference
from lowrank_opt.merging.federated.aggregate import Aggregate as Aggregate
from lowrank_opt.merging.federated.aggregate import aggregate as aggregate
from lowrank_opt.merging.federated.privacy import PrivacyBudget as PrivacyBudget
from lowrank_opt.merging.federated.privacy import composed_mu as composed_mu
from lowrank_opt.merging.federated.privacy import gaussian_delta as gaussian_delta
from lowrank_opt.merging.federated.privacy import gaussian_epsilon as gaussian_epsilon
from lowrank_opt.merging.federated.privacy import gaussian_mu as gaussian_mu
from lowrank_opt.merging.federated.private import PrivateMerge as PrivateMerge
from lowrank_opt.merging.federated.private import private_merge as private_merge
from lowrank_opt.merging.federated.rounds import start_round as start_round
from lowrank_opt.merging.spectra.intervention import rescale_intruders as rescale_intruders
from lowrank_opt.merging.spectra.intervention import shrunk_to_norm_of as shrunk_to_norm_of
from lowrank_opt.merging.spectra.model_updates import add_updates as add_updates
from lowrank_opt.merging.spectra.model_updates import model_updates as model_updates
from lowrank_opt.merging.spectra.singular_basis import SingularBasis as SingularBasis
from lowrank_opt.merging.spectra.spectral import SpectralWarning as SpectralWarning
from lowrank_opt.merging.spectra.spectral import intruder_free_radius as intruder_free_radius
from lowrank_opt.merging.spectra.spectral import singular_bases as singular_bases
from lowrank_opt.merging.spectra.spectral import spectral_report as spectral_report
from lowrank_opt.merging.spectra.spectral_tables import ModelSpectralReport as ModelSpectralReport
from lowrank_opt.merging.spectra.spectral_tables import SpectralReport as SpectralReport
