"""The one schema of the one YAML: what a run is, checked before anything starts.

``load_config(path, overrides)`` gives a :class:`Config` or raises :class:`~src.core.errors.UserError` listing every mistake
with its dotted key. ``Config.to_yaml`` writes the resolved config, from which the run can be repeated.
"""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..core.errors import UserError

ModelName = Literal[
    "sam2_nano", "sam2.1_hiera_tiny", "sam2.1_hiera_small", "sam2.1_hiera_base_plus", "sam2.1_hiera_large"
]
Method = Literal["mope", "lora", "full", "decoder", "none"]
ADAPTER_METHODS: tuple[Method, ...] = ("mope", "lora")
Prompt = Literal["mask", "box", "point"]
Protocol = Literal["after_prompt", "davis", "sav"]
Split = Literal["train", "valid", "test"]
DomainName = Annotated[str, Field(min_length=1, pattern=r"^[^/\\]*[^/\\. ]$")]
"""A name for files and tables: without slashes, and not ending in a dot or a space."""

GATE_MODES = ("auto", "on", "off")
"""Of the domain gate; beside them it takes a domain's name."""

TAKEN_NAMES = ("source", *GATE_MODES)
"""That no domain may have; ``source`` is the bundled base's own."""

Format = Literal["auto", "coco", "ytvis", "davis", "sav", "folder"]


class Section(BaseModel):
    """A section of the YAML: unknown keys are mistakes, values are coerced only where nothing is lost."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=())


AnySection = TypeVar("AnySection", bound=Section)


class ModelConfig(Section):
    """Which SAM 2, with which weights."""

    name: ModelName = "sam2_nano"
    checkpoint: str | None = Field(None, description="official .pt or safetensors; null: random weights")
    image_size: int | None = Field(None, gt=0, description="pixels, a multiple of 32; null: the model's own")

    @field_validator("image_size")
    @classmethod
    def _multiple_of_stride(cls, value: int | None) -> int | None:
        if value is not None and value % 32:
            raise ValueError(f"must be a multiple of 32, such as {max(32, round(value / 32) * 32)}")
        return value


class RouterConfig(Section):
    """The top-k gate of a MoPE layer."""

    balance_weight: float = Field(0.01, ge=0, description="weight of the load-balancing loss")
    z_weight: float = Field(0.001, ge=0, description="weight of the router z-loss")
    null_expert: bool = Field(False, description="one more expert to choose, which adds nothing")
    jitter: float = Field(0.0, ge=0, lt=1, description="multiplicative noise on the gate's input, training only")
    bias: bool = Field(True, description="whether the gate has a bias")
    level: Literal["token", "frame", "video"] = Field("token", description="what one decision of the gate holds for")
    noise: float = Field(0.0, ge=0, description="standard deviation of noise on the gate's logits, training only")
    bias_rate: float = Field(
        0.0, ge=0, description="balance without a loss: how far an expert's selection bias moves per step; 0: off"
    )


class LoraConfig(Section):
    """Which adapters, and where."""

    method: Method = "mope"
    rank: int = Field(4, gt=0)
    alpha: float = Field(8.0, gt=0, description="the adapter's output is scaled by alpha / rank")
    experts: int = Field(10, gt=0, description="experts per layer (mope)")
    top_k: int = Field(2, gt=0, description="experts chosen per token (mope)")
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] = Field(
        default_factory=lambda: [f"memory_attention.*.{p}_proj" for p in ("q", "k", "v", "out")],
        min_length=1,
        description="dotted suffixes or globs of Linear layers, or 'all'",
    )
    router: RouterConfig = Field(default_factory=RouterConfig)

    @model_validator(mode="after")
    def _top_k_fits(self) -> LoraConfig:
        choices = self.experts + self.router.null_expert
        if self.top_k > choices:
            raise ValueError(f"top_k is {self.top_k}, but there are only {choices} experts to choose from")
        return self


class MotionConfig(Section):
    """Simulated camera and object motion that turns a still image into a clip; magnitudes are per clip."""

    degrees: float = Field(12.0, ge=0, le=180, description="rotation over the clip, up to ±")
    translate: float = Field(0.12, ge=0, le=1, description="shift over the clip, as a share of the image side, up to ±")
    scale: float = Field(0.15, ge=0, lt=1, description="growth or shrinking over the clip, up to ±")
    shear: float = Field(5.0, ge=0, le=45, description="degrees, up to ±")
    brightness: float = Field(0.15, ge=0, lt=1)
    contrast: float = Field(0.15, ge=0, lt=1)
    elastic: float = Field(
        0.02, ge=0, le=0.2, description="smooth warp: its deviation, as a share of half the image side"
    )
    occlusion: float = Field(0.2, ge=0, le=1, description="chance that something passes in front")


class ClipConfig(Section):
    """How clips are cut from videos."""

    frames: int = Field(4, ge=1)
    max_objects: int = Field(3, ge=1, description="objects drawn per clip")
    max_stride: int = Field(1, ge=1, description="frames of a video are taken in steps of 1 to this many, drawn a clip")
    reverse: float = Field(0.0, ge=0, le=1, description="chance that a video is played backwards")
    motion: MotionConfig = Field(default_factory=MotionConfig)


class AugmentationConfig(Section):
    """What is drawn for a whole training clip, and for each frame (``frame_*``); the defaults are SAM 2's recipe."""

    flip: float = Field(0.5, ge=0, le=1, description="chance that the clip is mirrored")
    degrees: float = Field(25.0, ge=0, le=180, description="rotation, up to ±")
    shear: float = Field(20.0, ge=0, le=45, description="degrees, up to ±")
    scale: float = Field(0.0, ge=0, lt=1, description="growth or shrinking, up to ±")
    translate: float = Field(0.0, ge=0, le=1, description="shift, as a share of the image side, up to ±")
    brightness: float = Field(0.1, ge=0, le=1, description="times a number within 1 ± this; so are the next two")
    contrast: float = Field(0.03, ge=0, le=1)
    saturation: float = Field(0.03, ge=0, le=1)
    grey: float = Field(0.05, ge=0, le=1, description="chance that the clip loses its colours")
    frame_brightness: float = Field(
        0.1, ge=0, le=1, description="as brightness, drawn for each frame; so are the next two"
    )
    frame_contrast: float = Field(0.05, ge=0, le=1)
    frame_saturation: float = Field(0.05, ge=0, le=1)


