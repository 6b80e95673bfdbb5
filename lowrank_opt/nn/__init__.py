"""Low-rank layers, and adapters that put any parameterization into any torch model.

From the ground: `basis`, `adapters` (the record of a model), `low_rank`, `surgery`, `folders`,
`interop`, `reports`, `ecosystem`. How adapters are trained and merged across models is in
`training`, `merging`.
"""

from lowrank_opt.nn.adapters.present import active_adapters as active_adapters
from lowrank_opt.nn.adapters.weights import AdaptedWeight as AdaptedWeight
from lowrank_opt.nn.adapters.weights import adapted_weights as adapted_weights
from lowrank_opt.nn.basis.errors import AdapterStateError as AdapterStateError
from lowrank_opt.nn.basis.frozen import Frozen as Frozen
from lowrank_opt.nn.basis.kinds import LayerKind as LayerKind
from lowrank_opt.nn.ecosystem.hub import load_from_hub as load_from_hub
from lowrank_opt.nn.ecosystem.hub import model_card as model_card
from lowrank_opt.nn.ecosystem.hub import push_to_hub as push_to_hub
from lowrank_opt.nn.ecosystem.hub import save_with_card as save_with_card
from lowrank_opt.nn.ecosystem.lightning import lightning_callback as lightning_callback
from lowrank_opt.nn.ecosystem.steps import AdapterSteps as AdapterSteps
from lowrank_opt.nn.ecosystem.steps import adapter_figures as adapter_figures
from lowrank_opt.nn.ecosystem.trainer import follow_trainer as follow_trainer
from lowrank_opt.nn.ecosystem.trainer import load_adapters as load_adapters
from lowrank_opt.nn.folders.load import load_adapter as load_adapter
from lowrank_opt.nn.folders.save import save_adapter as save_adapter
from lowrank_opt.nn.interop import ExportedSite as ExportedSite
from lowrank_opt.nn.interop import PeftResidual as PeftResidual
from lowrank_opt.nn.interop import export_peft as export_peft
from lowrank_opt.nn.interop import import_peft as import_peft
from lowrank_opt.nn.interop import peft_residuals as peft_residuals
from lowrank_opt.nn.low_rank.bridge import register_dense as register_dense
from lowrank_opt.nn.low_rank.layers import LowRankConv1d as LowRankConv1d
from lowrank_opt.nn.low_rank.layers import LowRankConv2d as LowRankConv2d
from lowrank_opt.nn.low_rank.layers import LowRankConv3d as LowRankConv3d
from lowrank_opt.nn.low_rank.layers import LowRankEmbedding as LowRankEmbedding
from lowrank_opt.nn.low_rank.layers import LowRankLinear as LowRankLinear
from lowrank_opt.nn.low_rank.shortcut import Shortcut as Shortcut
from lowrank_opt.nn.low_rank.shortcut import add_shortcut as add_shortcut
from lowrank_opt.nn.reports.inspect import inspect_adapter as inspect_adapter
from lowrank_opt.nn.reports.report import SiteReport as SiteReport
from lowrank_opt.nn.reports.report import adapter_report as adapter_report
from lowrank_opt.nn.reports.report import monitor as monitor
from lowrank_opt.nn.reports.report import summary as summary
from lowrank_opt.nn.surgery.adapt import adapt as adapt
from lowrank_opt.nn.surgery.combine import combine as combine
from lowrank_opt.nn.surgery.merging import disabled as disabled
from lowrank_opt.nn.surgery.merging import merge as merge
from lowrank_opt.nn.surgery.merging import merge_and_unload as merge_and_unload
from lowrank_opt.nn.surgery.merging import unmerge as unmerge
from lowrank_opt.nn.surgery.options import RelativeRadius as RelativeRadius
from lowrank_opt.nn.surgery.removal import remove_adapter as remove_adapter
from lowrank_opt.nn.surgery.removal import unload as unload
from lowrank_opt.nn.surgery.rewind import RewindPoint as RewindPoint
from lowrank_opt.nn.surgery.rewind import RewindReport as RewindReport
from lowrank_opt.nn.surgery.rewind import rewind as rewind
from lowrank_opt.nn.surgery.switching import per_sample as per_sample
from lowrank_opt.nn.surgery.switching import switch as switch
