"""What the room reaches into is as it was when the code that reaches in was written.

The digests are of sources in sam2 1.1.0. Where one differs, read the new source, see that the reason in
``src/models/sam2/patches.py`` and the code there still hold, and write the new digest down.
"""

from __future__ import annotations

import hashlib
import inspect
from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest
import sam2.sam2_video_predictor
import torch
import training.model.sam2
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import nn

from src.config import ModelConfig
from src.models.sam2.build import build_model
from src.models.sam2.inference_state import new_state
from src.models.sam2.patches import (
    TOUCHED,
    VIDEO_METHODS,
    FunctionOverride,
    prompts_drawn,
    rebind,
    set_feature_sizes,
    take_class,
    take_classes,
    unbind,
    without_progress_bar,
)
from src.models.sam2.tracking import as_video_predictor

DIGESTS = {
    "sam2.sam2_video_predictor:load_video_frames": "6e211f15b666",
    "training.model.sam2:sample_box_points": "4ffb96ff6e78",
    "training.model.sam2:get_next_point": "9a7fd736cecc",
    "sam2.sam2_video_predictor:SAM2VideoPredictor._get_image_feature": "05c8b4970aa3",
    "sam2.sam2_video_predictor:SAM2VideoPredictor._run_single_frame_inference": "b26337ac92ab",
    "sam2.sam2_video_predictor:SAM2VideoPredictor._run_memory_encoder": "ad884139466f",
    "sam2.modeling.sam2_base:SAM2Base._forward_sam_heads": "f9b235d39742",
    "sam2.sam2_video_predictor:SAM2VideoPredictor.propagate_in_video_preflight": "0dc6ee175683",
    "sam2.sam2_image_predictor:SAM2ImagePredictor.set_image": "ac9146e5ddc3",
    "sam2.sam2_image_predictor:SAM2ImagePredictor.set_image_batch": "32ba378b1e5d",
    "sam2.sam2_image_predictor:SAM2ImagePredictor._predict": "f913e99b5353",
    "sam2.modeling.position_encoding:PositionEmbeddingSine.forward": "c921046d5a1f",
    "sam2.modeling.backbones.hieradet:Hiera._get_pos_embed": "55c9cefe860e",
    "sam2.modeling.sam.transformer:RoPEAttention.forward": "f2042b996e28",
    "sam2.sam2_video_predictor:SAM2VideoPredictor.__init__": "74cf96bfc157",
    "sam2.sam2_video_predictor:SAM2VideoPredictor.init_state": "ce8719fa5eca",
    "sam2.sam2_video_predictor:SAM2VideoPredictor.propagate_in_video": "746939be28ba",
    "sam2.sam2_video_predictor:SAM2VideoPredictor._get_orig_video_res_output": "c6eb30211d98",
    "sam2.sam2_image_predictor:SAM2ImagePredictor.__init__": "77df9fbd90d1",
    "sam2.utils.transforms:SAM2Transforms.__init__": "74bebc4037ed",
    "sam2.modeling.sam.prompt_encoder:PromptEncoder._embed_points": "bc8cfe4731e5",
    "sam2.modeling.sam2_base:SAM2Base._prepare_memory_conditioned_features": "bf6d7c3fe3e7",
    "training.model.sam2:SAM2Train.prepare_prompt_inputs": "94313a789c14",
    "training.model.sam2:SAM2Train.track_step": "02ee1f216557",
    "training.loss_fns:MultiStepMultiMasksAndIous._forward": "5a3e848f36d1",
}


def find(name: str) -> Any:
    """What stands under ``module:name.of.it``."""
    module, _, path = name.partition(":")
    found = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.fixture(scope="module")
def model():
    return build_model(ModelConfig(image_size=64)).eval()


@pytest.mark.parametrize("name", TOUCHED)
def test_what_is_touched_is_there_with_a_reason_and_has_not_changed(name):
    assert TOUCHED[name]
    touched = find(name)
    if name in DIGESTS:
        source = inspect.getsource(inspect.unwrap(touched))
        assert hashlib.sha256(source.encode()).hexdigest()[:12] == DIGESTS[name], f"{name} of sam2 {version('sam2')}"


