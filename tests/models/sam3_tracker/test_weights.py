"""Every weight of SAM 3's files is accounted for, in transformers' folders and Meta's file; wrong ones say so."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, Sam2VideoConfig, Sam3VideoConfig, Sam3VideoModel

from src.config import ModelConfig
from src.lora.adapter_io import base_fingerprint
from src.models.build import build_model
from src.models.sam2.build import BASE, check_keys, instantiate_model, load_base
from src.models.sam3_tracker.build import config_overrides
from src.models.sam3_tracker.weights import meta_state_dict, read_tracker, tracker_weights
from tests.errors import refuses
from tests.sam3 import SIDE, tracker_config, vision_config

FILE = Path("sam3.pt")


def tracker(folder: str | Path, **more: Any) -> Any:
    return build_model(ModelConfig(name="sam3_tracker", checkpoint=str(folder), **more))


@pytest.fixture(scope="module")
def model(sam3_tracker_folder: str) -> Any:
    return tracker(sam3_tracker_folder)


@pytest.fixture(scope="module")
def full_size() -> Any:
    """The official architecture, without numbers."""
    config = ModelConfig(name="sam3_tracker")
    with torch.device("meta"):
        return instantiate_model(config.name, config_overrides(config), BASE)


def opened(weights: dict[str, Tensor]) -> dict[str, Any]:
    return {key: partial(weights.__getitem__, key) for key in weights}


class TestFullSize:
    def test_every_key_of_the_hubs_folder(self, full_size, caplog):
        with torch.device("meta"):
            weights = dict(Sam3VideoModel(Sam3VideoConfig()).state_dict())
        for name in ("prompt_encoder.shared_embedding", "shared_image_embedding"):  # compared number by number
            weights[f"tracker_model.{name}.positional_embedding"] = torch.zeros(2, 128)
        with caplog.at_level(logging.INFO):
            check_keys(full_size.state_dict(), tracker_weights(opened(weights), FILE), FILE, "sam3_tracker")
        of_detector = [key for key in weights if key.startswith("detector_model.")]
        trunk = [key for key in of_detector if key.startswith("detector_model.vision_encoder.backbone.")]
        assert f"{len(of_detector) - len(trunk)} of the detector" in caplog.text

    def test_every_key_of_metas_file(self, full_size, caplog):
        weights = metas_keys()
        with caplog.at_level(logging.INFO):
            check_keys(full_size.state_dict(), tracker_weights(opened(weights), FILE), FILE, "sam3_tracker")
        assert "2 of the detector" in caplog.text
        written = meta_state_dict(full_size.state_dict())
        computed = {key for key in weights if key.endswith("freqs_cis")}
        detector = {
            "detector.backbone.vision_backbone.convs.0.conv_1x1.weight",
            "detector.transformer.decoder.norm.bias",
        }
        assert written.keys() == weights.keys() - computed - detector
        assert all(written[key].shape == weights[key].shape for key in written)


def metas_keys() -> dict[str, Tensor]:
    """Names and shapes in ``sam3.pt``, as Meta's own classes have them, and two of the detector's.

    Source: https://github.com/facebookresearch/sam3: vitdet, necks, memory, sam3_tracker_base in sam3/model; sam3/sam.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int, bias: int | None = None) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = (shape[0] if bias is None else bias,)

    def mlp(name: str, inside: int, out: int, width: int = 256) -> None:
        for i, shape in enumerate(((inside, width), (inside, inside), (out, inside))):
            layer(f"{name}.layers.{i}", *shape)

    def attention(name: str, inside: int = 256, keys: int = 256) -> None:
        for part, shape in {"q": (inside, 256), "k": (inside, keys), "v": (inside, keys), "out": (256, inside)}.items():
            layer(f"{name}.{part}_proj", *shape)

    trunk, neck = "detector.backbone.vision_backbone.trunk", "detector.backbone.vision_backbone.sam2_convs"
    shapes[f"{trunk}.pos_embed"] = (1, 1 + 24 * 24, 1024)
    shapes[f"{trunk}.patch_embed.proj.weight"] = (1024, 3, 14, 14)
    layer(f"{trunk}.ln_pre", 1024)
    for i in range(32):
        block = f"{trunk}.blocks.{i}"
        shapes[f"{block}.attn.freqs_cis"] = (72 * 72 if i % 8 == 7 else 24 * 24, 32)
        for norm in ("norm1", "norm2"):
            layer(f"{block}.{norm}", 1024)
        layer(f"{block}.attn.qkv", 3 * 1024, 1024)
        layer(f"{block}.attn.proj", 1024, 1024)
        layer(f"{block}.mlp.fc1", 4736, 1024)
        layer(f"{block}.mlp.fc2", 1024, 4736)
    layer(f"{neck}.0.dconv_2x2_0", 1024, 512, 2, 2, bias=512)
    layer(f"{neck}.0.dconv_2x2_1", 512, 256, 2, 2, bias=256)
    layer(f"{neck}.1.dconv_2x2", 1024, 512, 2, 2, bias=512)
    for i, channels in enumerate((256, 512, 1024, 1024)):
        layer(f"{neck}.{i}.conv_1x1", 256, channels, 1, 1)
        layer(f"{neck}.{i}.conv_3x3", 256, 256, 3, 3)

    own = {"maskmem_tpos_enc": (7, 1, 1, 64), "no_mem_embed": (1, 1, 256), "no_mem_pos_enc": (1, 1, 256)}
    own |= {"no_obj_ptr": (1, 256), "no_obj_embed_spatial": (1, 64)}
    shapes |= {f"tracker.{name}": shape for name, shape in own.items()}
    layer("tracker.mask_downsample", 1, 1, 4, 4)
    mlp("tracker.obj_ptr_proj", 256, 256)
    layer("tracker.obj_ptr_tpos_proj", 64, 256)
    for i in range(4):
        block = f"tracker.transformer.encoder.layers.{i}"
        attention(f"{block}.self_attn")
        attention(f"{block}.cross_attn_image", keys=64)
        layer(f"{block}.linear1", 2048, 256)
        layer(f"{block}.linear2", 256, 2048)
        for norm in ("norm1", "norm2", "norm3"):
            layer(f"{block}.{norm}", 256)
    layer("tracker.transformer.encoder.norm", 256)
    memory = "tracker.maskmem_backbone"
    for i, (inside, out) in enumerate(((1, 4), (4, 16), (16, 64), (64, 256))):
        layer(f"{memory}.mask_downsampler.encoder.{3 * i}", out, inside, 3, 3)
        layer(f"{memory}.mask_downsampler.encoder.{3 * i + 1}", out)
    layer(f"{memory}.mask_downsampler.encoder.12", 256, 256, 1, 1)
    layer(f"{memory}.pix_feat_proj", 256, 256, 1, 1)
    layer(f"{memory}.out_proj", 64, 256, 1, 1)
    for i in range(2):
        block = f"{memory}.fuser.layers.{i}"
        shapes[f"{block}.gamma"] = (256,)
        layer(f"{block}.dwconv", 256, 1, 7, 7)
        layer(f"{block}.norm", 256)
        layer(f"{block}.pwconv1", 1024, 256)
        layer(f"{block}.pwconv2", 256, 1024)
    prompts = "tracker.sam_prompt_encoder"
    shapes[f"{prompts}.pe_layer.positional_encoding_gaussian_matrix"] = (2, 128)
    for name in (*(f"point_embeddings.{i}" for i in range(4)), "not_a_point_embed", "no_mask_embed"):
        shapes[f"{prompts}.{name}.weight"] = (1, 256)
    for i, shape in {0: (4, 1, 2, 2), 1: (4,), 3: (16, 4, 2, 2), 4: (16,), 6: (256, 16, 1, 1)}.items():
        layer(f"{prompts}.mask_downscaling.{i}", *shape)
    decoder = "tracker.sam_mask_decoder"
    for i in range(2):
        block = f"{decoder}.transformer.layers.{i}"
        attention(f"{block}.self_attn")
        attention(f"{block}.cross_attn_token_to_image", 128)
        attention(f"{block}.cross_attn_image_to_token", 128)
        layer(f"{block}.mlp.lin1", 2048, 256)
        layer(f"{block}.mlp.lin2", 256, 2048)
        for norm in ("norm1", "norm2", "norm3", "norm4"):
            layer(f"{block}.{norm}", 256)
    attention(f"{decoder}.transformer.final_attn_token_to_image", 128)
    layer(f"{decoder}.transformer.norm_final_attn", 256)
    for name, count in (("iou_token", 1), ("mask_tokens", 4), ("obj_score_token", 1)):
        shapes[f"{decoder}.{name}.weight"] = (count, 256)
    layer(f"{decoder}.output_upscaling.0", 256, 64, 2, 2, bias=64)
    layer(f"{decoder}.output_upscaling.1", 64)
    layer(f"{decoder}.output_upscaling.3", 64, 32, 2, 2, bias=32)
    layer(f"{decoder}.conv_s0", 32, 256, 1, 1)
    layer(f"{decoder}.conv_s1", 64, 256, 1, 1)
    for i in range(4):
        mlp(f"{decoder}.output_hypernetworks_mlps.{i}", 256, 32)
    mlp(f"{decoder}.iou_prediction_head", 256, 4)
    mlp(f"{decoder}.pred_obj_score_head", 256, 1)
    shapes["detector.backbone.vision_backbone.convs.0.conv_1x1.weight"] = (256, 256, 1, 1)
    shapes["detector.transformer.decoder.norm.bias"] = (256,)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def same(one: Any, other: Any) -> bool:
    return base_fingerprint(one) == base_fingerprint(other)