class DomainConfig(Section):
    """One data set, all of it: where it lies, and the name it is reported under."""

    name: DomainName
    img_folder: str = Field(description="images, frames or videos; what the annotations' file names are relative to")
    ann_file: str | None = Field(None, description="annotation file or folder; null: looked for in img_folder")
    format: Format = Field("auto", description="auto: recognised by the files")
    videos: str | list[str] | None = Field(
        None, description="only these: names, or a text file with one a line (DAVIS' ImageSets); null: all"
    )


class SetConfig(Section):
    """A domain to learn: its splits, each an image folder and annotations."""

    name: DomainName = "target"
    weight: float = Field(1.0, gt=0, description="its share of the training clips is weight / sum of weights")
    license: str | None = Field(None, description="of the data, as the adapter's model card states it")
    format: Format = Field("auto", description="auto: recognised by the files")
    train_img_folder: str
    train_ann_file: str | None = None
    train_videos: str | list[str] | None = None
    val_img_folder: str | None = None
    val_ann_file: str | None = None
    val_videos: str | list[str] | None = None
    test_img_folder: str | None = None
    test_ann_file: str | None = None
    test_videos: str | list[str] | None = None


class DatasetConfig(SetConfig):
    """The new domain, or several of them in one run, and how clips are made of them."""

    train_img_folder: str = "data/sample/train"
    val_img_folder: str | None = "data/sample/valid"
    more: list[SetConfig] = Field(default_factory=list, description="further domains to learn in the same run")
    skip_bad: bool = Field(False, description="leave damaged entries out, listed in skipped.json, instead of stopping")
    follow_links: bool = Field(
        False, description="use images, masks and videos outside their folder that a link leads to"
    )
    resolution: int | None = Field(None, gt=0, description="pixels; null: model.image_size")
    max_ann_per_img: int = Field(200, gt=0, description="annotations kept per image, largest first")
    min_object_side: float = Field(
        1.0, ge=0, description="objects smaller than this, in pixels at the model's resolution, are not trained on"
    )
    clip: ClipConfig = Field(default_factory=ClipConfig)
    augmentation: AugmentationConfig | None = Field(
        default_factory=AugmentationConfig, description="of training clips; null: none"
    )

    @property
    def sets(self) -> list[SetConfig]:
        """All domains to learn, the first one first."""
        return [self, *self.more]


