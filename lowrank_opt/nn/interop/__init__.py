"""Adapter files of other packages: Hugging Face PEFT.

Reading and writing of the own format is in `folders`.
"""

from lowrank_opt.nn.interop.peft_export import ExportedSite as ExportedSite
from lowrank_opt.nn.interop.peft_export import export_peft as export_peft
from lowrank_opt.nn.interop.peft_import import import_peft as import_peft
from lowrank_opt.nn.interop.peft_residuals import PeftResidual as PeftResidual
from lowrank_opt.nn.interop.peft_residuals import peft_residuals as peft_residuals
