"""``python -m src`` in a clone, ``python -m sam2_mope`` where the package is installed: the command ``sam2-mope``."""

from .cli.main import main

main()
