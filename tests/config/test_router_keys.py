"""Router options of version 0.1.0 that were removed: files that carry their defaults load, others are refused."""

import pytest
from pydantic import ValidationError

from src.config import LoraConfig, load_config
from src.core.errors import UserError

DEFAULTS = {"level": "token", "jitter": 0.0, "noise": 0.0, "bias": True, "bias_rate": 0.0}


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_removed_key_at_its_default_changes_nothing(key):
    assert LoraConfig.model_validate({"router": {"z_weight": 0.5, key: DEFAULTS[key]}}) == LoraConfig(
        router={"z_weight": 0.5}
    )


@pytest.mark.parametrize(
    ("key", "value"), [("level", "video"), ("jitter", 0.1), ("noise", 1), ("bias", False), ("bias_rate", "1e-2")]
)
def test_a_removed_key_with_another_value_is_refused_and_says_why(key, value):
    with pytest.raises(ValidationError, match=f"{key}: {value} was removed.*docs/forgetting.md"):
        LoraConfig.model_validate({"router": {key: value}})


def test_from_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("lora: {router: {level: token, jitter: 0}}")
    assert load_config(path, ["lora.router.bias_rate=0", "lora.router.bias=true"]) == load_config(path)
    with pytest.raises(UserError, match=r"lora\.router\.jitter: 0\.1 was removed"):
        load_config(path, ["lora.router.jitter=0.1"])
