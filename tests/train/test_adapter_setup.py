"""How runs begin: a further expert group beside earlier ones, earlier weights, adapters that looked at the data."""

from __future__ import annotations

import pytest
import torch

from src.config import load_config
from src.data.synthetic import CELLS
from src.gating.domain_gate import GATE_FILE, DomainGate
from src.lora.adapter import list_groups
from src.lora.adapter_io import load_adapter, read_adapter, read_adapter_config
from src.lora.expert_groups import active_adapter
from src.models.checkpoint import load_trained
from src.models.sam2.build import build_model
from src.train.trainer import Trainer
from tests.errors import refuses

SHORT = ("training.max_steps=2", "training.learning_rate=1e-2")


def base(config):
    torch.manual_seed(config.training.seed)  # of a run without a checkpoint
    return build_model(config.model)


def group_weights(folder, group):
    part = f".groups.{group}."
    return {k.replace(part, "."): t for k, t in read_adapter(folder).weights.items() if part in k}


@pytest.fixture(scope="module")
def first(tiny_yaml, tmp_path_factory):
    """A run that learned the domain ``first``."""

    folder = tmp_path_factory.mktemp("first")
    config = load_config(tiny_yaml, [f"output_dir={folder}", "dataset.name=first", *SHORT])
    Trainer.from_config(config).fit()
    return config, folder / "adapter"


@pytest.fixture(scope="module")
def second(first, tiny_yaml, tmp_path_factory):
    """A run that learned ``second`` beside it."""

    folder = tmp_path_factory.mktemp("second")
    settings = [f"output_dir={folder}", "dataset.name=second", f"training.extend={first[1]}", "lora.rank=2", *SHORT]
    config = load_config(tiny_yaml, settings)
    best = Trainer.from_config(config).fit()
    return config, folder / "adapter", best


class TestExtend:
    def test_the_first_stays_bit_for_bit_and_the_second_is_beside_it(self, first, second):
        before, after = read_adapter(first[1]).weights, group_weights(second[1], "first")
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
        config = read_adapter_config(second[1]).lora
        assert {name: lora.rank for name, lora in config.items()} == {"first": 4, "second": 2}

    def test_what_is_learned_does_not_depend_on_what_was_learned_before(self, first, second, tiny_yaml, tmp_path):

        alone = [f"output_dir={tmp_path}", "dataset.name=second", "lora.rank=2", *SHORT]
        Trainer.from_config(load_config(tiny_yaml, alone)).fit()
        expected, found = read_adapter(tmp_path / "adapter").weights, group_weights(second[1], "second")
        assert expected.keys() == found.keys() and all(torch.equal(expected[k], found[k]) for k in found)
        gates = [
            DomainGate.load(each, read_adapter_config(each).base_fingerprint)
            for each in (tmp_path / "adapter", second[1])
        ]
        assert torch.equal(*(gate.domains["second"].mean for gate in gates))

    def test_the_gate_knows_both(self, second):
        gate = DomainGate.load(second[1], read_adapter_config(second[1]).base_fingerprint)
        assert list(gate.domains) == ["first", "second"]

    def test_the_checkpoint_is_the_adapter_with_the_new_group_active(self, second):
        config, folder, best = second
        from_folder, from_checkpoint = base(config), base(config)
        load_adapter(from_folder, folder)
        groups = load_trained(from_checkpoint, best)
        assert list(groups) == list_groups(from_checkpoint) == ["first", "second"]
        assert active_adapter(from_checkpoint) == "second"
        states = from_folder.state_dict(), from_checkpoint.state_dict()
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])

    def test_it_can_be_resumed(self, second, tiny_yaml, tmp_path):
        half = [f"output_dir={tmp_path}", "dataset.name=second", f"training.extend={second[0].training.extend}",
                "lora.rank=2", "training.learning_rate=1e-2"]  # fmt: skip
        Trainer.from_config(load_config(tiny_yaml, [*half, "training.max_steps=1"])).fit()
        resumed = Trainer.from_config(
            load_config(tiny_yaml, [*half, "training.max_steps=2"]), tmp_path / "checkpoints/last.pt"
        )
        resumed.fit()
        expected = torch.load(second[2].with_name("last.pt"), weights_only=True)["weights"]
        found = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)["weights"]
        assert expected.keys() == found.keys() and all(torch.equal(expected[k], found[k]) for k in expected)

    def test_a_third_beside_two(self, second, make_config, tmp_path):
        config = make_config("dataset.name=third", f"training.extend={second[1]}", *SHORT)
        Trainer.from_config(config).fit()
        assert list(read_adapter_config(tmp_path / "run/adapter").lora) == ["first", "second", "third"]

    def test_without_a_gate_the_first_is_called_default(self, first, make_config, tmp_path):
        import shutil

        shutil.copytree(first[1], tmp_path / "no gate")
        (tmp_path / "no gate" / GATE_FILE).unlink()
        Trainer.from_config(make_config("dataset.name=more", f"training.extend={tmp_path / 'no gate'}", *SHORT)).fit()
        assert list(read_adapter_config(tmp_path / "run/adapter").lora) == ["default", "more"]

    @pytest.mark.parametrize(
        ("settings", "code", "facts"),
        [
            (["dataset.name=first"], "groups.name-taken", ["'first'"]),
            (["dataset.name=a b"], "groups.invalid-name", ["'a b'"]),
            (["model.image_size=96"], "extend.other-image-size", ["model.image_size", " 64", " 96"]),
        ],
    )
    def test_what_does_not_fit_is_said_and_nothing_is_written(
        self, first, make_config, tmp_path, settings, code, facts
    ):
        config = make_config(f"training.extend={first[1]}", "dataset.name=other", *settings)
        with refuses(code, *facts):
            Trainer.from_config(config)
        assert not (tmp_path / "run" / "config.yaml").exists()

    def test_another_image_size_is_refused(self, first, make_config):
        config = make_config("dataset.name=other", f"training.extend={first[1]}", "model.image_size=96")
        with refuses("extend.other-image-size", "model.image_size", " 64", " 96"):
            Trainer.from_config(config)

    def test_it_does_not_move_away_what_it_extends(self, first, make_config):
        with refuses("adapters.inside-output"):
            Trainer.from_config(
                make_config("dataset.name=other", f"training.extend={first[1]}", f"output_dir={first[1].parent}")
            )
        assert first[1].is_dir()


