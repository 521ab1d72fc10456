"""A model is known by its spec: the config asks it for sizes, names and targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from torch import nn

from src.config import Config, ModelConfig, image_size_of, parse_config
from src.models import spec as specs
from src.models.activation_checkpointing import checkpoint_activations
from src.models.spec import ModelSpec, model_names, model_spec, register_model, spec_of
from tests.errors import refuses


class Toy(nn.Module):
    """Blocks in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(2, 2)


@pytest.fixture
def toy() -> Iterator[ModelSpec]:
    """A model with stride 14, as long as a test runs."""
    yield register_model(
        replace(
            model_spec("sam2_nano"),
            name="toy",
            image_size=1008,
            stride=14,
            default_targets=("head",),
            target_aliases={"trunk": ("blocks.*.0", "stem")},
            checkpointed_blocks=("blocks.*",),
            model_class=f"{__name__}.Toy",
            source_world=None,
        )
    )
    del specs._SPECS["toy"]


@pytest.mark.parametrize("size", [1008, 14])
def test_a_size_that_suits_the_models_stride(toy, size):
    assert image_size_of(ModelConfig(name="toy", image_size=size)) == size
    assert image_size_of(ModelConfig(name="toy")) == 1008


def test_a_size_that_does_not_names_one_that_does(toy):
    with refuses("config.mistakes", "model.image_size", " 14", " 1022"):
        parse_config({"model": {"name": "toy", "image_size": 1024}}, "run.yaml")
    with refuses("config.mistakes", "model.image_size", " 32", " 1024"):
        parse_config({"model": {"name": "sam2.1_hiera_tiny", "image_size": 1008}}, "run.yaml")


def test_an_unknown_model_is_one_mistake_that_names_the_nearest():
    with refuses("config.mistakes", "run.yaml: 1 ", "model.name", "'sam2.1_hiera_tiny'"):
        parse_config({"model": {"name": "sam2.1_hira_tiny", "image_size": 100}}, "run.yaml")


def test_targets_left_out_are_the_models_own(toy):
    assert Config.model_validate({"model": {"name": "toy"}}).lora.target_modules == ["head"]
    assert Config().lora.target_modules == list(model_spec("sam2_nano").default_targets)
    given = Config.model_validate({"model": {"name": "toy"}, "lora": {"target_modules": ["all"]}})
    assert given.lora.target_modules == ["all"]


def test_an_alias_stands_for_its_patterns(toy):
    config = Config.model_validate({"model": {"name": "toy"}, "lora": {"target_modules": ["trunk", "head"]}})
    assert config.lora.target_modules == ["blocks.*.0", "stem", "head"]
    assert parse_config(config.model_dump(), "again") == config


def test_the_spec_of_a_model_is_found_by_its_class(toy):
    assert spec_of(Toy()) is toy
    assert spec_of(type("Derived", (Toy,), {})()) is toy
    with pytest.raises(TypeError, match=r"torch\.nn\.modules\.linear\.Linear"):
        spec_of(nn.Linear(1, 1))


def test_blocks_to_checkpoint_are_whole_parts_of_names(toy):
    assert checkpoint_activations(Toy(), toy.checkpointed_blocks) == ["blocks.0", "blocks.1"]


def test_what_the_models_that_ship_have_in_common():
    shipped = [model_spec(name) for name in model_names()]
    assert len(shipped) == len({spec.name for spec in shipped}) >= 5
    for spec in shipped:
        spec.check_image_size(spec.image_size)
        assert spec.load().__name__.startswith("src.models.")
