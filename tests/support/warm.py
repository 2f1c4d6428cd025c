"""Imports whatever a command may import: once, for all that are forked from the process that imports this."""

import gc
from importlib import import_module
from pkgutil import walk_packages

import flows

APART = ("flows.console", "flows.api")
"""What commands of tests do not import, or in a process of their own."""

FLOWS = [
    module.name
    for module in walk_packages(flows.__path__, "flows.")
    if not module.name.startswith(APART) and not module.name.endswith("__main__")
]
MODELS = ["embedding.encoders.starter", "transformers.models.bert.modeling_bert"]
CLIP = [f"transformers.models.clip.{part}" for part in ("modeling_clip", "processing_clip")]

gc.disable()  # all of this stays: to look for garbage in it again and again takes a fifth of the time
for name in (*FLOWS, *MODELS, *CLIP):
    import_module(name)
gc.freeze()
gc.enable()