class TestStartFrom:
    @pytest.mark.parametrize("method", ["mope", "lora", "full", "decoder"])
    def test_training_goes_on_from_the_weights(self, make_config, tmp_path, method):
        settings = [f"lora.method={method}", "training.max_steps=1"]
        best = Trainer.from_config(make_config(*settings, f"output_dir={tmp_path / 'a'}")).fit()
        trainer = Trainer.from_config(
            make_config(*settings, f"output_dir={tmp_path / 'b'}", f"training.start_from={best}")
        )
        saved = torch.load(best, weights_only=True)["weights"]
        found = trainer.model.state_dict()
        assert saved and all(torch.equal(found[name], tensor) for name, tensor in saved.items())
        assert trainer.state.step == 0

    def test_an_adapter_folder_will_do(self, first, make_config):
        trainer = Trainer.from_config(make_config("dataset.name=other", f"training.start_from={first[1]}"))
        found = trainer.model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in read_adapter(first[1]).weights.items())

    def test_other_adapters_are_refused(self, first, make_config):
        with refuses("adapter.mismatch", "'rank': 3"):
            Trainer.from_config(make_config("lora.rank=3", f"training.start_from={first[1]}"))

    def test_only_the_decoder_trains_by_that_name(self, make_config):
        trainer = Trainer.from_config(make_config("lora.method=decoder"))
        names = {name.split(".")[0] for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert names == {"sam_mask_decoder"}


@pytest.mark.parametrize("start", ["data", "contrast"])
def test_adapters_that_looked_at_the_data_begin_otherwise_and_add_nothing(make_config, tmp_path, start):
    settings = ["dataset.name=other"]
    drawn = Trainer.from_config(make_config(*settings, f"output_dir={tmp_path / 'a'}")).model.state_dict()
    looked = Trainer.from_config(
        make_config(*settings, f"training.adapter_init={start}", f"output_dir={tmp_path / 'b'}")
    ).model
    differing = {name.rsplit(".", 1)[1] for name, t in looked.state_dict().items() if not torch.equal(t, drawn[name])}
    assert "lora_A" in differing and "lora_B" not in differing


def test_a_start_by_contrast_freezes_a_also_after_a_resume(make_config, tmp_path):
    settings = ["training.adapter_init=contrast", "training.max_epochs=2", f"output_dir={tmp_path / 'run'}"]
    first = Trainer.from_config(make_config(*settings, "training.max_steps=1"))
    began = {n: p.clone() for n, p in first.model.named_parameters() if n.endswith("lora_A")}
    assert not any(p.requires_grad for n, p in first.model.named_parameters() if n.endswith("lora_A"))
    first.fit()
    again = Trainer.from_config(make_config(*settings), resume=str(tmp_path / "run/checkpoints/last.pt"))
    again.fit()
    found = dict(again.model.named_parameters())
    assert began and all(torch.equal(found[name], value) for name, value in began.items())
    assert any(found[name.replace("lora_A", "lora_B")].any() for name in began)


def test_a_base_without_general_clips_asks_for_a_folder(make_config, monkeypatch):
    monkeypatch.setattr("src.tasks.tracking.distillation.SOURCE", CELLS)
    with refuses("distill.no-folder", "training.distill.folder"):
        Trainer.from_config(make_config("training.adapter_init=contrast"))


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        (["training.extend=a", "training.start_from=b"], ["training.extend", "training.start_from"]),
        (["training.extend=a", "lora.method=full"], ["training.extend", "lora.method"]),
        (["training.adapter_init=data", "lora.method=full"], ["training.adapter_init", "lora.method full"]),
        (["training.adapter_scales=[0.5]", "lora.method=full"], ["training.adapter_scales", "lora.method"]),
        (["training.adapter_scales=[0.5]", "training.start_from=a"], ["training.adapter_scales", "start_from"]),
        (["training.adapter_scales=[0.5, 1.5]"], ["training.adapter_scales.1"]),
    ],
)
def test_settings_that_exclude_each_other(make_config, settings, facts):
    with refuses("config.mistakes", *facts):
        make_config(*settings)
