"""The errors of predictions, from the library."""

from lowrank_opt.metrics import mae as mae
from lowrank_opt.metrics import map_at_k as map_at_k
from lowrank_opt.metrics import ndcg_at_k as ndcg_at_k
from lowrank_opt.metrics import psnr as psnr
from lowrank_opt.metrics import recall_at_k as recall_at_k
from lowrank_opt.metrics import rmse as rmse
