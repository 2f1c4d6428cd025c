"""Imports whatever a command may import: once, for all that are forked from the process that imports this."""

import gc
from importlib import import_module
from pathlib import Path

import flows

FLOWS = [f"flows.{path.stem}" for path in Path(flows.__path__[0]).glob("*.py")]
MODELS = ["embedding.encoders.starter", "transformers.models.bert.modeling_bert"]
CLIP = [f"transformers.models.clip.{part}" for part in ("modeling_clip", "processing_clip")]

gc.disable()  # all of this stays: to look for garbage in it again and again takes a fifth of the time
for name in ("flows.cli", *FLOWS, *MODELS, *CLIP):
    import_module(name)
gc.freeze()
gc.enable()
