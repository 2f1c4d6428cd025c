"""Which models there are: given ones by their name, fine-tuned ones in folders of the home."""

from pathlib import Path

from embedding.encoder import SentenceEncoder, load_encoder
from flows.settings import Settings


def models_folder(settings: Settings) -> Path:
    """Return where fine-tuned models are kept, each in a folder of its own name."""
    return settings.home / "models"


def open_model(settings: Settings, name: str) -> SentenceEncoder:
    """Load a model: a fine-tuned one of this home, else whatever `load_encoder` knows under `name`.

    Raises:
        ModelUnavailable: there is none.
    """
    own = models_folder(settings) / name
    return load_encoder(name, device=settings.device, folder=own if own.is_dir() else None)
