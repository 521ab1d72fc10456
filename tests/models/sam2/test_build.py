"""Base weights load strictly, from official files too; every other file is refused in one line, and never executed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from src.config import ModelConfig, image_size_of
from src.core.errors import UserError
from src.models.sam2.build import build_model, load_base, read_weights
from src.models.spec import model_names
from tests.errors import refuses


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(ModelConfig(image_size=64))


DAMAGED = {".pt": ("torch-file.damaged", "torch-file.foreign-content"), ".safetensors": ("base.damaged",)}
"""Codes of what is no file of a suffix; which one torch's reader meets depends on its version."""


@pytest.fixture(scope="module")
def weights(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def nano(path: Path) -> ModelConfig:
    return ModelConfig(name="sam2_nano", checkpoint=str(path), image_size=64)


@pytest.fixture
def refusal(model, weights) -> Callable[[Path], UserError]:
    """The error with which a checkpoint is refused: one line that names the file; the model stays as it was."""

    def refuse(path: Path) -> UserError:
        with pytest.raises(UserError) as caught:
            load_base(model, path, "sam2_nano")
        assert_same(model, weights)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        return caught.value

    return refuse


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def assert_same(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in weights.items())


def test_an_official_file_loads_whole(tmp_path, weights):
    torch.save({"model": weights}, tmp_path / "nano.pt")
    assert_same(build_model(nano(tmp_path / "nano.pt")), weights)


def test_a_safetensors_file_loads_whole(tmp_path, weights):
    save_file(weights, tmp_path / "nano.safetensors")
    assert_same(build_model(nano(tmp_path / "nano.safetensors")), weights)


def test_half_precision_is_widened(tmp_path, weights):
    save_file({key: tensor.half() for key, tensor in weights.items()}, tmp_path / "nano.safetensors")
    loaded = build_model(nano(tmp_path / "nano.safetensors"))
    assert_same(loaded, {key: tensor.half().float() for key, tensor in weights.items()})


def test_the_bundled_checkpoint_fits():
    path = Path(__file__).parents[3] / "checkpoints/sam2_nano.safetensors"
    if not path.exists():
        pytest.skip("checkpoints/sam2_nano.safetensors is not here")
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in build_model(nano(path)).parameters())


def test_stock_weights_of_sam2_tiny_load_and_give_the_same_features(tmp_path):
    from sam2.build_sam import build_sam2

    stock = build_sam2(
        "configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu", hydra_overrides_extra=["model.image_size=64"]
    )
    torch.save({"model": stock.state_dict()}, tmp_path / "tiny.pt")
    config = ModelConfig(name="sam2.1_hiera_tiny", checkpoint=str(tmp_path / "tiny.pt"), image_size=64)
    ours = build_model(config).eval()
    assert_same(ours, stock.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = stock.forward_image(image), ours.forward_image(image)
    for level, feature in enumerate(expected["backbone_fpn"]):
        assert torch.equal(found["backbone_fpn"][level], feature)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda w: w.pop("no_mem_embed"), ["1 ", "missing", ": no_mem_embed"]),
        (lambda w: w.update(extra=torch.zeros(1)), ["1 ", "unknown", ": extra"]),
        (lambda w: w.update(no_mem_embed=torch.zeros(1, 1, 32)), ["no_mem_embed", "1×1×32", "1×1×64"]),
        (lambda w: w.clear(), ["missing"]),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_key(tmp_path, weights, refusal, change, facts):
    changed = dict(weights)
    change(changed)
    torch.save({"model": changed}, tmp_path / "nano.pt")
    error = refusal(tmp_path / "nano.pt")
    assert error.code == "base.other-model"
    assert all(fact in str(error) for fact in ("sam2_nano", *facts))


def test_a_checkpoint_of_the_config_that_does_not_fit_is_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "nano.pt")
    with refuses("base.other-model"):
        build_model(nano(tmp_path / "nano.pt"))


def test_weights_of_another_model_are_refused(tmp_path, model, refusal):
    other = {f"{key}.weight": tensor for key, tensor in torch.nn.Linear(3, 3).state_dict().items()}
    torch.save({"model": other}, tmp_path / "other.pt")
    error = refusal(tmp_path / "other.pt")
    assert error.code == "base.other-model"
    assert f" {len(model.state_dict())} " in str(error) and " 2 " in str(error)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_missing_file(tmp_path, refusal, suffix):
    assert refusal(tmp_path / f"nano{suffix}").code == "base.missing"


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file(tmp_path, weights, refusal, suffix, share):
    path = tmp_path / f"nano{suffix}"
    if suffix == ".pt":
        torch.save({"model": weights}, path)
    else:
        save_file(weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert refusal(path).code in DAMAGED[suffix]


@pytest.mark.parametrize("content", [b"text", b"<html>404</html>", b"\x80\x02garbage", b"PK\x03\x04rest"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_of_something_else(tmp_path, refusal, suffix, content):
    path = tmp_path / f"nano{suffix}"
    path.write_bytes(content)
    assert refusal(path).code in DAMAGED[suffix]


@pytest.mark.parametrize("content", [{"model": 3}, {"model": {"a": "text"}}, {"state_dict": {}}, [1, 2]])
def test_a_pt_file_that_is_not_official(tmp_path, refusal, content):
    torch.save(content, tmp_path / "nano.pt")
    assert refusal(tmp_path / "nano.pt").code == "base.other-format"


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, refusal, save):
    save({"model": Bomb(tmp_path / "bomb")}, tmp_path / "nano.pt")
    assert refusal(tmp_path / "nano.pt").code == "torch-file.foreign-content"
    assert not (tmp_path / "bomb").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "bomb")))
    assert (tmp_path / "bomb").exists(), "the bomb of this test is a dud"


def test_reading_does_not_need_a_model(tmp_path, weights):
    torch.save({"model": weights}, tmp_path / "nano.pt")
    assert read_weights(tmp_path / "nano.pt").keys() == weights.keys()


def test_the_image_size_reaches_the_model(model):
    assert model.image_size == 64
    assert image_size_of(ModelConfig(image_size=96)) == 96
    assert [image_size_of(ModelConfig(name=name)) for name in model_names()[:5]] == [128, 1024, 1024, 1024, 1024]


def test_the_nano_model_has_every_part_of_sam2(model):
    stock = build_model(ModelConfig(name="sam2.1_hiera_tiny", image_size=64))
    assert {type(m) for m in model.modules()} == {type(m) for m in stock.modules()}
    assert {name for name, _ in model.named_children()} == {name for name, _ in stock.named_children()}
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in stock.parameters()) / 10
