"""Asserting that something is refused, by the error's code and not by its wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from src.core.errors import UserError


@contextmanager
def refuses(code: str, *facts: str) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Expect a UserError of this code, whose message holds some facts; the error is ``value`` of what is given."""
    with pytest.raises(UserError) as caught:
        yield caught
    assert caught.value.code == code, f"{caught.value.code}: {caught.value}"
    assert all(fact in str(caught.value) for fact in facts), f"not {facts} in: {caught.value}"
