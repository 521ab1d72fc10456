"""Child processes that do not outlive their parent."""

from __future__ import annotations

import os
import threading
import time

CHECK_SECONDS = 1


def end_with_parent() -> None:
    """End this process soon after its parent, which may be killed before it can end its children."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_SECONDS)
    os._exit(1)
