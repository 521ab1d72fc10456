"""Measure a domain gate on pictures of your own: what it rejects of a domain, and what it accepts of all else.

A gate is fitted to each --known folder, or taken from --adapter. Each domain is judged by itself. Pictures of --own,
which the fit must not have seen, belong to it, as they are and in other light. Pictures of --other, and those of the
other domains, do not. Folders hold plain pictures, each of which counts as a video.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from src import cli
from src.config import load_config
from src.core.errors import UserError
from src.core.files import user_errors, write_atomically
from src.data.decode.images import read_image
from src.data.decode.video import frame_paths
from src.gating.domain_gate import DomainGate
from src.gating.fit import fit_gate
from src.models.build import build_model
from src.models.checkpoint import saved_gate
from src.models.spec import model_spec

NOISE = 0.05
LIGHTS: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "dark": lambda x, _: 0.5 * x,
    "bright": lambda x, _: 1.4 * x,
    "warm": lambda x, _: x * np.array([1.08, 1.0, 0.92]),
    "flat": lambda x, _: 0.3 + 0.5 * x,
    "noisy": lambda x, rng: x + rng.normal(0, NOISE, x.shape),
}
"""Other light, of RGB in 0–1 (H, W, 3). They are not the augmentations that a gate is fitted with."""
SIDE, WORST, CAPTION = 128, 8, 14  # of the contact sheet, in pixels and pictures


@dataclass(frozen=True)
class Judged:
    """A picture and how far it is from a domain: 1 and below is inside."""

    path: Path
    distance: float


def read_folders(pairs: Sequence[str], flag: str) -> dict[str, list[Path]]:
    """The pictures of ``NAME=FOLDER`` arguments by name; a name that comes again adds a folder."""
    found: dict[str, list[Path]] = {}
    for pair in pairs:
        name, separator, folder = pair.partition("=")
        if not (name and separator and folder):
            raise UserError(f"{flag} {pair}: write NAME=FOLDER, such as polyps=pictures/polyps", "check-gate.pair")
        if not Path(folder).is_dir():
            raise UserError(f"{flag} {pair}: {folder} is no folder", "check-gate.folder")
        found.setdefault(name, []).extend(frame_paths(Path(folder)))
    return found


class Features:
    """What the gate sees of pictures, computed once for each."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.room = model, model_spec(name).load()
        self._as_is: dict[Path, Tensor] = {}
        self._lit: dict[Path, Tensor] = {}

    def as_is(self, path: Path) -> Tensor:
        """Features of a picture, (D,)."""
        if path not in self._as_is:
            self._as_is[path] = self._of([read_image(path)])[0]
        return self._as_is[path]

    def lit(self, path: Path) -> Tensor:
        """Features of a picture in every other light, (L, D)."""
        if path not in self._lit:
            rng, x = np.random.default_rng(0), read_image(path) / 255
            shown = [np.clip(255 * light(x, rng), 0, 255).astype(np.uint8) for light in LIGHTS.values()]
            self._lit[path] = self._of(shown)
        return self._lit[path]

    def _of(self, pictures: Sequence[np.ndarray]) -> Tensor:
        pixels = torch.stack([self.room.to_pixels(self.model, picture) for picture in pictures])
        return self.room.gate_features(self.model, pixels)


def check(
    features: Features,
    gate: DomainGate,
    own: Mapping[str, list[Path]],
    strangers: Mapping[str, Mapping[str, list[Path]]],
) -> tuple[dict[str, dict[str, object]], dict[str, tuple[list[Judged], list[Judged]]]]:
    """Measure every domain.

    Args:
        features: of the gate's model.
        gate: which knows all of ``own``.
        own: domain → pictures that belong to it.
        strangers: domain → set → pictures that do not.

    Returns:
        The report of every domain, and its pictures (own ones, others) by distance, the worst first.
    """
    report: dict[str, dict[str, object]] = {}
    pictures: dict[str, tuple[list[Judged], list[Judged]]] = {}
    for name, paths in cli.progress_bar(own.items(), desc="domains"):
        mine = [Judged(path, gate.distances(features.as_is(path))[name]) for path in paths]
        lit = [gate.distances(x)[name] for path in paths for x in features.lit(path)]
        others = {
            kind: [Judged(path, gate.distances(features.as_is(path))[name]) for path in found]
            for kind, found in strangers[name].items()
        }
        rejects = [_share(each.distance > 1 for each in mine), _share(distance > 1 for distance in lit)]
        accepts = {kind: _share(each.distance <= 1 for each in found) for kind, found in others.items()}
        report[name] = {
            "false_reject": rejects[0],
            "false_reject_other_light": rejects[1],
            "false_accept": accepts,
            "balanced_accuracy": 1 - (float(np.mean(rejects)) + float(np.mean(list(accepts.values())))) / 2,
        }
        all_others = [each for found in others.values() for each in found]
        pictures[name] = (
            sorted(mine, key=lambda each: -each.distance), sorted(all_others, key=lambda each: each.distance)
        )  # fmt: skip
    return report, pictures


def _share(wrong: object) -> float:
    return float(np.mean(list(wrong)))  # type: ignore[call-overload]


