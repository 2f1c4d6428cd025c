"""Train low-rank updates of a model's weights (LoRA; Hu et al., 2021)."""

from collections.abc import Iterator

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import PreTrainedModel

RANK, ALPHA, DROPOUT = 8, 16, 0.05


def add_lora(model: SentenceTransformer, seed: int) -> None:
    """Add updates to all linear maps and 1x1 convolutions; freeze the rest."""
    model.requires_grad_(False)
    for root in _roots(model):
        targets = [name for name, module in root.named_modules() if name and _is_linear(module)]
        if targets:
            config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=targets)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                inject_adapter_in_model(config, root)


def merge_lora(model: SentenceTransformer) -> None:
    """Merge the updates into the weights and remove the adapters."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())


def _roots(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts that peft takes: transformers models, and modules without one."""
    if isinstance(module, PreTrainedModel) or not any(
        isinstance(part, PreTrainedModel) for part in module.modules()
    ):
        yield module
        return
    for child in module.children():
        yield from _roots(child)


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)
