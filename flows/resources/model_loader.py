"""Load models: named ones, and fine-tuned ones of the data directory."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from qdrant_client import QdrantClient
from sqlalchemy.orm import Session, sessionmaker

from embedding.encoders.sentence_encoder import Encoder, SentenceEncoder, load_encoder
from flows.config.settings import Settings
from storage import qdrant
from storage.errors import ModelError
from storage.postgres import model_registry

MAX_LOADED = 2
"""Models that stay loaded: the active one, and the previous one for a rollback."""

Load = Callable[[Settings, str], Encoder]


class UnusedModel(ModelError):
    """Report a set model that is not in use, while another is."""


def models_folder(settings: Settings) -> Path:
    """Return the folder of the fine-tuned models."""
    return settings.home / "models"


def open_model(settings: Settings, name: str) -> SentenceEncoder:
    """Load a fine-tuned model, or one that `load_encoder` knows.

    Raises:
        ModelUnavailable: there is none.
    """
    own = models_folder(settings) / name
    return load_encoder(name, device=settings.device, folder=own if own.is_dir() else None)


def active_model(client: QdrantClient, sessions: sessionmaker[Session], settings: Settings) -> str:
    """Return the name of the model that searches use.

    Before the first ingest it is the model of the settings.

    Raises:
        UnusedModel: a model is set that has never been used here.
    """
    collection = qdrant.active_collection(client)
    if collection is None:
        return settings.model
    if "model" in settings.model_fields_set and settings.model != collection.model:
        with sessions() as session:
            known = model_registry.model_named(session, settings.model)
        if known is None:
            raise UnusedModel(
                f"SIGHTLINE_MODEL is {settings.model!r}, but searches use {collection.model!r}; run: "
                f"sightline reindex --model {settings.model}, or unset it"
            )
    return collection.model


def open_model_of(
    client: QdrantClient,
    sessions: sessionmaker[Session],
    settings: Settings,
    name: str | None,
    load: Load = open_model,
) -> Encoder:
    """Load a model by its name or by that of its collection.

    None loads the model that searches use.

    Raises:
        ModelUnavailable: there is none.
        ModelMismatch: the model of the collection is another one now.
    """
    if name is None:
        return load(settings, active_model(client, sessions, settings))
    if name not in qdrant.list_collections(client):
        return load(settings, name)
    collection = qdrant.describe(client, name)
    encoder = load(settings, collection.model)
    qdrant.require_model(collection, encoder.fingerprint, encoder.name)
    return encoder


class ModelCache:
    """Cache the models that encode queries.

    A model is loaded when a collection first needs it.
    """

    def __init__(self, settings: Settings, load: Load = open_model) -> None:
        self._settings, self._load = settings, load
        self._loaded: OrderedDict[str, Encoder] = OrderedDict()
        self._turn = Lock()

    def of(self, collection: qdrant.Collection) -> Encoder:
        """Return the model that made `collection`.

        Raises:
            ModelMismatch: the model of that name is another one now.
            ModelUnavailable: it cannot be loaded.
        """
        with self._turn:
            encoder = self._loaded.get(collection.fingerprint)
            if encoder is None:
                encoder = self._load(self._settings, collection.model)
                qdrant.require_model(collection, encoder.fingerprint, encoder.name)
            self._keep(encoder)
        return encoder

    def named(self, name: str) -> Encoder:
        """Return the model with this name, which makes the first collection.

        Raises:
            ModelUnavailable: it cannot be loaded.
        """
        with self._turn:
            encoder = next((one for one in self._loaded.values() if one.name == name), None)
            if encoder is None:
                encoder = self._load(self._settings, name)
            self._keep(encoder)
        return encoder

    def _keep(self, encoder: Encoder) -> None:
        self._loaded[encoder.fingerprint] = encoder
        self._loaded.move_to_end(encoder.fingerprint)
        while len(self._loaded) > MAX_LOADED:
            self._loaded.popitem(last=False)