def draw_worst(pictures: Mapping[str, tuple[list[Judged], list[Judged]]]) -> Image.Image:
    """The farthest own pictures and the nearest others of every domain, a row each; red frames are wrong decisions."""
    height = 2 * CAPTION + SIDE
    sheet = Image.new("RGB", (WORST * SIDE, 2 * len(pictures) * height), "white")
    pen = ImageDraw.Draw(sheet)
    rows = [
        (f"{name}: {title}", judged, is_own)
        for name, both in pictures.items()
        for title, judged, is_own in zip(
            ("own, farthest first", "others, nearest first"), both, (True, False), strict=True
        )
    ]
    for row, (title, judged, is_own) in enumerate(rows):
        top = row * height
        pen.text((2, top), title, "black")
        for column, each in enumerate(judged[:WORST]):
            x, y = column * SIDE, top + 2 * CAPTION
            pen.text((x + 2, top + CAPTION), f"{each.distance:.2f}", "black")
            sheet.paste(Image.fromarray(read_image(each.path)).resize((SIDE, SIDE)), (x, y))
            if (each.distance <= 1) != is_own:
                pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline="red", width=3)
    return sheet


def print_table(report: Mapping[str, Mapping[str, object]]) -> None:
    """The report as Markdown, a domain a row."""
    print("| domain | balanced accuracy | rejected, as it is | in other light | accepted |")
    print("|---|--:|--:|--:|---|")
    for name, values in report.items():
        accepts = values["false_accept"]
        assert isinstance(accepts, dict)
        taken = ", ".join(f"{kind} {share:.2f}" for kind, share in accepts.items() if share) or "none"
        numbers = (values[key] for key in ("balanced_accuracy", "false_reject", "false_reject_other_light"))
        print(f"| {name} | {' | '.join(f'{number:.3f}' for number in numbers)} | {taken} |")
    scores = [float(str(values["balanced_accuracy"])) for values in report.values()]
    print(f"\nbalanced accuracy: mean {np.mean(scores):.3f}, worst {np.min(scores):.3f}")


def main(arguments: argparse.Namespace) -> None:
    known, own, other = (
        read_folders(getattr(arguments, flag) or [], f"--{flag}") for flag in ("known", "own", "other")
    )
    if bool(known) == bool(arguments.adapter):
        raise UserError(
            "give --known NAME=FOLDER, to fit a gate, or --adapter, for one that is there", "check-gate.gate"
        )
    config = load_config(arguments.config, arguments.overrides)
    model = build_model(config.model).eval()
    if arguments.adapter:
        gate = saved_gate(model, arguments.adapter)
        if gate is None:
            raise UserError(
                f"{arguments.adapter}: there is no domain gate in this adapter folder", "check-gate.no-gate"
            )
    else:
        gate = None
        for name, paths in known.items():
            gate = fit_gate(model, name, (read_image(path) for path in paths), gate)
        assert gate is not None
    if without := sorted(gate.domains.keys() ^ own.keys()):
        raise UserError(
            f"domains and --own differ in {', '.join(without)}: every domain that the gate knows needs held-out "
            "pictures of its own, --own NAME=FOLDER",
            "check-gate.own",
        )
    if taken := sorted(own.keys() & other.keys()):
        raise UserError(f"--other {taken[0]}: that is a domain's name; choose another one", "check-gate.other")
    strangers = {
        name: {**{each: [*known.get(each, []), *own[each]] for each in own if each != name}, **other} for name in own
    }
    if lonely := [name for name, sets in strangers.items() if not sets]:
        raise UserError(f"nothing to tell {lonely[0]} from: give --other NAME=FOLDER", "check-gate.other")
    report, pictures = check(Features(model, config.model.name), gate, own, strangers)
    print_table(report)
    if arguments.json:
        with user_errors(Path(arguments.json)):
            text = json.dumps({"domains": report}, indent=2, ensure_ascii=False)
            write_atomically(Path(arguments.json), lambda path: Path(path).write_text(text + "\n", encoding="utf-8"))
    if arguments.sheet:
        with user_errors(Path(arguments.sheet)):
            draw_worst(pictures).save(arguments.sheet)
        print(f"the worst pictures: {arguments.sheet}")


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = cli.parser(
        __doc__,
        "python -m tools.check_gate --config src/configs/mope.yaml --known polyps=train --own polyps=test "
        "--other street=street",
    )
    cli.add_config_arguments(parser)
    for flag, what in (
        ("known", "pictures to fit a gate to"), ("own", "held-out pictures of a domain"),
        ("other", "pictures of no domain"),
    ):  # fmt: skip
        parser.add_argument(f"--{flag}", action="append", metavar="NAME=FOLDER", help=f"{what}; may come again")
    parser.add_argument("--adapter", metavar="PATH", help="an adapter folder with a gate, or a run's checkpoint")
    parser.add_argument("--json", metavar="FILE", help="write the report there")
    parser.add_argument("--sheet", metavar="PNG", help="draw the worst pictures of every domain there")
    return parser


if __name__ == "__main__":
    cli.run(main, build_parser())
