"""The error tree: every error has a reason of its own, a title and a place in the table of the rim."""

import re

from gateway.operations import errors
from gateway.operations.errors import PathserveError, rim_of


def tree(root: type[PathserveError]) -> list[type[PathserveError]]:
    """The public tree; a room may refine an error for itself (it keeps the reason and stays behind the room's wall)."""
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    return [root, *(leaf for child in children for leaf in tree(child))]


def test_reasons_are_unique_and_stable_words() -> None:
    kinds = tree(PathserveError)
    reasons = [kind.reason for kind in kinds]
    assert len(set(reasons)) == len(reasons) >= 30
    assert all(re.fullmatch(r"[a-z][a-z-]+", reason) for reason in reasons)
    assert all(kind.title for kind in kinds)


def test_every_error_has_a_status() -> None:
    for kind in tree(PathserveError):
        assert 400 <= rim_of(kind).http < 600
        assert rim_of(kind("what happened; what to do")) == rim_of(kind)


def test_client_errors_are_not_retried_and_unavailable_ones_are() -> None:
    retryable = {kind.reason for kind in tree(PathserveError) if kind.retryable}
    assert {"archive-unavailable", "inference-unavailable", "disk-full"} <= retryable
    of_clients = {kind for kind in tree(errors.InvalidInput) + tree(errors.SlideError) if kind.retryable}
    assert of_clients == {errors.BodyTooSlow}  # the same body may come faster