def test_every_source_of_sam2_is_compared():
    assert TOUCHED.keys() - DIGESTS.keys() == {"sam2.sam2_video_predictor:tqdm"}


def test_the_predictors_use_the_names_that_are_replaced():
    assert "tqdm(" in inspect.getsource(SAM2VideoPredictor.propagate_in_video)
    source = inspect.getsource(training.model.sam2.SAM2Train)
    assert "sample_box_points(" in source
    assert "get_next_point(" in source


def test_the_bar_is_gone_for_a_while(monkeypatch):
    before = sam2.sam2_video_predictor.tqdm
    with pytest.raises(RuntimeError), without_progress_bar():
        assert list(sam2.sam2_video_predictor.tqdm([1, 2], desc="x")) == [1, 2]
        raise RuntimeError
    assert sam2.sam2_video_predictor.tqdm is before


def test_prompts_are_drawn_otherwise_for_a_while():
    module = training.model.sam2
    before = module.sample_box_points, module.get_next_point
    with prompts_drawn(lambda draw: ("box", draw), lambda draw: ("point", draw)):
        assert (module.sample_box_points, module.get_next_point) == (("box", before[0]), ("point", before[1]))
    assert (module.sample_box_points, module.get_next_point) == before


def test_methods_of_one_object_are_rebound_and_come_back():
    class Adder:
        def add(self, x):
            return x + 1

    def twice(instance, name, x):
        return 2 * getattr(type(instance), name)(instance, x)

    one, other = Adder(), Adder()
    rebind(one, ["add"], twice)
    assert (one.add(1), other.add(1)) == (4, 2)
    unbind(one, ["add"])
    unbind(one, ["add"])
    assert one.add(1) == 2


def test_modules_take_classes_by_their_own():
    class Louder(nn.Dropout):
        pass

    model = nn.Sequential(nn.Dropout(0.1), nn.Linear(1, 1), Louder(0.2))
    take_classes(model, {nn.Dropout: Louder})
    assert [type(module) for module in model] == [Louder, nn.Linear, Louder]
    assert take_class(model[0], nn.Dropout).p == 0.1


def test_a_function_is_another_where_it_applies():
    override = FunctionOverride(torch.sign, lambda x: x + 100, lambda args, kwargs: args[0].dtype == torch.float64)
    with override:
        assert torch.sign(torch.tensor(-3.0, dtype=torch.float64)) == 97
        assert torch.sign(torch.tensor(-3.0)) == -1
        assert torch.abs(torch.tensor(-3.0, dtype=torch.float64)) == 3
    assert torch.sign(torch.tensor(-3.0, dtype=torch.float64)) == -1


def test_a_model_as_a_predictor_has_what_the_constructor_gives(model):
    """SAM2VideoPredictor's constructor sets these attributes beside SAM2Base's."""
    own = [name for name in inspect.signature(SAM2VideoPredictor.__init__).parameters if name not in ("self", "kwargs")]
    assert own
    assert all(hasattr(as_video_predictor(model), name) for name in own)


def test_a_state_has_the_keys_of_the_stock_predictors(model, tmp_path):
    import numpy as np
    from PIL import Image

    frame = np.zeros((8, 8, 3), np.uint8)
    Image.fromarray(frame).save(tmp_path / "00000.jpg")
    predictor = as_video_predictor(model)
    assert new_state(predictor, [frame]).keys() == predictor.init_state(str(tmp_path)).keys()


def test_an_image_predictor_works_at_the_models_size(model):
    predictor = SAM2ImagePredictor(model)
    assert predictor._bb_feat_sizes == [(256, 256), (128, 128), (64, 64)]
    set_feature_sizes(predictor, 64)
    assert predictor._bb_feat_sizes == [(16, 16), (8, 8), (4, 4)]


def test_every_computation_of_a_video_goes_through_the_rebound_methods():
    """SAM2VideoPredictor calls what runs adapters only inside these methods."""
    inside = {"forward_image", "track_step", "_encode_new_memory", "memory_attention"}
    for name, method in vars(SAM2VideoPredictor).items():
        if callable(method) and name not in VIDEO_METHODS:
            code = inspect.unwrap(method).__code__
            assert not inside & set(code.co_names), name
