"""How a run reads its data sets, apart from where they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import Config


@dataclass(frozen=True)
class LoadOptions:
    """What decides how data sets are read and checked, whichever they are.

    Attributes:
        output_dir: run folder, for the reports of checks and ``skipped.json``.
        max_objects: objects kept per image or video, the largest by mask area.
        follow_links: whether links may lead out of a data set's folders.
        skip_bad: whether damaged entries are left out, instead of being refused.
        workers: processes that check a data set; 0: this one.
    """

    output_dir: Path
    max_objects: int = 200
    follow_links: bool = False
    skip_bad: bool = False
    workers: int = 1

    @classmethod
    def from_config(cls, config: Config) -> LoadOptions:
        """Return the options of a run."""
        return cls(
            output_dir=Path(config.output_dir),
            max_objects=config.dataset.max_ann_per_img,
            follow_links=config.dataset.follow_links,
            skip_bad=config.dataset.skip_bad,
            workers=config.training.num_workers,
        )
