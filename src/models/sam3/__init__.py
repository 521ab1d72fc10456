"""SAM 3's concepts: transformers' ``Sam3Model``, its training forward and its losses.

Raises:
    UserError: at import, where ``transformers`` is missing or too old.
"""

from ..sam2.transformers_format import load_transformers

MINIMUM_VERSION = "5.24"  # earlier ones make the ViT's positions in the model's precision

load_transformers(MINIMUM_VERSION)
