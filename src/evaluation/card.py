"""The model card that lies beside an adapter as ``README.md``: what it is, what it learned, what it forgot.

Its head is the front matter of the Hugging Face hub: https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ..config import Config, DomainConfig, Split, image_size_of
from ..core.errors import UserError
from ..core.files import write_text
from ..data.loading import load_split
from ..data.options import LoadOptions
from ..gating.domain_gate import GATE_FILE, DomainGate
from ..lora.adapter_io import WEIGHTS_FILE, read_adapter_config
from ..models.checkpoint import ADAPTER_FOLDER
from .results import Comparison
from .tables import GATE_TITLE, gate_table, legend, rates_line, table

CARD_FILE = "README.md"

_ON_THE_HUB = {
    "sam2.1_hiera_tiny": "facebook/sam2.1-hiera-tiny",
    "sam2.1_hiera_small": "facebook/sam2.1-hiera-small",
    "sam2.1_hiera_base_plus": "facebook/sam2.1-hiera-base-plus",
    "sam2.1_hiera_large": "facebook/sam2.1-hiera-large",
}
"""What the hub calls the official bases."""

_PACKAGES = ("torch", "sam2", "safetensors")


def write_card(
    folder: Path,
    config: Config,
    comparisons: list[Comparison],
    split: Split,
    about: str,
    gate: DomainGate | None,
) -> None:
    """Write the card into an adapter folder.

    Args:
        folder: the adapter's.
        config: the run that made it.
        comparisons: base and adapted model, domain by domain: the learned ones first, as the config has them.
        split: which split of the learned ones.
        about: what the scores mean, in one line.
        gate: the adapter's domain gate.

    Raises:
        UserError: the folder holds no adapter, or the card cannot be written.
    """
    about = read_adapter_config(folder)
    learned = len(config.dataset.domains)
    names = ", ".join(data.name for data in config.dataset.domains)
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(config, comparisons[:learned], split), sort_keys=False)}---",
        f"# Adapter for {config.model.name}: {names}",
        f"Adapters ({config.lora.method}) for SAM 2, trained on {names}; the base's weights are not in this folder and "
        "stay as they are.",
        _base(config, about.base_fingerprint),
        _data(config, comparisons[:learned], split),
        _method(config),
        _scores(about, comparisons, learned),
        _gate(comparisons, gate),
        _licence(config),
        _loading(config),
        _versions(),
    ]
    write_text(folder / CARD_FILE, "\n\n".join(part for part in parts if part) + "\n")


def card_folder(output: Path, checkpoint: str | Path | None) -> Path | None:
    """The adapter folder that scores of a checkpoint are about: the run's own, None if they are of anything else."""
    adapter = output / ADAPTER_FOLDER
    own = (adapter, output / "checkpoints" / "best.pt")
    if checkpoint is None or Path(checkpoint) not in own or not (adapter / WEIGHTS_FILE).is_file():
        return None
    return adapter


def _front_matter(config: Config, learned: list[Comparison], split: Split) -> dict[str, Any]:
    results = [
        {
            "task": {"type": "mask-generation"},
            "dataset": {"name": c.domain.name, "type": c.domain.name, "split": split},
            "metrics": [
                {"type": score, "value": round(c.adapted.scores[score], 4)} for score in ("J", "F", "J&F") if c.adapted
            ],
        }
        for c in learned
    ]
    content: dict[str, Any] = {"library_name": "sam2", "pipeline_tag": "mask-generation"}
    if config.model.name in _ON_THE_HUB:
        content["base_model"] = _ON_THE_HUB[config.model.name]
        content["base_model_relation"] = "adapter"
    content["tags"] = ["sam2", "segmentation", "video-object-segmentation", config.lora.method]
    name = "-".join([config.model.name, config.lora.method, *(data.name for data in config.dataset.domains)])
    return {**content, "model-index": [{"name": name, "results": results}]}


def _base(config: Config, fingerprint: str) -> str:
    checkpoint = config.model.checkpoint
    weights = Path(checkpoint).name if checkpoint else f"random weights of seed {config.training.seed}"
    return (
        f"## Base\n\n`{config.model.name}` ({weights}) at {image_size_of(config.model)} px. Fingerprint of its weights "
        f"(SHA-256):\n`{fingerprint}`; on another base the adapter refuses to load."
    )


