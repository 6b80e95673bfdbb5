"""
Coming from PEFT
================

.. index:: ! peft

The same steps, side by side. PEFT's lines are shown, not run; those of this library run here.
"""

# %%
# Put adapters on a model
# -----------------------
# PEFT wraps the model::
#
#     config = LoraConfig(r=8, lora_alpha=16, target_modules=["0", "2"], modules_to_save=["4"])
#     model = get_peft_model(model, config)
#
# Here the model stays the object it was: names, ``isinstance``, ties and hooks go on working. Any parameterization may stand
# in the place of LoRA: this one cannot exceed a spectral norm of 0.5, whatever the optimizer does.

import tempfile
from pathlib import Path

import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.nn import (
    adapt,
    disabled,
    export_peft,
    import_peft,
    merge,
    remove_adapter,
    switch,
    unmerge,
)


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 3)
    )


model = base()
adapt(
    model,
    lambda shape: lo.NBLoRA(shape, rank=8, radius=0.5),
    targets=["0", "2"],
    modules_to_train=["4"],
)
print(
    type(model).__name__,
    sum(p.numel() for p in model.parameters() if p.requires_grad),
    "numbers to train",
)

# %%
# LoRA itself, scaled as ``lora_alpha / r``, is ``lo.Factored(shape, rank=8, scaling=16 / 8)``.
#
# Train it
# --------
# There is no difference.

x, y = torch.randn(64, 16), torch.randn(64, 3)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for _ in range(50):
    optimizer.zero_grad()
    (model(x) - y).square().mean().backward()
    optimizer.step()

# %%
# Switch, disable, merge
# ----------------------
# ===================================  ==========================================
# PEFT                                 here
# ===================================  ==========================================
# ``model.add_adapter("b", config)``   ``adapt(model, make, name="b", ...)``
# ``model.set_adapter("b")``           ``switch(model, "b")``
# ``with model.disable_adapter():``    ``with disabled(model):``
# ``model.merge_adapter()``            ``merge(model)``
# ``model.unmerge_adapter()``          ``unmerge(model)``, the bits of before
# ``model.delete_adapter("b")``        ``remove_adapter(model, "b")``
# ``model.save_pretrained(folder)``    ``save_adapter(model, folder)``
# ===================================  ==========================================
#
# The trained head goes with its adapter.

trained = model(x).detach()
adapt(model, lambda shape: lo.DeLoRA(shape, rank=4, radius=1.0), targets=["0"], name="b")
switch(model, "b")
with disabled(model):
    print("the base, bit for bit:", torch.equal(model(x), base()(x)))
switch(model, "default")
print("the first adapter again:", torch.equal(model(x), trained))
remove_adapter(model, "b")

merge(model)
print("merged, largest difference:", float((model(x) - trained).abs().max()))
unmerge(model)
print("unmerged, bit for bit:", torch.equal(model(x), trained))

# %%
# Exchange folders
# ----------------
# ``export_peft`` writes what ``PeftModel.from_pretrained`` reads, and proves that the rounded factors in the file are still
# in the declared set; ``import_peft`` reads what PEFT has written. What PEFT would compute differently is refused by name.

folder = Path(tempfile.mkdtemp()) / "checkpoint"
for site in export_peft(model, folder):
    print(
        site.name,
        "rank",
        site.rank,
        "spectral norm at most",
        round(site.spectral_bound, 4),
        site.certified,
    )

other = import_peft(base(), folder)
print("read back, largest difference:", float((other(x) - trained).abs().max()))
