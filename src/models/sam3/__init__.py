"""SAM 3's concepts: transformers' ``Sam3Model``, its training forward and its losses.

Raises:
    UserError: at import, where ``transformers`` is missing or too old.
"""

from ...core.errors import UserError

try:
    from transformers import Sam3Model as _Sam3Model  # noqa: F401
except ImportError:
    raise UserError(
        "SAM 3 needs transformers from 5.24 on: pip install 'sam2-mope[sam3]' (it is optional, and needs Python 3.11)",
        "transformers.missing",
    ) from None
