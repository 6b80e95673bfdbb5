"""Adapters in `transformers.Trainer` and Lightning's trainer: figures, checkpoints, resuming."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.errors import DataError, OptionError
from lowrank_opt.nn import (
    AdapterSteps,
    adapt,
    adapter_report,
    follow_trainer,
    lightning_callback,
    load_adapters,
)

transformers = pytest.importorskip("transformers")
lightning = pytest.importorskip("lightning.pytorch")

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.randint(0, 32, (8, 8), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row} for row in TOKENS]


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    return adapt(model, partial(lo.NBLoRA, rank=2, radius=3.0), targets="all-linear")


def trainer_of(folder: Path, steps: AdapterSteps, *, max_steps: int = 6):
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=max_steps, save_steps=3, logging_steps=100, learning_rate=0.05,
        per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True, seed=1,
        lr_scheduler_type="constant",
    )  # fmt: skip
    model = llama()
    return follow_trainer(transformers.Trainer(model, arguments, train_dataset=DATA), steps)


def trained(trainer) -> dict[str, Tensor]:
    found = trainer.model.state_dict()
    return {key: x.clone() for key, x in found.items() if "lowrank_adapters" in key}


def test_a_trainer_that_shards_writes_whole_checkpoints(tmp_path) -> None:
    trainer = trainer_of(tmp_path, AdapterSteps())
    trainer.is_fsdp_enabled = True
    with pytest.raises(OptionError, match="every process"):
        follow_trainer(trainer, AdapterSteps())
    assert trainer is follow_trainer(trainer, AdapterSteps(), adapters_only=False)


def test_a_trainer_logs_bounds_and_resumes_from_adapters_alone(tmp_path) -> None:
    steps = AdapterSteps(every=2, recenter=4, radius=lambda step: 1.0 / step)
    trainer = trainer_of(tmp_path, steps)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "adapters/default/gap" in entry]
    assert [2, 4, 6] == [entry["step"] for entry in logged]
    for entry in logged:
        assert 1.0 == entry["adapters/default/certified"]
        assert 0 < entry["adapters/default/spectral"] <= 1.0 / entry["step"] * (1 + 1e-4)
    files = {path.name for path in (tmp_path / "checkpoint-3").rglob("*.safetensors")}
    assert {"adapter.safetensors"} == files
    whole = sum(p.numel() for p in trainer.model.parameters())
    held = load_file(tmp_path / "checkpoint-3/adapters/default/adapter.safetensors")
    assert sum(x.numel() for x in held.values()) < whole / 4

    again = trainer_of(tmp_path, steps)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for key, expected in trained(trainer).items():
        torch.testing.assert_close(trained(again)[key], expected, msg=key)


def test_a_checkpoint_without_adapters_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="a checkpoint of adapters has a folder 'adapters'"):
        load_adapters(llama(), tmp_path)


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
        adapt(self.body, partial(lo.NBLoRA, rank=2, radius=3.0), targets="all-linear")

    def training_step(self, batch: list[Tensor], i: int) -> Tensor:
        return (self.body(batch[0]) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.05)


def lightning_trainer(folder: Path, logger, epochs: int):
    steps = AdapterSteps(every=2, radius=lambda step: 1.0 / step)
    return lightning.Trainer(
        max_epochs=epochs, logger=logger, callbacks=[lightning_callback(steps)],
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
        log_every_n_steps=1, accelerator="cpu", accumulate_grad_batches=2,
    )  # fmt: skip


def test_lightning_logs_bounds_and_resumes_from_adapters_alone(tmp_path) -> None:
    data = torch.utils.data.TensorDataset(
        torch.randn(16, 6, generator=torch.Generator().manual_seed(2))
    )
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    logger = lightning.loggers.CSVLogger(tmp_path)
    trainer, module = lightning_trainer(tmp_path, logger, 1), Module()
    trainer.fit(module, loader)
    assert 4 == trainer.global_step
    logger.save()
    head, *rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = head.split(",").index("adapters/default/spectral")
    values = [float(row.split(",")[column]) for row in rows if row.split(",")[column]]
    # Lightning writes a figure again until there is another one.
    assert 2 == len(set(values))
    assert values[0] <= 0.5 * (1 + 1e-4)
    assert values[-1] <= 0.25 * (1 + 1e-4)
    assert all(site.holds for site in adapter_report(module))

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    held = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert held
    assert all("lowrank_adapters" in key for key in held)
    again = Module()
    lightning_trainer(tmp_path, False, 1).fit(again, loader, ckpt_path=tmp_path / "last.ckpt")
    x = data.tensors[0]
    assert torch.equal(module.body(x), again.body(x))
