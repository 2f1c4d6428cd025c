"""Create and open the collection that searches use."""

from qdrant_client import QdrantClient
from sqlalchemy.orm import Session, sessionmaker

from embedding.encoders.sentence_encoder import Encoder
from flows.config.settings import BadSettings, Settings
from flows.resources.connections import Deps
from storage import qdrant
from storage.postgres import model_registry
from storage.postgres.locks import collection_lock


def open_collection(deps: Deps, settings: Settings) -> qdrant.Collection:
    """Return the active collection; create it if none exists.

    Raises:
        BadSettings: vectors are to be shortened to more dimensions than the model has.
        ModelMismatch: another model made the collection.
    """
    encoder = deps.encoder
    if qdrant.active_collection(deps.vectors) is None:
        with collection_lock(deps.engine):
            if qdrant.active_collection(deps.vectors) is None:  # another process may have made it meanwhile
                name = make_collection(deps.vectors, deps.sessions, settings, encoder)
                qdrant.activate(deps.vectors, name)
    collection = qdrant.require_collection(deps.vectors, encoder.fingerprint, encoder.name)
    qdrant.quantize(deps.vectors, collection, settings.qdrant.quantization)
    with deps.sessions.begin() as session:
        model_registry.activate_collection(
            session,
            name=collection.name,
            model=encoder.name,
            fingerprint=encoder.fingerprint,
            dim=encoder.dim,
        )
    return collection


def make_collection(
    client: QdrantClient, sessions: sessionmaker[Session], settings: Settings, encoder: Encoder
) -> str:
    """Create the collection of a model if missing; return its name.

    Completes a creation that a crash interrupted.

    Raises:
        BadSettings: vectors are to be shortened to more dimensions than the model has.
    """
    short_dim = settings.qdrant.short_dim
    if short_dim is not None and short_dim >= encoder.dim:
        raise BadSettings(
            f"SIGHTLINE_QDRANT__SHORT_DIM: {short_dim} is no beginning of the {encoder.dim} dimensions that "
            f"model {encoder.name!r} has; set fewer"
        )
    name = qdrant.collection_name(encoder.fingerprint)
    if not client.collection_exists(name):
        with sessions.begin() as session:
            model_registry.forget_marks(session, name)
    return qdrant.create_collection(
        client,
        model=encoder.name,
        fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        filter_fields=settings.qdrant.filter_fields,
        quantization=settings.qdrant.quantization,
        short_dim=short_dim,
    )