class PromptConfig(Section):
    """Shares of prompt types in training, and correction clicks on the prompted frame (point and box prompts)."""

    mask: float = Field(0.5, ge=0, le=1)
    box: float = Field(0.25, ge=0, le=1)
    point: float = Field(0.25, ge=0, le=1)
    correction_clicks: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> PromptConfig:
        total = self.mask + self.box + self.point
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares mask + box + point must sum to 1, not {total:g}")
        return self


class LossConfig(Section):
    """Weights of SAM 2's losses, summed over frames as in its own recipe."""

    mask: float = Field(20.0, ge=0, description="focal loss")
    dice: float = Field(1.0, ge=0)
    iou: float = Field(1.0, ge=0, description="predicted IoU, L1")
    occlusion: float = Field(1.0, ge=0, description="object score")


class DistillConfig(Section):
    """Self-distillation: the base teaches the adapted model on general clips without labels."""

    weight: float = Field(0.0, ge=0, description="of the distillation loss; 0: off")
    folder: str | None = Field(
        None, description="general images and videos; null: clips of the bundled base's source domain (sam2_nano)"
    )
    clips: int = Field(500, ge=3, description="general clips; the teacher's answers on them are kept")
    batch_size: int = Field(2, gt=0, description="general clips per optimizer step that is taught")
    every: int = Field(1, gt=0, description="1: every step is taught; N: every N-th, N times as strongly")
    objects: int = Field(2, gt=0, description="things followed per clip")
    features_weight: float = Field(0.0, ge=0, description="of the distance of memory-conditioned features")


class PenaltyConfig(Section):
    """A penalty on how far the weights that train move from where they began; a baseline, beside distillation."""

    kind: Literal["l2sp", "ewc"] = Field("l2sp", description="every weight alike, or by its Fisher information")
    weight: float = Field(0.0, ge=0, description="of the penalty; 0: off")
    clips: int = Field(64, ge=3, description="general clips that the Fisher information is measured on (ewc)")
    folders: list[str] = Field(
        default_factory=list, description="images and videos to measure it on, beside the general clips (ewc)"
    )


class FeatureCacheConfig(Section):
    """Keeping what a frozen image encoder makes of training clips, of which there are so many views and no more."""

    where: Literal["memory", "disk"] = Field("memory", description="main memory, or files in output_dir")
    budget_gb: float = Field(4.0, ge=0, description="room for features; clips beyond it are encoded every time")
    views: int = Field(4, gt=0, description="augmented views of every clip, which come again in turn, epoch by epoch")


