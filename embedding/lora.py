"""Low-rank updates of a model's weights (LoRA; Hu et al., 2021): few numbers are trained."""

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from sentence_transformers import SentenceTransformer
from torch import nn

RANK, ALPHA, DROPOUT = 8, 16, 0.05


def add_lora(model: SentenceTransformer) -> None:
    """Put updates on all linear maps of both towers, 1x1 convolutions among them, and freeze the rest."""
    targets = [name for name, module in model.named_modules() if _is_linear(module)]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=targets)
    inject_adapter_in_model(config, model)


def merge_lora(model: SentenceTransformer) -> None:
    """Add the updates to the weights that they belong to, so that the model is one like any other."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)
