"""Names from data are names in what a run writes: no key of a YAML, no tag that TensorBoard cannot write."""

from __future__ import annotations

import numpy as np
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.config import load_config
from src.train.init_config import Setting, _render
from src.train.tensorboard_events import TensorBoardLogger


def test_no_line_break_in_a_name_writes_a_key_of_the_yaml():
    shipped = load_config("src/configs/mope.yaml")
    name = "data\noutput_dir: /elsewhere\r\u2028lora: 1\x1b"
    settings = [Setting("dataset.train_img_folder", name, f"in {name}")]
    text = _render(settings, shipped, [f"written for {name}"])
    assert "\x1b" not in text and text.isascii()
    assert yaml.safe_load(text)["dataset"]["train_img_folder"] == name
    assert yaml.safe_load(text).get("output_dir") != "/elsewhere"


def test_tensorboard_writes_names_that_are_no_text(tmp_path):
    events = TensorBoardLogger(tmp_path, 0)
    events.scalars({"a \udcff\n/J": 0.5}, 1)
    events.image("b \udcff", np.zeros((4, 4, 3), np.uint8), 1)
    events.close()
    found = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert found["scalars"] == ["a \\udcff\\n/J"] and found["images"] == ["b \\udcff"]
