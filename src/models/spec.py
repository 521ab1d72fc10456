"""What the rest of the program knows of a model: facts, and where the code that builds it is.

Nothing here imports torch or a model's package, so that a mistake in a YAML is reported at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from .protocols import ModelRoom


@dataclass(frozen=True)
class WeightsLicence:
    """The licence of a model's weights.

    Attributes:
        name: as its text calls itself.
        link: where that text is.
        hub_id: the Hugging Face hub's name of it; None where the hub knows it as ``other``.
        covers_derivatives: whether adapters trained on the weights, and weights changed by training, stay under it.
    """

    name: str
    link: str
    hub_id: str | None = None
    covers_derivatives: bool = False

    @property
    def statement(self) -> str:
        """What has to be said beside anything made of the weights: one or two sentences."""
        stated = f"The base's weights are under the {self.name}: {self.link}"
        if not self.covers_derivatives:
            return f"{stated}."
        return (
            f"{stated}. Adapters trained on them and weights merged with them are derivative works: whoever passes "
            "them on does so under the same licence, with a copy of it."
        )


@dataclass(frozen=True)
class ModelSpec:
    """A model by name.

    Attributes:
        name: what ``model.name`` says.
        task: the name of the task that it is trained for (:mod:`src.tasks`).
        room: the module with the functions that build, run and adapt it (:mod:`src.models.protocols` lists them),
            imported when it is asked for (:meth:`load`).
        image_size: its own side in pixels, which ``model.image_size: null`` stands for.
        stride: image sizes are multiples of it.
        pixel_mean, pixel_std: of RGB in 0–1, channel by channel.
        default_targets: what ``lora.target_modules`` is by default.
        target_aliases: short names that ``lora.target_modules`` takes, and the patterns that they stand for.
        encoder, memory, decoder: prefixes of the dotted names of these parts' modules. Still images pass through all
            but ``memory``.
        checkpointed_blocks: patterns of the blocks whose activations are recomputed with
            ``training.activation_checkpointing``; a ``*`` is one part of a dotted name.
        model_class: dotted name of the class that all models of its kind are instances of (:func:`spec_of`); empty
            where its room gives each model an attribute ``spec``.
        encoder_strides: pixels per token of the encoder's feature maps, fine to coarse.
        memory_stride: pixels per token of what memory attention works on; None without memory.
        checkpoint: the file, from a clone's root, in which its weights are looked for when a run is suggested.
        recipe: the YAML in ``src/configs`` that trains it.
        gpu_memory: GiB of a GPU from which on it is suggested; None: it is suggested where no other is.
        hub: the repository of its official weights on the Hugging Face hub; None where there is none.
        licence: of its weights; None where they are not known, such as those of a model of your own.
        source_world: the synthetic world that its bundled weights were trained on; None where there are none.
        requires: packages that it needs beyond the project's own, by the name that pip takes.
        details: what only its own room reads, such as the config file that describes it.
    """

    name: str
    task: str
    room: str
    image_size: int
    stride: int
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    default_targets: tuple[str, ...]
    encoder: tuple[str, ...]
    memory: tuple[str, ...]
    decoder: tuple[str, ...]
    target_aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    checkpointed_blocks: tuple[str, ...] = ()
    model_class: str = ""
    encoder_strides: tuple[int, ...] = ()
    memory_stride: int | None = None
    checkpoint: str | None = None
    recipe: str | None = None
    gpu_memory: int | None = None
    hub: str | None = None
    licence: WeightsLicence | None = None
    source_world: str | None = None
    requires: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)

    def load(self) -> ModelRoom:
        """Import the room."""
        return cast("ModelRoom", import_module(self.room, __package__))

    def check_image_size(self, size: int) -> None:
        """Raise ValueError, with a size that fits, unless the model can see images of this side."""
        if size % self.stride:
            near = max(self.stride, round(size / self.stride) * self.stride)
            raise ValueError(f"must be a multiple of {self.stride}, such as {near}")

    def expand_targets(self, entries: Iterable[str]) -> list[str]:
        """Return entries of ``lora.target_modules`` with aliases replaced by what they stand for."""
        return [pattern for entry in entries for pattern in self.target_aliases.get(entry, (entry,))]


_SPECS: dict[str, ModelSpec] = {}


def register_model(spec: ModelSpec) -> ModelSpec:
    """Make a model known by its name; one of the same name is replaced."""
    _SPECS[spec.name] = spec
    return spec


def model_spec(name: str) -> ModelSpec:
    """Return the model of this name. Raises KeyError where there is none."""
    return _registered()[name]


def model_names() -> list[str]:
    """Return the names of all models."""
    return list(_registered())


def spec_of(model: object) -> ModelSpec:
    """Return the spec that a model carries as its attribute ``spec``, or else that of its class.

    Of models that share a class it is the first one's. Its parts, pixels and room are those of all of them; its name
    and image size may be another's.

    Raises:
        TypeError: no registered model is of this class.
    """
    own = getattr(model, "spec", None)
    if isinstance(own, ModelSpec):
        return own
    classes = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__]
    for spec in _registered().values():
        if spec.model_class in classes:
            return spec
    raise TypeError(f"{classes[0]} is no model that src.models knows")


def _registered() -> dict[str, ModelSpec]:
    from . import zoo  # noqa: F401  (registers the models that ship)

    return _SPECS