def _data(config: Config, learned: list[Comparison], split: Split) -> str:
    lines = ["## Data", "", f"| domain | images or videos, train | {split} | objects scored | licence |"]
    lines.append("|---|--:|--:|--:|---|")
    for data, c in zip(config.dataset.domains, learned, strict=True):
        count, licence = _training_count(data, config), data.license or "not stated"
        lines.append(f"| {data.name} | {count} | {len(c.base.videos)} | {c.base.objects} | {licence} |")
    return "\n".join(lines)


def _training_count(data: DomainConfig, config: Config) -> str:
    try:
        return str(len(load_split(data, "train", LoadOptions.from_config(config))))
    except UserError:  # the adapter may be scored where its training data are not
        return "not here"


def _method(config: Config) -> str:
    lora, training, clip = config.lora, config.training, config.dataset.clip
    kind = f"rank {lora.rank}, alpha {lora.alpha:g}"
    if lora.method == "mope":
        kind += f", {lora.experts} experts, top {lora.top_k} per {lora.router.level}"
    distilled = f"weight {training.distill.weight:g}" if training.distill.weight else "none"
    batch = training.batch_size * training.gradient_accumulation_steps
    rows = {
        "method": f"{lora.method}: {kind}",
        "adapted layers": ", ".join(f"`{target}`" for target in lora.target_modules),
        "length": f"at most {training.max_epochs} epochs; the best checkpoint by J on the validation set",
        "a step": f"{batch} clips of {clip.frames} frames, up to {clip.max_objects} objects each",
        "learning rate": f"{training.learning_rate:g}, weight decay {training.weight_decay:g}",
        "prompts": f"mask {training.prompts.mask:g}, box {training.prompts.box:g}, point {training.prompts.point:g}",
        "self-distillation": distilled,
        "seed": str(training.seed),
    }
    return "\n".join(["## Method", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _scores(about: str, comparisons: list[Comparison], learned: int) -> str:
    lines = ["## Scores", "", f"{about}.", "", table(comparisons, markdown=True), ""]
    lines += legend(comparisons)
    lines += ["", "What was forgotten, adapters forced on:"]
    for c in comparisons[learned:]:
        if c.adapted is not None:
            before, after = c.base.scores["J"], c.adapted.scores["J"]
            lines.append(
                f"- {c.domain.name}: J {before:.3f} with the base, {after:.3f} adapted ({after - before:+.3f})"
            )
    if len(comparisons) == learned:
        lines.append("- not measured: the run names no domain to keep under `evaluation.domains`")
    return "\n".join(lines)


def _gate(comparisons: list[Comparison], gate: DomainGate | None) -> str:
    if gate is None:
        return ""
    known = ", ".join(gate.domains)
    return (
        f"## Domain gate\n\n`{GATE_FILE}` knows {known}. It looks at a video's prompted frame and leaves videos of "
        f"other domains to the base.\n\n{GATE_TITLE}\n\n{gate_table(comparisons, markdown=True)}\n\n"
        f"Of these videos, {rates_line(comparisons)} (reject: of learned domains, left to the base; accept: of others, "
        "adapted)."
    )


def _licence(config: Config) -> str:
    base = "SAM 2 and its official checkpoints are Apache-2.0, as is the program that trained this adapter."
    return (
        f"## Licence\n\n{base} What licence this adapter may have depends on its training data, too: their licences "
        "are for whoever trained it to state (`dataset.license` of the run, shown above)."
    )


def _loading(config: Config) -> str:
    return f"""## Loading

With SAM2-MoPE's code and the base's weights at hand, and this folder at `adapter`:

```python
from ..config import parse_config
from ..models.sam2.build import build_model
from ..models.checkpoint import load_trained
from ..models.sam2.gate_hooks import install_saved_gate
from ..models.sam2.train_forward import as_video_predictor

config = parse_config({{"model": {config.model.model_dump(mode="json")}}}, "model card")
model = build_model(config.model)
load_trained(model, "adapter")
install_saved_gate(model, "adapter")
predictor = as_video_predictor(model)  # a stock SAM2VideoPredictor
```"""


def _versions() -> str:
    found = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    return f"## Versions\n\nPython {platform.python_version()}, {found}."