def test_a_folder_of_all_of_sam3_gives_its_tracker(model, sam3_tracker_folder, tmp_path, caplog):
    """Its detector shares the trunk; all else of it is left out."""
    tiny = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    detector = {
        "vision_config": {**vision_config(), "fpn_hidden_size": 128},
        "text_config": {"model_type": "clip_text_model", **text, "vocab_size": 16, "projection_dim": 32},
        "geometry_encoder_config": tiny, "detr_encoder_config": tiny, "detr_decoder_config": {**tiny, "num_queries": 4},
        "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
    }  # fmt: skip
    whole = Sam3VideoModel(Sam3VideoConfig(detector_config=detector, tracker_config=tracker_config().to_dict()))
    whole.config.image_size = SIDE
    names = {
        "vision_encoder.backbone.": "detector_model.vision_encoder.backbone.", "vision_encoder.neck.": "tracker_neck.",
        "": "tracker_model.",
    }  # fmt: skip
    expected, state = transformers_names(sam3_tracker_folder), whole.state_dict()
    for name, tensor in expected.items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        state[names[prefix] + name.removeprefix(prefix)].copy_(tensor)
    whole.save_pretrained(tmp_path / "sam3", max_shard_size="5MB")
    assert len(list((tmp_path / "sam3").glob("*.safetensors"))) > 1
    with caplog.at_level(logging.INFO):
        assert same(tracker(tmp_path / "sam3"), model)
    assert "of the detector are left out" in caplog.text


