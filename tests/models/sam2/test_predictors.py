"""Whoever uses SAM 2 keeps their code: stock classes, stock masks until training, exactly the adapters to train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from sam2.build_sam import build_sam2, build_sam2_video_predictor
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.sam2_video_predictor import SAM2VideoPredictor, SAM2VideoPredictorVOS

from src.config import Config, LoraConfig, ModelConfig
from src.data.decode.masks import bounding_box, centre_point
from src.data.synthetic import SOURCE, make_video
from src.lora.adapter import disable_adapters, iter_adapter_layers
from src.lora.adapter_io import (
    adapter_state_dict,
    base_state_dict,
    join_adapters,
    read_adapter,
    save_adapter,
    write_adapter,
)
from src.lora.expert_groups import set_adapter
from src.lora.injection import count_parameters
from src.lora.moe_layer import MoELoRALinear
from src.models.sam2.build import build_model, config_overrides
from src.models.sam2.cpu_kernels import SharedPositions
from src.models.sam2.inference_state import new_state
from src.models.sam2.predictors import (
    automatic_mask_generator,
    build_sam2_moe,
    build_sam2_video_predictor_moe,
    image_predictor,
)
from tests.errors import refuses

TINY = "configs/sam2.1/sam2.1_hiera_t.yaml"
TINY_SIDE = 256
SMALL = [f"model.image_size={TINY_SIDE}"]
VIDEO = make_video(SOURCE, 0, frames=5, side=96)
MASKS = [source.decode() for source in (o.segmentations[0] for o in VIDEO.objects) if source is not None]


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stock SAM 2.1 tiny with random weights, in the official format."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    torch.save({"model": build_sam2(TINY, device="cpu").state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def nano() -> tuple[str, list[str], Path]:
    """The bundled base as stock SAM 2 would build it: config, overrides, weights."""
    path = Path(__file__).parents[3] / "checkpoints/sam2_nano.safetensors"
    if not path.exists():
        pytest.skip("checkpoints/sam2_nano.safetensors is not here")
    return TINY, config_overrides(ModelConfig()), path


def stock_image_model(nano: tuple[str, list[str], Path], side: int = 128) -> SAM2Base:
    return build_model(ModelConfig(checkpoint=str(nano[2]), image_size=side)).eval()


def train_a_little(model: SAM2Base) -> None:
    """Adapters as training leaves them: no longer zero."""
    for _, adapter in iter_adapter_layers(model):
        torch.nn.init.normal_(adapter.lora_B, std=0.5)


def track_forward(predictor: SAM2VideoPredictor) -> torch.Tensor:
    """Mask logits of two objects, one from its mask, one from a box."""
    state = new_state(predictor, [source.read() for source in VIDEO.frames])
    collected = [predictor.add_new_mask(state, 0, 1, torch.from_numpy(MASKS[0]))[2]]
    box = np.array(bounding_box(MASKS[-1]), np.float32)
    collected.append(predictor.add_new_points_or_box(state, 0, 2, box=box)[2])
    collected += [logits for _, _, logits in predictor.propagate_in_video(state)]
    return torch.cat([logits.flatten() for logits in collected])


@torch.autocast("cpu", torch.bfloat16)  # without it stock SAM 2 fails before an object's first prompt
def edit_video(predictor: SAM2VideoPredictor) -> torch.Tensor:
    """Mask logits of a session: an object from clicks, one added later, a correction; forwards and backwards."""
    state = new_state(predictor, [source.read() for source in VIDEO.frames])

    def click(frame: int, object_id: int, mask: np.ndarray, label: int) -> torch.Tensor:
        points, labels = np.array([centre_point(mask)], np.float32), np.array([label], np.int32)
        return predictor.add_new_points_or_box(state, frame, object_id, points=points, labels=labels)[2]

    collected = [click(2, 1, MASKS[0], 1)]
    collected += [logits for _, _, logits in predictor.propagate_in_video(state)]
    collected += [click(3, 2, MASKS[-1], 1), click(3, 2, MASKS[0], 0)]
    collected += [logits for _, _, logits in predictor.propagate_in_video(state)]
    collected += [logits for _, _, logits in predictor.propagate_in_video(state, reverse=True)]
    return torch.cat([logits.flatten() for logits in collected])


def segment_image(predictor: SAM2ImagePredictor) -> torch.Tensor:
    """Mask logits and scores from a click, a box, and the first masks as prompts."""
    predictor.set_image(VIDEO.frames[0].read())
    click = {"point_coords": np.array([centre_point(MASKS[0])]), "point_labels": np.array([1])}
    outputs = [predictor.predict(**click, return_logits=True)]
    outputs.append(predictor.predict(**click, mask_input=outputs[0][2][:1], multimask_output=False, return_logits=True))
    outputs.append(predictor.predict(box=np.array(bounding_box(MASKS[0])), return_logits=True))
    return torch.cat([torch.from_numpy(array).flatten() for output in outputs for array in output])


class TestUntrainedAdaptersAreStockSAM2:
    @pytest.mark.parametrize(("segment", "side"), [(track_forward, 128), (track_forward, 160), (edit_video, 128)])
    def test_video_of_the_bundled_base(self, nano, segment, side):
        config, overrides, path = nano
        overrides = [*overrides, f"model.image_size={side}"]
        stock = build_sam2_video_predictor(config, device="cpu", hydra_overrides_extra=overrides)
        stock.load_state_dict(build_model(ModelConfig(checkpoint=str(path))).state_dict())
        ours = build_sam2_video_predictor_moe(config, path, "cpu", hydra_overrides_extra=overrides)
        expected = segment(stock)
        assert len(expected.unique()) > 1000
        assert torch.equal(segment(ours), expected)

        train_a_little(ours)
        assert not torch.equal(segment(ours), expected)
        with disable_adapters(ours):
            assert torch.equal(segment(ours), expected)

    def test_video_of_stock_tiny_from_an_official_file(self, tiny_weights):
        stock = build_sam2_video_predictor(TINY, str(tiny_weights), "cpu", hydra_overrides_extra=SMALL)
        ours = build_sam2_video_predictor_moe(TINY, tiny_weights, "cpu", hydra_overrides_extra=SMALL)
        assert torch.equal(track_forward(ours), track_forward(stock))
        assert vars_of(ours) == vars_of(stock)

    def test_image_of_stock_tiny(self, tiny_weights):
        everywhere = LoraConfig(experts=2, target_modules=["all"])
        stock = SAM2ImagePredictor(build_sam2(TINY, str(tiny_weights), "cpu", hydra_overrides_extra=SMALL))
        stock._bb_feat_sizes = [(64, 64), (32, 32), (16, 16)]
        model = build_sam2_moe(TINY, tiny_weights, "cpu", lora=everywhere, hydra_overrides_extra=SMALL)
        ours = image_predictor(model)
        assert type(ours) is SAM2ImagePredictor
        expected = segment_image(stock)
        assert len(expected.unique()) > 1000
        assert torch.equal(segment_image(ours), expected)
        train_a_little(model)
        assert not torch.equal(segment_image(ours), expected)

    @pytest.mark.parametrize("side", [128, 1024])
    def test_image_of_the_bundled_base(self, nano, side):
        config, overrides, path = nano
        model = build_sam2_moe(config, path, "cpu", hydra_overrides_extra=[*overrides, f"model.image_size={side}"])
        stock = SAM2ImagePredictor(stock_image_model(nano, side))
        if side != 1024:  # which stock SAM 2 writes down
            stock._bb_feat_sizes = [(32, 32), (16, 16), (8, 8)]
        assert torch.equal(segment_image(image_predictor(model)), segment_image(stock))

    def test_all_masks_of_an_image(self, nano):
        config, overrides, path = nano
        options = {"points_per_side": 4, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.5, "crop_n_layers": 1}
        model = build_sam2_moe(config, path, "cpu", hydra_overrides_extra=overrides)
        ours = automatic_mask_generator(model, **options)
        assert type(ours) is SAM2AutomaticMaskGenerator
        stock = SAM2AutomaticMaskGenerator(stock_image_model(nano), **options)
        stock.predictor._bb_feat_sizes = [(32, 32), (16, 16), (8, 8)]
        image = VIDEO.frames[0].read()
        expected, found = stock.generate(image), ours.generate(image)
        assert len(expected) > 1
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one.pop("segmentation"), other.pop("segmentation"))
            assert one == other

    def test_the_option_of_the_mask_generator_reaches_its_predictor(self, nano):
        generator = automatic_mask_generator(stock_image_model(nano), min_mask_region_area=7)
        assert generator.predictor._transforms.max_hole_area == 7


def vars_of(model: SAM2Base) -> dict:
    """The plain settings of a model."""
    return {key: value for key, value in vars(model).items() if isinstance(value, (bool, int, float, str, tuple))}


class TestBuilders:
    def test_classes_are_stock(self, tiny_yaml):
        assert type(build_sam2_moe(tiny_yaml, device="cpu")) is SAM2Base
        predictor = build_sam2_video_predictor_moe(str(tiny_yaml), device="cpu")
        assert type(predictor) is SAM2VideoPredictor
        assert type(predictor.image_encoder.neck.position_encoding) is SharedPositions

    @pytest.mark.parametrize("build", [build_sam2_moe, build_sam2_video_predictor_moe])
    def test_in_train_mode_exactly_the_adapters_train(self, tiny_yaml, build):
        model = build(tiny_yaml, device="cpu", mode="train")
        adapters = {id(p) for _, adapter in iter_adapter_layers(model) for p in adapter.adapter_parameters()}
        assert {id(p) for p in model.parameters() if p.requires_grad} == adapters
        assert adapters
        assert all(module.training for module in model.modules())
        assert not any(module.training for module in build(tiny_yaml, device="cpu").modules())

    def test_default_adapters_of_a_stock_config(self):
        model = build_sam2_moe("configs/sam2.1/sam2.1_hiera_b+.yaml", device="cpu", mode="train")
        adapters = dict(iter_adapter_layers(model))
        assert len({name.rpartition(".")[0] for name in adapters}) == 8
        assert all(isinstance(adapter, MoELoRALinear) for adapter in adapters.values())
        assert {(a.num_experts, a.rank, a.gate.top_k, a.gate.null_expert) for a in adapters.values()} == {
            (10, 4, 2, False)
        }
        assert count_parameters(model).trainable == 660_800

    def test_a_yaml_decides_model_size_weights_and_adapters(self, tiny_yaml, capsys):
        model = build_sam2_moe(tiny_yaml, device="cpu")
        assert model.image_size == 64
        assert {adapter.settings()["experts"] for _, adapter in iter_adapter_layers(model)} == {3}
        assert "no checkpoint: 335 random base keys; 64 adapter keys are new\n" in capsys.readouterr().out
        torch.manual_seed(Config().training.seed)
        its_run = build_model(ModelConfig(image_size=64)).state_dict()
        assert_same(base_state_dict(model), its_run)

    def test_building_from_a_yaml_draws_its_base_from_a_generator_of_its_own(self, tiny_yaml):
        torch.manual_seed(1)
        first = build_sam2_moe(tiny_yaml, device="cpu")
        second = build_sam2_moe(tiny_yaml, device="cpu")
        assert_same(base_state_dict(first), base_state_dict(second))
        assert not torch.equal(*(next(iter_adapter_layers(m))[1].lora_A for m in (first, second)))

    def test_base_weights_and_lora_of_the_call_come_before_the_yaml(self, tiny_yaml, nano, capsys):
        lora = LoraConfig(method="lora", rank=2, target_modules=["cross_attn_image.q_proj"])
        model = build_sam2_moe(tiny_yaml, nano[2], "cpu", lora=lora)
        assert len(dict(iter_adapter_layers(model))) == 2
        assert f"loaded {nano[2]}: 335 base keys; 4 adapter keys are new\n" in capsys.readouterr().out
        assert_same(base_state_dict(model), build_model(ModelConfig(checkpoint=str(nano[2]))).state_dict())

    def test_methods_without_adapters(self, tiny_yaml):
        assert all(p.requires_grad for p in build_sam2_moe(tiny_yaml, lora=LoraConfig(method="full")).parameters())
        assert not any(p.requires_grad for p in build_sam2_moe(tiny_yaml, lora=LoraConfig(method="none")).parameters())

    def test_postprocessing_is_optional(self, tiny_yaml):
        assert build_sam2_video_predictor_moe(tiny_yaml).fill_hole_area == 8
        assert build_sam2_video_predictor_moe(tiny_yaml, apply_postprocessing=False).fill_hole_area == 0
        assert not build_sam2_moe(
            tiny_yaml, apply_postprocessing=False
        ).sam_mask_decoder.dynamic_multimask_via_stability

    def test_another_mode_is_refused(self, tiny_yaml):
        with pytest.raises(ValueError, match="'eval' or 'train', not 'test'"):
            build_sam2_moe(tiny_yaml, mode="test")

    def test_an_unknown_config_is_refused_with_the_known_ones(self):
        with refuses("config.missing") as caught:
            build_sam2_moe("configs/nope.yaml")
        assert "sam2.1_hiera_b+.yaml" in str(caught.value)

    def test_weights_of_another_model_are_refused(self, tiny_yaml, tiny_weights):
        with refuses("base.other-model"):
            build_sam2_moe(tiny_yaml, tiny_weights)


class TestAdapter:
    @pytest.fixture
    def trained(self, tiny_yaml, tmp_path) -> tuple[SAM2Base, Path]:
        """A model with other adapters than the YAML's, and their folder."""
        lora = LoraConfig(method="lora", rank=3, target_modules=["cross_attn_image.v_proj"])
        model = build_sam2_moe(tiny_yaml, device="cpu", lora=lora)
        train_a_little(model)
        save_adapter(model, tmp_path / "adapter", lora, {})
        return model, tmp_path / "adapter"

    def test_a_folder_says_itself_what_its_adapters_are(self, tiny_yaml, trained, capsys):
        model, folder = trained
        loaded = build_sam2_video_predictor_moe(tiny_yaml, device="cpu", mode="train", adapter=folder)
        assert_same(loaded.state_dict(), model.state_dict())
        assert f"335 random base keys; 4 adapter keys from {folder}\n" in capsys.readouterr().out
        assert sum(p.requires_grad for p in loaded.parameters()) == 4

    def test_expert_groups_are_those_adapters_and_the_base_one_switch_away(self, tiny_yaml, trained, tmp_path, capsys):
        _, folder = trained
        parts = [(name, read_adapter(folder)) for name in ("cells", "endoscopy")]
        write_adapter(tmp_path / "joined", join_adapters(parts))
        plain = build_sam2_video_predictor_moe(tiny_yaml, device="cpu", adapter=folder)
        loaded = build_sam2_video_predictor_moe(tiny_yaml, device="cpu", adapter=tmp_path / "joined")
        assert "8 adapter keys from" in (said := capsys.readouterr().out)
        assert "expert groups cells, endoscopy (active: none)" in said
        with disable_adapters(plain):
            base = track_forward(plain)
        assert torch.equal(track_forward(loaded), base)
        set_adapter(loaded, "endoscopy")
        assert torch.equal(track_forward(loaded), track_forward(plain))
        assert not torch.equal(track_forward(loaded), base)

    @pytest.mark.parametrize(("method", "said"), [("mope", "64 adapter keys"), ("full", "335 trained keys")])
    def test_a_checkpoint_of_a_run(self, tiny_yaml, make_config, capsys, method, said):
        from src.train.trainer import Trainer

        trainer = Trainer.from_config(make_config(f"lora.method={method}", "training.max_steps=1"))
        trainer.fit()
        loaded = build_sam2_moe(tiny_yaml, device="cpu", adapter=trainer.folder / "checkpoints" / "last.pt")
        assert_same(loaded.state_dict(), trainer.model.state_dict())
        assert said in capsys.readouterr().out

    def test_adapters_of_another_base_are_refused(self, tiny_yaml, trained, nano):
        with refuses("adapter.other-base"):
            build_sam2_moe(tiny_yaml, nano[2], adapter=trained[1])

    def test_adapter_and_lora_together_are_refused(self, tiny_yaml, trained):
        with pytest.raises(ValueError, match="adapter or lora, not both"):
            build_sam2_moe(tiny_yaml, adapter=trained[1], lora=LoraConfig())