class TrainingConfig(Section):
    """The trainer."""

    max_epochs: int = Field(10, gt=0)
    max_steps: int | None = Field(None, gt=0, description="stop after this many optimizer steps")
    batch_size: int = Field(4, gt=0, description="clips per forward pass")
    gradient_accumulation_steps: int = Field(1, gt=0)
    clips_per_image: int | None = Field(
        None,
        gt=0,
        description="clips per epoch for each image or video of all sets together; null: so many that it has 256",
    )
    clips_per_epoch: int | None = Field(None, gt=0, description="clips per epoch in all, whatever clips_per_image says")
    learning_rate: float = Field(1e-3, gt=0)
    min_learning_rate: float = Field(0.0, ge=0, description="where the cosine ends")
    warmup_steps: int = Field(10, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0, description="null: no clipping")
    use_amp: Literal[True, False, "auto"] = Field("auto", description="auto: on CUDA")
    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    activation_checkpointing: bool = False
    cache_features: FeatureCacheConfig | None = Field(
        None, description="keep what the image encoder makes of clips, where nothing in it trains; null: no"
    )
    enable_segmentation: bool = Field(
        True, description="false: train the IoU and occlusion scores only, without mask losses"
    )
    prompts: PromptConfig = Field(default_factory=PromptConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    penalty: PenaltyConfig = Field(default_factory=PenaltyConfig)
    start_from: str | None = Field(
        None, description="a run's checkpoint, or an adapter folder: train its weights on; null: the base's"
    )
    extend: str | None = Field(
        None, description="an adapter folder: learn a group of experts beside those that are in it (--extend)"
    )
    adapter_init: Literal["random", "data"] = Field(
        "random", description="data: the new adapters begin with what their layers see of the new domain"
    )
    strengths: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [1.0],
        min_length=1,
        description="shares of what the adapters learned; the one that validates best is kept at the end",
    )
    domain_gate: bool = Field(True, description="fit a domain gate at the end, which tells learned domains from others")
    validate_every_epochs: int = Field(1, gt=0)
    save_every_steps: int | None = Field(None, gt=0, description="last.pt at least every so many steps")
    save_every_minutes: float | None = Field(10.0, ge=0, description="last.pt at least every so many minutes")
    save_every_epochs: int = Field(0, ge=0, description="epoch_*.pt every so many epochs; 0: best and last only")
    early_stopping_patience: int | None = Field(None, gt=0, description="validations without a better J")
    on_non_finite: Literal["stop", "skip"] = Field(
        "stop", description="what a loss or gradient that is infinite or NaN makes of its step"
    )
    max_skips: int = Field(10, gt=0, description="steps skipped in a row before the run stops all the same")
    overlay_clips: int = Field(4, ge=0, description="validation clips drawn into TensorBoard")
    watch_clips: int = Field(
        4,
        ge=0,
        description="clips on which validation also scores other prompts, and each domain that must be kept; 0: none",
    )
    num_workers: int = Field(1, ge=0, description="processes that load data")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    seed: int = Field(0, ge=0)


class EvaluationConfig(Section):
    """What the table says."""

    prompt: Prompt = "mask"
    protocol: Protocol = Field("after_prompt", description="which frames are scored; davis, sav: as their own tools")
    clicks: int = Field(0, ge=0, description="correction clicks of the table of single images; 0: no such table")
    frames: int = Field(8, ge=2, description="frames of the clips that still images become")
    max_images: int | None = Field(None, gt=0, description="images per domain; null: all")
    max_objects: int = Field(5, gt=0, description="objects per image, largest first")
    max_side: int = Field(1024, gt=0, description="larger still images are scored at this many pixels")
    source_clips: int = Field(
        24, ge=0, description="held-out clips of the bundled base's source domain (sam2_nano); 0: none"
    )
    domains: list[DomainConfig] = Field(default_factory=list)
    overlays: int = Field(3, ge=0, description="best and worst cases drawn per domain")


class Config(Section):
    """A whole run."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    dataset: DatasetConfig = Field(default_factory=DatasetConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    output_dir: str = "experiments"

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        training = self.training
        if training.extend and training.start_from:
            raise ValueError("training.extend and training.start_from exclude each other")
        if training.extend and (len(self.dataset.sets) > 1 or self.lora.method not in ADAPTER_METHODS):
            raise ValueError("training.extend learns one domain at a time, with lora.method mope or lora")
        if training.strengths != [1.0] and (training.start_from or self.lora.method not in ADAPTER_METHODS):
            raise ValueError("training.strengths needs new adapters: lora.method mope or lora, and no start_from")
        if training.adapter_init == "data" and self.lora.method not in ADAPTER_METHODS:
            raise ValueError(f"training.adapter_init is data, but lora.method {self.lora.method} has no adapters")
        if training.adapter_init == "data" and training.start_from:
            raise ValueError("training.adapter_init is data, but training.start_from says how the adapters begin")
        return self

    @model_validator(mode="after")
    def _unique_domains(self) -> Config:
        names = [data.name for data in self.dataset.sets] + [domain.name for domain in self.evaluation.domains]
        taken = {name for name in names if names.count(name) > 1 or name in TAKEN_NAMES}
        if taken:
            raise ValueError(
                "names under dataset, dataset.more and evaluation.domains must be unique and none of "
                f"{', '.join(TAKEN_NAMES)}: {', '.join(sorted(taken))}"
            )
        return self

    def to_yaml(self) -> str:
        """The whole config, defaults included, as YAML that :func:`load_config` reads back to an equal one."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-4`` as a number (YAML 1.1 wants ``1.0e-4``) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


