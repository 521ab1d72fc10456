"""The model card of an adapter, ``README.md`` in its folder: what it is, what it learned, what it forgot.

Its head is the front matter of the Hugging Face hub: https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ..config import ClipConfig, Config, DomainConfig, ModelConfig, Split, TrainingConfig, image_size_of
from ..core.errors import UserError
from ..core.files import write_text
from ..core.streams import in_markdown
from ..data.loading import load_split
from ..data.options import LoadOptions
from ..gating.domain_gate import GATE_FILE, DomainGate
from ..lora.adapter_io import WEIGHTS_FILE, read_adapter_config
from ..models.checkpoint import ADAPTER_FOLDER
from ..models.spec import ModelSpec, model_spec
from .results import Comparison
from .tables import GATE_TITLE, gate_table, legend, rates_line, table

CARD_FILE = "README.md"


def write_card(
    folder: Path,
    config: Config,
    comparisons: Sequence[Comparison],
    split: Split,
    about: str,
    gate: DomainGate | None,
) -> None:
    """Write the card into an adapter folder.

    Args:
        folder: the adapter's folder.
        config: the run that made it.
        comparisons: base and adapted model, domain by domain; the learned ones first, in the config's order.
        split: the split of the learned ones.
        about: what the scores mean, in one line.
        gate: the adapter's domain gate.

    Raises:
        UserError: the folder holds no adapter, or the card cannot be written.
    """
    sets, method, spec = config.dataset.domains, config.lora.method, model_spec(config.model.name)
    fingerprint = read_adapter_config(folder).base_fingerprint
    learned, others = comparisons[: len(sets)], comparisons[len(sets) :]
    names = [data.name for data in sets]
    shown = ", ".join(map(in_markdown, names))
    front_matter = yaml.safe_dump(_front_matter(spec, method, names, learned, split), sort_keys=False)
    parts = [
        f"---\n{front_matter}---",
        f"# Adapter for {spec.name}: {shown}",
        f"Adapters ({method}) for {spec.name}, trained on {shown}. The base's weights are not in this "
        "folder, and stay as they are.",
        _base(config.model, config.training.seed, fingerprint),
        _data(sets, _training_counts(sets, LoadOptions.from_config(config)), learned, split),
        _method(config, spec.task, comparisons[0].base.names.headline),
        _scores(about, learned, others),
        _gate(comparisons, gate),
        _licence(spec),
        _loading(config.model, spec.task),
        _versions(spec),
    ]
    write_text(folder / CARD_FILE, "\n\n".join(part for part in parts if part) + "\n")


def card_folder(output: Path, checkpoint: str | Path | None) -> Path | None:
    """Return the adapter folder that a checkpoint's scores belong to: the run's own, None for any other."""
    adapter = output / ADAPTER_FOLDER
    own = (adapter, output / "checkpoints" / "best.pt")
    if checkpoint is None or Path(checkpoint) not in own or not (adapter / WEIGHTS_FILE).is_file():
        return None
    return adapter


def _front_matter(
    spec: ModelSpec, method: str, names: Sequence[str], learned: Sequence[Comparison], split: Split
) -> dict[str, Any]:
    results = [
        {
            "task": {"type": "mask-generation"},
            "dataset": {"name": c.domain.name, "type": c.domain.name, "split": split},
            "metrics": [
                {"type": score, "value": round(c.adapted.scores[score], 4)}
                for score in c.base.names.main
                if c.adapted is not None and score in c.adapted.scores
            ],
        }
        for c in learned
    ]
    content: dict[str, Any] = {"library_name": spec.requires[0]} if spec.requires else {}
    content["pipeline_tag"] = "mask-generation"
    if spec.hub is not None:
        content["base_model"] = spec.hub
        content["base_model_relation"] = "adapter"
    if spec.licence is not None and spec.licence.covers_derivatives:
        content["license"] = spec.licence.hub_id or "other"
        if spec.licence.hub_id is None:
            content["license_name"] = spec.licence.name.lower().replace(" ", "-")
            content["license_link"] = spec.licence.link
    subject = "open-vocabulary-segmentation" if spec.task == "concepts" else "video-object-segmentation"
    content["tags"] = [*spec.requires, "segmentation", subject, method]
    name = "-".join([spec.name, method, *names])
    return {**content, "model-index": [{"name": name, "results": results}]}


def _base(model: ModelConfig, seed: int, fingerprint: str) -> str:
    weights = in_markdown(Path(model.checkpoint).name) if model.checkpoint else f"random weights of seed {seed}"
    return (
        f"## Base\n\n`{model.name}` ({weights}) at {image_size_of(model)} px. Fingerprint of its weights "
        f"(SHA-256):\n`{fingerprint}`; on another base the adapter refuses to load."
    )


def _data(sets: Sequence[DomainConfig], counts: Mapping[str, str], learned: Sequence[Comparison], split: Split) -> str:
    parts = learned[0].base.names.parts
    lines = ["## Data", "", f"| domain | images or videos, train | {split} | {parts} scored | licence |"]
    lines.append("|---|--:|--:|--:|---|")
    for data, c in zip(sets, learned, strict=True):
        licence = in_markdown(data.license or "not stated")
        lines.append(f"| {in_markdown(data.name)} | {counts[data.name]} | {c.base.size} | {c.base.parts} | {licence} |")
    return "\n".join(lines)


def _training_counts(sets: Sequence[DomainConfig], options: LoadOptions) -> dict[str, str]:
    """Return the number of images or videos of each training split."""
    counts = {}
    for data in sets:
        try:
            counts[data.name] = str(len(load_split(data, "train", options)))
        except UserError:  # the adapter may be scored where its training data are not
            counts[data.name] = "not here"
    return counts


def _method(config: Config, task: str, headline: str) -> str:
    lora, training = config.lora, config.training
    kind = f"rank {lora.rank}, alpha {lora.alpha:g}"
    if lora.method == "mope":
        kind += f", {lora.experts} experts, top {lora.top_k} per token"
    step, asked = _clips(config.dataset.clip, training) if task != "concepts" else _phrases(training)
    rows = {
        "method": f"{lora.method}: {kind}",
        "adapted layers": ", ".join(f"`{target}`" for target in lora.target_modules),
        "length": f"at most {training.max_epochs} epochs; the best checkpoint by {headline} on the validation set",
        "a step": step,
        "learning rate": f"{training.learning_rate:g}, weight decay {training.weight_decay:g}",
        **asked,
        "seed": str(training.seed),
    }
    return "\n".join(["## Method", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _clips(clip: ClipConfig, training: TrainingConfig) -> tuple[str, dict[str, str]]:
    """Return what a step of tracking is, and how its objects are prompted."""
    prompts, distill = training.prompts, training.distill
    return f"{_batch(training)} clips of {clip.frames} frames, up to {clip.max_objects} objects each", {
        "prompts": f"mask {prompts.mask:g}, box {prompts.box:g}, point {prompts.point:g}",
        "self-distillation": f"weight {distill.weight:g}" if distill.weight else "none",
    }


def _phrases(training: TrainingConfig) -> tuple[str, dict[str, str]]:
    """Return what a step of concepts is, and what is asked."""
    concepts = training.concepts
    foreign = f"; foreign: {', '.join(concepts.foreign)}" if concepts.foreign else ""
    return f"{_batch(training)} images", {
        "phrases of an image": f"up to {concepts.positives} that it shows, {concepts.negatives} that it does not show "
        f"and {concepts.hard_negatives} easily mistaken{foreign}",
        "exemplar boxes": f"with {concepts.exemplars:.0%} of the phrases shown",
    }


def _batch(training: TrainingConfig) -> int:
    return training.batch_size * training.gradient_accumulation_steps


def _scores(about: str, learned: Sequence[Comparison], others: Sequence[Comparison]) -> str:
    comparisons = [*learned, *others]
    lines = ["## Scores", "", f"{about}.", "", table(comparisons, markdown=True), ""]
    lines += legend(comparisons)
    lines += ["", "What was forgotten, adapters forced on:"]
    for c in others:
        names, both = c.base.names, c.scores_by_model()
        shown = next((name for name in (names.headline, *names.table) if name in c.base.scores), None)
        if c.adapted is not None and shown is not None:
            before, after, change = (names.format(shown, of[shown], of is both["change"]) for of in both.values())
            lines.append(f"- {in_markdown(c.domain.name)}: {shown} {before} with the base, {after} adapted ({change})")
    if not others:
        lines.append("- not measured: the run names no domain under `evaluation.domains`")
    return "\n".join(lines)


def _gate(comparisons: Sequence[Comparison], gate: DomainGate | None) -> str:
    if gate is None:
        return ""
    return (
        f"## Domain gate\n\n`{GATE_FILE}` knows {', '.join(map(in_markdown, gate.domains))}. It decides on a video's "
        "first prompted frame, and leaves videos of other domains to the base.\n\n"
        f"{GATE_TITLE}\n\n{gate_table(comparisons, markdown=True)}\n\n"
        f"Of these videos, {rates_line(comparisons)}. False rejects are videos of learned domains left to the base, "
        "false accepts those of others that were adapted."
    )


def _licence(spec: ModelSpec) -> str:
    base = f" {spec.licence.statement}" if spec.licence is not None else ""
    return (
        f"## Licence\n\nThe program that trained this adapter is Apache-2.0.{base} The licence of this adapter depends "
        "on its training data, too. Their licences are stated by whoever trained it (`license` of each data set, shown "
        "above)."
    )


def _loading(model: ModelConfig, task: str) -> str:
    code = _LOADING_CONCEPTS if task == "concepts" else _LOADING_TRACKING
    return f"""## Loading

With SAM2-MoPE installed, the base's weights at hand, and this folder at `adapter`:

```python
from sam2_mope.config import parse_config
{code.format(model=model.model_dump(mode="json"))}
```"""


_LOADING_TRACKING = """from sam2_mope.tasks.tracking.track_video import load_tracker

config = parse_config({{"model": {model}}}, "model card")
tracker = load_tracker(config, "adapter")  # with the domain gate in the folder, if there is one
predictor = tracker.predictor  # a stock video predictor with the adapters in it"""

_LOADING_CONCEPTS = """from sam2_mope.models.build import build_model
from sam2_mope.models.checkpoint import load_trained

config = parse_config({{"model": {model}}}, "model card")
predictor = build_model(config.model)  # transformers' own Sam3Model
load_trained(predictor, "adapter")  # with the adapters in it"""


def _versions(spec: ModelSpec) -> str:
    packages = ("torch", *spec.requires, "safetensors")
    found = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"## Versions\n\nPython {platform.python_version()}, {found}."