def transformers_names(folder: str) -> dict[str, Tensor]:
    from transformers import Sam3TrackerVideoModel

    return dict(Sam3TrackerVideoModel.from_pretrained(folder).state_dict())


def test_metas_names_and_back(model, sam3_tracker_folder, tmp_path):
    shutil.copy(Path(sam3_tracker_folder) / "config.json", tmp_path)
    written = meta_state_dict(model.state_dict())
    assert {key.split(".")[0] for key in written} == {"tracker", "detector"}
    save_file({key: tensor.half().contiguous() for key, tensor in written.items()}, tmp_path / "sam3.safetensors")
    read = tracker(tmp_path / "sam3.safetensors").state_dict()
    assert all(torch.equal(read[key], tensor.half().float()) for key, tensor in model.state_dict().items())


class TestWrongFiles:
    @pytest.fixture
    def folder(self, sam3_tracker_folder: str, tmp_path: Path) -> Path:
        return Path(shutil.copytree(sam3_tracker_folder, tmp_path / "copy"))

    def change(self, folder: Path, **weights: Tensor | None) -> None:
        content = {**load_file(folder / "model.safetensors"), **weights}
        save_file({key: tensor for key, tensor in content.items() if tensor is not None}, folder / "model.safetensors")

    def test_keys_that_are_missing_or_unknown(self, folder):
        key = "tracker_model.memory_attention.layer_norm.weight"
        self.change(folder, **{key: None, "tracker_model.new": torch.zeros(1)})
        with refuses("base.other-model", "memory_attention.norm.weight", "new", "1 keys missing", "1 unknown"):
            tracker(folder)

    def test_weights_of_whole_numbers(self, folder):
        key = "tracker_model.memory_attention.layer_norm.weight"
        self.change(folder, **{key: torch.ones(128, dtype=torch.int64)})
        with refuses("base.other-model", "memory_attention.norm.weight is torch.int64"):
            tracker(folder)

    def test_positions_of_points_that_differ_from_those_of_the_image(self, folder):
        self.change(folder, **{"tracker_model.shared_image_embedding.positional_embedding": torch.zeros(2, 64)})
        with refuses("base.unsupported", "positional_embedding"):
            tracker(folder)

    def test_weights_that_are_damaged_or_absent(self, folder, tmp_path):
        (folder / "model.safetensors").write_bytes(b"x" * 100)
        with refuses("base.damaged", "model.safetensors"):
            tracker(folder)
        (folder / "model.safetensors").unlink()
        with refuses("base.missing", "model.safetensors", str(folder)):
            tracker(folder)
        with refuses("base.missing", "facebook/sam3"):
            tracker(tmp_path / "nowhere")
        torch.save({"model": [1]}, tmp_path / "list.pt")
        with refuses("base.other-format", "sam3.pt"):
            read_tracker(tmp_path / "list.pt")

    @pytest.mark.parametrize(
        ("key", "value", "code"),
        [
            ("model_type", "sam2_video", "base.other-model"),
            ("memory_fuser_intermediate_dim", 100, "base.unsupported"),
            ("num_maskmem", "seven", "base.damaged"),
            ("image_size", 60, "base.unsupported"),
            ("image_size", -14, "base.unsupported"),
            ("memory_attention_num_attention_heads", 3, "base.unsupported"),
            ("memory_attention_dropout", 5.0, "base.unsupported"),
            ("image_size", 0, "base.unsupported"),
        ],
    )
    def test_a_config_of_something_else(self, folder, key, value, code):
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
        said = "num_heads" if key.endswith("_heads") else str(value)
        with refuses(code, "config.json", said):
            tracker(folder)

    @pytest.mark.parametrize("kind", [Sam2VideoConfig, CLIPConfig])
    def test_a_whole_config_of_another_model_is_named_by_its_type(self, folder, kind):
        """Its image size and its parts, which no tracker can have, are not what is wrong with it."""
        kind().save_pretrained(folder)
        with refuses("base.other-model", "config.json", kind.model_type):
            tracker(folder)

    def test_a_folder_without_a_config(self, folder):
        (folder / "config.json").unlink()
        with refuses("base.missing", "config.json", str(folder)):
            tracker(folder)

    def test_json_nested_too_deep(self, folder):
        (folder / "config.json").write_text("[" * 100_000)
        with refuses("base.damaged", "config.json"):
            tracker(folder)

    @pytest.mark.parametrize(
        ("content", "code", "said"),
        [
            ({"weight_map": {"a": "model-2.safetensors"}}, "base.missing", "model-2.safetensors"),
            ({"weight_map": {"a": ""}}, "base.damaged", "index.json"),  # names the folder itself
            ({"weight_map": {"a": "config.json"}}, "base.damaged", "config.json"),
        ],
    )
    def test_an_index_of_what_is_no_file_of_weights(self, folder, content, code, said):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        with refuses(code, said):
            tracker(folder)

    def test_weights_that_cannot_be_taken_apart(self, model, folder, tmp_path):
        self.change(folder, **{"tracker_model.prompt_encoder.point_embed.weight": torch.tensor(1.0)})
        with refuses("base.other-model", "point_embed"):
            tracker(folder)
        metas, trunk = meta_state_dict(model.state_dict()), "detector.backbone.vision_backbone.trunk"
        for name, tensor in (
            ("blocks.0.attn.qkv.weight", torch.zeros(2, 3)),
            ("blocks.0.attn.qkv.weight", torch.tensor(1.0)),
            ("pos_embed", torch.zeros(5)),
        ):
            broken = {**metas, f"{trunk}.{name}": tensor}
            save_file({key: value.contiguous() for key, value in broken.items()}, folder / "sam3.safetensors")
            with refuses("base.other-model", "sam3.safetensors"):
                tracker(folder / "sam3.safetensors")
        torch.save({1: torch.zeros(1)}, tmp_path / "numbers.pt")
        with refuses("base.other-format", "numbers.pt"):
            read_tracker(tmp_path / "numbers.pt")

    def test_sam2s_weights_and_sam3s_are_not_taken_for_each_other(self, model, folder, tmp_path):
        nano = build_model(ModelConfig(image_size=64))
        save_file(nano.state_dict(), tmp_path / "copy" / "model.safetensors")
        with refuses("base.other-model", "weights of SAM 2"):
            tracker(folder)
        with refuses("base.other-format", "folder", "sam3_tracker"):
            load_base(nano, folder, "sam2_nano")
        torch.save({"model": meta_state_dict(model.state_dict())}, tmp_path / "sam3.pt")
        with refuses("base.other-model", "model.name sam3_tracker"):
            load_base(nano, tmp_path / "sam3.pt", "sam2_nano")


class TestTransformersIsAsked:
    def test_where_it_is_missing(self, sam3_tracker_folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with refuses("transformers.missing", "transformers>=5.24"):
            tracker(sam3_tracker_folder)

    def test_where_it_is_too_old(self, sam3_tracker_folder, monkeypatch):
        monkeypatch.setattr("transformers.__version__", "5.23.0")
        with refuses("transformers.too-old", "5.23.0", "transformers>=5.24"):
            tracker(sam3_tracker_folder)