MAX_YAML_CHARACTERS, MAX_YAML_VALUES = 10_000_000, 1_000_000
"""A longer text, or one with more values once its aliases are written out, is no config."""


def _plain_data(text: str) -> Any:
    """What YAML says, read by a safe loader.

    Raises:
        ValueError: it is not YAML, or too long, too deep, or too much with its aliases written out.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise ValueError(f"it is longer than {MAX_YAML_CHARACTERS} characters")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_values(node, {}) > MAX_YAML_VALUES:
            raise ValueError(f"its aliases make more than {MAX_YAML_VALUES} values of it")
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # a tag on a value that it does not fit makes a constructor raise nearly anything
        raise ValueError(_one_line(error) or type(error).__name__) from None
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds, each alias counted as what it stands for; too many where it holds itself."""
    if id(node) not in known:
        known[id(node)] = MAX_YAML_VALUES + 1  # as long as it is being counted
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        held = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in pairs for each in pair]
        known[id(node)] = 1 + sum(_count_values(each, known) for each in held)
    return known[id(node)]


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes text which :class:`_Loader` would read as a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def one_line_yaml(value: Any) -> str:
    """A value as it stands behind a key of the YAML, on one line; :func:`load_config` reads it back."""
    text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.strip()[1:-1]


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a run's YAML, apply ``a.b=c`` overrides, and validate all of it at once.

    Raises:
        UserError: the file is missing or is not YAML, or values are wrong: every mistake, with its dotted key.
    """
    raw = read_yaml(path)
    for override in overrides or []:
        _apply_override(raw, override)
    return parse_config(raw, str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of sections as plain data. Raises UserError if it is missing, not YAML, or something else."""
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            raw = _plain_data(file.read(MAX_YAML_CHARACTERS + 1))
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file{_near_files(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected sections such as 'model:' and 'training:', found {type(raw).__name__}")
    return raw


def parse_config(raw: dict[str, Any], origin: str) -> Config:
    """Validate a plain mapping; ``origin`` names it in messages. Raises UserError listing every mistake."""
    return parse_section(Config, raw, origin)


def parse_section(kind: type[AnySection], raw: dict[str, Any], origin: str) -> AnySection:
    """:func:`parse_config` for any section, such as one that another command's YAML is made of."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        mistakes = [_describe(e, kind) for e in error.errors(include_url=False)]
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    raise UserError(f"{origin}: {count}\n" + "\n".join(f"  {mistake}" for mistake in mistakes))


def set_key(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a value by its dotted key. Raises UserError where a part of the key is a value, not a section."""
    keys = dotted.split(".")
    section: Any = raw
    for depth, key in enumerate(keys[:-1]):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise UserError(f"'{'.'.join(keys[: depth + 1])}' is a value, not a section")
    section[keys[-1]] = value


def _apply_override(raw: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: write it as section.key=value, such as training.learning_rate=5e-4")
    try:
        value = _plain_data(text)
    except ValueError as error:
        raise UserError(f"--set {override}: the value is not valid YAML: {error}") from None
    try:
        set_key(raw, dotted.strip(), value)
    except UserError as error:
        raise UserError(f"--set {override}: {error}") from None


def _describe(error: Any, kind: type[BaseModel]) -> str:
    location = [str(part) for part in error["loc"]]
    dotted = ".".join(location) or "config"
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], kind)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(known)}"
        return f"{dotted}: unknown key; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    return (
        f"{dotted}: {message[0].lower() + message[1:]} (found {error['input']!r:.80})"
        if not isinstance(error["input"], (dict, BaseModel))
        else f"{dotted}: {message[0].lower() + message[1:]}"
    )


def _known_keys(location: list[str], model: type[BaseModel]) -> list[str]:
    for part in location:
        if part not in model.model_fields:  # a place in a list, or a name that the user gave
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        candidates += [inner for each in candidates for inner in getattr(each, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)


def _near_files(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("src/configs")
    names = [p.name for p in sorted(folder.glob("*.yaml"))]
    return f"; {folder} holds {', '.join(names)}" if names else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
