"""Low-rank layers, and adapters that put any parameterization into any torch model."""

from lowrank_opt.nn.adapted import AdaptedModule as AdaptedModule
from lowrank_opt.nn.errors import AdapterStateError as AdapterStateError
from lowrank_opt.nn.layers import LowRankConv1d as LowRankConv1d
from lowrank_opt.nn.layers import LowRankConv2d as LowRankConv2d
from lowrank_opt.nn.layers import LowRankConv3d as LowRankConv3d
from lowrank_opt.nn.layers import LowRankEmbedding as LowRankEmbedding
from lowrank_opt.nn.layers import LowRankLinear as LowRankLinear
from lowrank_opt.nn.merging import disabled as disabled
from lowrank_opt.nn.merging import merge as merge
from lowrank_opt.nn.merging import merge_and_unload as merge_and_unload
from lowrank_opt.nn.merging import unmerge as unmerge
from lowrank_opt.nn.radius import RelativeRadius as RelativeRadius
from lowrank_opt.nn.sites import LayerKind as LayerKind
from lowrank_opt.nn.sites import register_layer as register_layer
from lowrank_opt.nn.surgery import adapt as adapt
from lowrank_opt.nn.surgery import unload as unload
from lowrank_opt.nn.switching import per_sample as per_sample
from lowrank_opt.nn.switching import switch as switch
