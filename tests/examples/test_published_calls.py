"""What guides to SAM2-MoE publish runs from this package: their names, calls and shapes."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.conftest import SHARED_DATA

pytestmark = pytest.mark.usefixtures("installed")

GUIDES = SHARED_DATA.parent / "ancestors"
BASE_PLUS = "sam2.1_hiera_base_plus"
SKETCHES = ("def __getitem__", "def train_step", "load_domain_data")
"""Blocks that are outlines of the reader's own code, with ``…`` or unwritten functions in them."""


def published(number: str) -> str:
    """The Python blocks of a guide as one program; of its text the import is changed, and CUDA where there is none."""
    found = list(GUIDES.glob(f"{number}_*.txt"))
    if not found:
        pytest.skip(f"needs the guides in {GUIDES}")
    blocks = re.findall(r"```python\n(.*?)```", found[0].read_text(encoding="utf-8"), re.S)
    text = "\n".join(block for block in blocks if not any(sketch in block for sketch in SKETCHES))
    text = text.replace("from sam2.build_sam import", "from sam2_mope import")
    return text if torch.cuda.is_available() else text.replace('device="cuda"', 'device="cpu"').replace(".cuda()", "")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with random weights of SAM 2.1 base plus by the name of the official file."""
    folder = tmp_path_factory.mktemp("weights")
    model = import_module("sam2_mope").build_model(import_module("sam2_mope.config").ModelConfig(name=BASE_PLUS))
    torch.save({"model": model.state_dict()}, folder / f"{BASE_PLUS}.pt")
    return folder


@pytest.fixture
def with_weights(weights, tmp_path, monkeypatch):
    """A folder to work in, where the weights are in ``checkpoints`` and figures are drawn without a screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    Path("checkpoints").symlink_to(weights, target_is_directory=True)


@pytest.mark.usefixtures("with_weights")
def test_the_readme_runs(capsys):
    tokens = torch.randn(1, 4096, 256)

    def compute_loss(model, batch):
        return model.memory_attention.layers[0].self_attn(batch, batch, batch).square().mean()

    # what the README leaves to its reader: a batch, a loss, and names for two things that it has built
    text = published("000").replace("# Check parameter counts", "model = predictor").replace(
        "# Get expert statistics", "attention_module = predictor.memory_attention.layers[0].self_attn.eval() #"
    )  # fmt: skip
    names = {
        "torch": torch,
        "dataloader": [tokens],
        "compute_loss": compute_loss,
        "q": tokens,
        "k": tokens,
        "v": tokens,
    }
    exec(compile(text, "000", "exec"), names)
    assert "Trainable ratio: 0.81%" in capsys.readouterr().out
    assert {name: share_E.shape for name, share_E in names["stats"].items()} == dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "out_proj"), (10,)
    )
    assert [bar.get_height() for bar in names["plt"].gca().patches] == pytest.approx(names["stats"]["q_proj"].tolist())
    names["plt"].close("all")


@pytest.mark.usefixtures("with_weights")
def test_the_quick_start_runs(capsys):
    exec(compile(published("001"), "001", "exec"), names := {})
    said = capsys.readouterr().out
    assert "Found 8 MoE attention modules" in said
    assert "Expert usage for memory_attention.layers.0.self_attn:\nQ projection:\n" in said
    weights = [float(value) for value in re.findall(r"  Expert \d: (0\.\d{4})", said)]
    assert len(weights) == 10
    assert sum(weights) == pytest.approx(1, abs=1e-3)
    assert Path("expert_usage.png").stat().st_size > 5000
    names["plt"].close("all")


@pytest.mark.parametrize(("size", "model"), [("t", "tiny"), ("s", "small"), ("b+", "base_plus"), ("l", "large")])
def test_the_published_yamls_have_the_published_settings(size, model):
    load_config = import_module("sam2_mope").load_config
    config = load_config(f"configs/sam2.1/sam2.1_hiera_{size}_moe.yaml")
    assert (config.model.name, config.model.checkpoint) == (f"sam2.1_hiera_{model}", None)
    lora = config.lora
    assert (lora.experts, lora.rank, lora.top_k, lora.alpha, lora.dropout) == (10, 4, 2, 1.0, 0.1)
    advised = load_config(f"sam2.1_hiera_{model}_mope.yaml")
    assert lora.target_modules == advised.lora.target_modules
    assert config.training == advised.training


def test_the_builders_default_is_the_published_yaml():
    package = import_module("sam2_mope")
    for build in (package.build_sam2_moe, package.build_sam2_video_predictor_moe):
        assert inspect.signature(build).parameters["config_file"].default == "sam2.1_hiera_b+_moe.yaml"


def test_a_section_moe_is_answered_with_lora(tmp_path):
    UserError = import_module("sam2_mope.core.errors").UserError
    (tmp_path / "moe.yaml").write_text("moe: {num_experts: 4, lora_rank: 2}\n")
    with pytest.raises(UserError, match=r"moe: .*num_experts is lora\.experts, lora_rank is lora\.rank"):
        import_module("sam2_mope").load_config(tmp_path / "moe.yaml")


def test_the_page_for_those_who_come_from_there_runs(capsys):
    text = (Path(__file__).parents[2] / "docs/sam2_moe.md").read_text(encoding="utf-8")
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], {})
    shapes = {"q_proj": (4,), "k_proj": (4,), "v_proj": (4,), "out_proj": (4,)}
    assert capsys.readouterr().out.endswith(f"{shapes}\nTrue\n")
