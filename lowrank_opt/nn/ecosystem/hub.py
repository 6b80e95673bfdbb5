"""Adapter folders with a model card, on the Hugging Face hub and back."""

from __future__ import annotations

import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from lowrank_opt.extras import imported
from lowrank_opt.nn.folders.load import load_adapter
from lowrank_opt.nn.folders.save import only_name, save_adapter
from lowrank_opt.nn.reports.report import adapter_report, table

_CARD = """---
{base}library_name: lowrank_opt
tags:
- lowrank_opt
- adapter
- low-rank
---

# {title}

A low-rank adapter{of} of {count} matrices. What each update is bounded by, and whether a
certificate of the numbers in this folder holds:

```text
{table}
```

## Use

```python
from lowrank_opt.nn import load_from_hub

model = ...  # the base model
load_from_hub(model, "{title}")
```
"""


def model_card(
    model: nn.Module, title: str, *, name: str | None = None, base_model: str | None = None
) -> str:
    """Return a model card for an adapter: its metadata, a table of its matrices, how it is loaded.

    Parameters
    ----------
    model : nn.Module
        Adapted.
    title : str
        The id of the repository.
    name : str, optional
        Of the adapter; may be left out if there is only one.
    base_model : str, optional
        The id of the base model on the hub.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda s: NBLoRA(s, 1, radius=0.5), targets=".*")
    >>> print(model_card(model, "me/mine", base_model="org/base").partition("# ")[0])
    ---
    base_model: org/base
    library_name: lowrank_opt
    tags:
    - lowrank_opt
    - adapter
    - low-rank
    ---
    <BLANKLINE>
    <BLANKLINE>
    """
    name = only_name(model) if name is None else name
    sites = adapter_report(model, name)
    base = "" if base_model is None else f"base_model: {base_model}\n"
    of = "" if base_model is None else f" for `{base_model}`"
    return _CARD.format(base=base, title=title, of=of, count=len(sites), table=table(sites))


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    name: str | None = None,
    base_model: str | None = None,
    private: bool | None = None,
    message: str = "Upload an adapter",
) -> str:
    """Write an adapter, with a model card, and upload the folder to the hub.

    Parameters
    ----------
    model : nn.Module
        Adapted.
    repository : str
        ``"user/name"``; made if it does not exist.
    name, base_model : str, optional
        As for `model_card`.
    private : bool, optional
        Of a new repository.
    message : str
        Of the commit.

    Returns
    -------
    str
        The address of the commit.

    Raises
    ------
    MissingExtraError
        If huggingface_hub is not installed.
    AdapterStateError, TargetError
        As `save_adapter`, before anything is uploaded.
    """
    api = imported("huggingface_hub", "push_to_hub").HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save_with_card(model, folder, repository, name=name, base_model=base_model)
        api.create_repo(repository, private=private, exist_ok=True)
        made: Any = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message
        )
    return str(getattr(made, "commit_url", made))


def save_with_card(
    model: nn.Module,
    path: str | PathLike[str],
    title: str,
    *,
    name: str | None = None,
    base_model: str | None = None,
) -> None:
    """Write an adapter as `save_adapter` does, and a model card, ``README.md``, beside it."""
    save_adapter(model, path, name=name)
    card = model_card(model, title, name=name, base_model=base_model)
    (Path(path) / "README.md").write_text(card, encoding="utf-8")


def load_from_hub(
    model: nn.Module, repository: str, *, revision: str | None = None, name: str | None = None
) -> nn.Module:
    """Download an adapter folder from the hub, and load it strictly, as `load_adapter` does.

    Parameters
    ----------
    model : nn.Module
        The base model, adapted or not.
    repository : str
    revision : str, optional
        A branch, a tag or a commit.
    name : str, optional
        Another name for the adapter.

    Raises
    ------
    MissingExtraError
        If huggingface_hub is not installed.
    DataError, ShapeError, TargetError
        As `load_adapter`.
    """
    hub = imported("huggingface_hub", "load_from_hub")
    files = ["adapter.json", "adapter.safetensors"]
    folder = hub.snapshot_download(repository, revision=revision, allow_patterns=files)
    return load_adapter(model, folder, name=name)