def test_vos_optimized_traces_whole_with_adapters_in_place(nano, monkeypatch):
    """The compiler is left out: it takes minutes. What could not be compiled is refused while tracing (fullgraph)."""
    compiler, traced = torch.compile, []

    def trace(function, **options):
        traced.append(options["fullgraph"])
        return compiler(function, backend="eager", fullgraph=options["fullgraph"], dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", trace)
    config, overrides, path = nano
    predictor = build_sam2_video_predictor_moe(
        config, path, "cpu", hydra_overrides_extra=overrides, vos_optimized=True, lora=LoraConfig(experts=2)
    )
    assert type(predictor) is SAM2VideoPredictorVOS
    assert traced == [True] * 5
    plain = build_sam2_video_predictor_moe(
        config, path, "cpu", hydra_overrides_extra=overrides, lora=LoraConfig(experts=2)
    )
    train_a_little(predictor)
    plain.load_state_dict(predictor.state_dict())
    assert adapter_state_dict(plain).keys() == adapter_state_dict(predictor).keys()
    results = []
    for each in (predictor, plain):
        state = new_state(each, [source.read() for source in VIDEO.frames[:3]])
        each.add_new_mask(state, 0, 1, torch.from_numpy(MASKS[0]))
        results.append(torch.cat([logits for _, _, logits in each.propagate_in_video(state)]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
