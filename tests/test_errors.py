"""All errors are in the trees of `storage.errors` and `embedding.errors`."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages

import pytest

import embedding
import flows
import storage
from embedding.errors import EmbeddingError
from flows.tracking.errors import is_own
from storage.errors import Conflict, InvalidInput, ModelError, NotFound, SightlineError, StoreUnavailable

CONTROL_FLOW = {
    "flows.tracking.signals.StopRequested",
    "flows.tracking.signals.Terminated",
}
SCRIPTS = ("flows.cli.__main__", "storage.postgres.migrations")


def exception_classes() -> Iterator[type[BaseException]]:
    for package in (flows, storage, embedding):
        for module in walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.startswith(SCRIPTS):
                for _, kind in inspect.getmembers(import_module(module.name), inspect.isclass):
                    if issubclass(kind, BaseException) and kind.__module__ == module.name:
                        yield kind


def test_every_exception_is_in_one_of_the_two_trees():
    classes = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in exception_classes()}
    strays = {
        name for name, kind in classes.items() if not issubclass(kind, (SightlineError, EmbeddingError))
    }

    assert len(classes) > 70
    assert strays == CONTROL_FLOW


def test_every_exception_says_whether_a_retry_helps_and_which_status_it_is():
    for kind in exception_classes():
        if issubclass(kind, (SightlineError, EmbeddingError)):
            assert isinstance(kind.retryable, bool)
            assert 400 <= kind.http_status < 600


@pytest.mark.parametrize(
    ("kind", "status", "retryable"),
    [
        (StoreUnavailable, 503, True),
        (InvalidInput, 422, False),
        (NotFound, 404, False),
        (Conflict, 409, False),
        (ModelError, 503, True),
    ],
)
def test_each_kind_has_a_status(kind: type[SightlineError], status: int, retryable: bool):
    assert (kind.http_status, kind.retryable) == (status, retryable)
    assert is_own(kind("why"))


def test_errors_of_libraries_are_not_our_own():
    assert not is_own(ValueError("a bug"))
    assert not is_own(OSError(2, "No such file"))
