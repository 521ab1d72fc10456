"""The one kind of error that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: a config value, a file, an argument.

    The message is what the user reads, without a traceback: it names the key, file or annotation and says what to
    do. Every command turns it into exit status 2 (:func:`src.cli.run`).
    """
