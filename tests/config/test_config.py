"""Mistakes in a config are found before anything starts, all at once, each with its dotted key."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from src.config import Config, DatasetConfig, LoraConfig, ModelConfig, PromptConfig, load_config
from tests.errors import refuses

ROOT = Path(__file__).parents[2]


def load(tmp_path: Path, text: str, *overrides: str) -> Config:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, list(overrides))


def mistakes_in(tmp_path: Path, text: str, *overrides: str, code: str = "config.mistakes") -> str:
    with refuses(code) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value)


def test_an_empty_file_is_the_default_run_on_bundled_weights(tmp_path):
    loaded = load(tmp_path, "")
    assert loaded == Config(model=ModelConfig(checkpoint="checkpoints/sam2_nano.safetensors"))


def test_a_run_without_a_model_says_which_is_meant(tmp_path, capsys):
    assert load(tmp_path, "dataset: {resolution: 64}").model.checkpoint == "checkpoints/sam2_nano.safetensors"
    assert "sam2_nano" in (said := capsys.readouterr().out) and "model.checkpoint" in said
    assert load(tmp_path, "model: {name: sam2_nano}").model.checkpoint is None
    assert capsys.readouterr().out == ""


def test_another_models_size_says_whose_it_is(tmp_path):
    assert "sam3" in mistakes_in(tmp_path, "dataset: {resolution: 1008}")


@pytest.mark.parametrize(
    ("text", "key", "facts"),
    [
        ("training: {learning_rat: 1.0}", "training.learning_rat", ["unknown key", "'learning_rate'"]),
        ("lora: {router: {balance_weigth: 1}}", "lora.router.balance_weigth", ["'balance_weight'"]),
        ("trainin: {}", "trainin", ["'training'"]),
        ("lora: {router: {qqq: 1}}", "lora.router.qqq", ["balance_weight, z_weight"]),
        (
            "evaluation: {domains: [{name: a, img_folder: b, ann_fil: c, ann_file: d}]}",
            "evaluation.domains.0.ann_fil",
            ["'ann_file'"],
        ),
        ("model: {image_size: 100}", "model.image_size", ["32", "96", "100"]),
        ("lora: {rank: 0}", "lora.rank", ["greater than 0", "found 0"]),
        ("lora: {rank: 2.5}", "lora.rank", ["2.5"]),
        ("lora: {target_modules: q_proj}", "lora.target_modules", ["'q_proj'"]),
        ("lora: {target_modules: []}", "lora.target_modules", []),
        ("lora: {method: moe}", "lora.method", ["'mope'", "'none'", "'moe'"]),
        ("training: {learning_rate: fast}", "training.learning_rate", ["'fast'"]),
        ("training: {learning_rate: .inf}", "training.learning_rate", ["finite"]),
        ("training: [1, 2]", "training", ["[1, 2]"]),
        ("training: 3", "training", ["3"]),
        ("dataset: {clip: [4]}", "dataset.clip", ["[4]"]),
        ("lora: {experts: 3, top_k: 4}", "lora", ["top_k", "4", "3"]),
        ("training: {prompts: {mask: 0.5, box: 0.5, point: 0.5}}", "training.prompts", ["1.5"]),
        ("training: {use_amp: sometimes}", "training.use_amp", ["'sometimes'"]),
    ],
)
def test_a_mistake_is_named_with_its_dotted_key(tmp_path, text, key, facts):
    message = mistakes_in(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'run.yaml'}: ")
    (mistake,) = [line for line in message.splitlines() if line.startswith(f"  {key}: ")]
    assert all(fact in mistake for fact in facts)


def test_all_mistakes_are_reported_at_once(tmp_path):
    message = mistakes_in(
        tmp_path, "{model: {nam: x}, lora: {rank: -1}, training: {max_epochs: many}, output_dir: 3, extra: 1}"
    )
    assert "5 mistakes" in message
    for key in ("model.nam", "lora.rank", "training.max_epochs", "output_dir", "extra"):
        assert f"\n  {key}: " in message


def test_one_mistake_is_counted_in_the_singular(tmp_path):
    assert ": 1 mistake\n" in mistakes_in(tmp_path, "lora: {rank: 0}")


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("5E+2", 500.0), ("1.5e-3", 1.5e-3), ("3", 3.0)])
def test_exponents_without_a_point_are_numbers(tmp_path, text, value):
    assert load(tmp_path, f"training: {{learning_rate: {text}}}").training.learning_rate == value
    assert load(tmp_path, "", f"training.learning_rate={text}").training.learning_rate == value


def test_text_that_only_looks_like_an_exponent_stays_text(tmp_path):
    assert load(tmp_path, "output_dir: run1e-4").output_dir == "run1e-4"


def test_a_key_given_twice_is_refused(tmp_path):
    message = mistakes_in(tmp_path, "lora:\n  rank: 4\n  rank: 8\n", code="config.not-yaml")
    assert "'rank'" in message
    assert "line 3" in message
    assert "\n" not in message


def test_domain_names_are_unique_and_free(tmp_path):
    domain = "{{name: {}, img_folder: a, ann_file: b}}"
    twice = mistakes_in(tmp_path, f"evaluation: {{domains: [{domain.format('x')}, {domain.format('x')}]}}")
    assert "source, auto, on, off: x" in twice
    assert ": target" in mistakes_in(tmp_path, f"evaluation: {{domains: [{domain.format('target')}]}}")
    assert ": source" in mistakes_in(tmp_path, f"evaluation: {{domains: [{domain.format('source')}]}}")
    assert len(load(tmp_path, f"evaluation: {{domains: [{domain.format('x')}]}}").evaluation.domains) == 1


@pytest.mark.parametrize("name", ["a/b", "../../x", "a\\b", "", "..", "x."])
def test_domain_names_are_file_names(tmp_path, name):
    assert "dataset.name" in mistakes_in(tmp_path, f"dataset: {{name: '{name}'}}")


def test_the_null_expert_can_be_chosen_too():
    assert LoraConfig(experts=2, top_k=3, router={"null_expert": True}).top_k == 3


def test_prompt_shares_may_be_off_by_rounding():
    assert PromptConfig(mask=1 / 3, box=1 / 3, point=1 / 3)


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "read"),
        [
            ("lora.rank=7", lambda c: c.lora.rank == 7),
            ("lora.target_modules=[q_proj, 'memory_attention.*.v_proj']",
             lambda c: c.lora.target_modules == ["q_proj", "memory_attention.*.v_proj"]),
            ("lora.router.null_expert=true", lambda c: c.lora.router.null_expert is True),
            ("dataset.clip.motion.degrees=3", lambda c: c.dataset.clip.motion.degrees == 3.0),
            ("dataset.clip={frames: 2, max_objects: 1}", lambda c: c.dataset.clip.frames == 2),
            ("model.checkpoint=null", lambda c: c.model.checkpoint is None),
            ("training.max_grad_norm=", lambda c: c.training.max_grad_norm is None),
            ("output_dir=a=b", lambda c: c.output_dir == "a=b"),
            ("training.use_amp=auto", lambda c: c.training.use_amp == "auto"),
            ("training.use_amp=false", lambda c: c.training.use_amp is False),
        ],
    )  # fmt: skip
    def test_any_value_can_be_set(self, tmp_path, override, read):
        text = "{model: {checkpoint: some.pt}, training: {max_grad_norm: 5.0}, lora: {rank: 2}}"
        assert not read(load(tmp_path, text)) or override.startswith("training.use_amp=auto")
        assert read(load(tmp_path, text, override))

    def test_the_rest_of_the_section_stays(self, tmp_path):
        config = load(tmp_path, "lora: {rank: 2, alpha: 3.0}", "lora.rank=5", "lora.rank=6")
        assert (config.lora.rank, config.lora.alpha) == (6, 3.0)

    def test_a_section_that_is_empty_in_the_file_can_be_set(self, tmp_path):
        assert load(tmp_path, "lora:\n", "lora.rank=5").lora.rank == 5

    @pytest.mark.parametrize(
        ("override", "code", "fact"),
        [
            ("lora.rank", "config.override", "section.key=value"),
            ("=4", "config.override", "section.key=value"),
            ("lora..rank=4", "config.override", "section.key=value"),
            ("lora.target_modules=[q_proj", "config.override", "YAML"),
            ("lora.rank.deep=3", "config.not-a-section", "'lora.rank'"),
            ("lora.rnk=3", "config.mistakes", "'rank'"),
            ("lora.rank=many", "config.mistakes", "'many'"),
            ("training.save_every=5", "config.mistakes", "a section with steps, minutes, epochs (found 5)"),
            ("training=5", "config.mistakes", "a section with keys such as max_epochs, "),
        ],
    )
    def test_a_bad_one_is_explained(self, tmp_path, override, code, fact):
        message = mistakes_in(tmp_path, "lora: {rank: 4}", override, code=code)
        assert override.partition("=")[0] in message and fact in message


class TestFiles:
    def test_a_missing_file_is_named_with_its_neighbours(self, tmp_path):
        (tmp_path / "mope.yaml").touch()
        with refuses("config.missing") as caught:
            load_config(tmp_path / "mop.yaml")
        assert "mop.yaml" in str(caught.value) and "mope.yaml" in str(caught.value)

    def test_a_folder_is_not_a_config(self, tmp_path):
        (tmp_path / "mine.yaml").touch()
        with refuses("config.unreadable", "mine.yaml") as caught:
            load_config(tmp_path)
        assert "Errno" not in str(caught.value)

    def test_near_names_of_shipped_files_are_listed(self, tmp_path, monkeypatch):
        (tmp_path / "own.yaml").touch()
        monkeypatch.chdir(tmp_path)
        with refuses("config.missing", "own.yaml", "mope.yaml"):
            load_config("mop.yaml")

    @pytest.mark.parametrize("text", ["lora: {rank: 4", "a: b: c", "\tlora: 3", "lora: !!python/object:os.system {}"])
    def test_what_is_not_yaml_is_refused_in_one_line(self, tmp_path, text):
        assert "\n" not in mistakes_in(tmp_path, text, code="config.not-yaml")

    def test_bytes_that_are_not_text(self, tmp_path):
        path = tmp_path / "run.yaml"
        path.write_bytes(b"\xff\xfe\x00lora")
        with refuses("config.unreadable"):
            load_config(path)

    @pytest.mark.parametrize(("text", "kind"), [("- a\n- b", "list"), ("hello", "str"), ("3", "int")])
    def test_something_else_than_sections(self, tmp_path, text, kind):
        assert f"found {kind}" in mistakes_in(tmp_path, text, code="config.not-sections")

    def test_a_byte_order_mark_is_no_mistake(self, tmp_path):
        assert load(tmp_path, "\ufefflora: {rank: 3}").lora.rank == 3


def test_the_resolved_config_reads_back_equal(tmp_path):
    config = load(
        tmp_path,
        "{model: {checkpoint: ä.pt}, training: {learning_rate: 1e-4, use_amp: true, min_learning_rate: 1e-9}, "
        "evaluation: {domains: [{name: 'yes', img_folder: '1e5', ann_file: 'null'}]}}",
    )
    assert load(tmp_path, config.to_yaml()) == config
    assert load(tmp_path, Config().to_yaml()) == Config()


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from _keys(candidate, f"{prefix}{name}.")


def _attributes_read(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def _methods(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """The functions of the schema but its validators, whose reading of a key makes it no use."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "validator" not in ast.dump(ast.Module(node.decorator_list, [])):
            yield node


def test_every_key_is_read_by_code():
    """In the schema itself only what its methods read counts: its validators read keys that nothing may use."""
    read: set[str] = set()
    for file in [*ROOT.glob("src/**/*.py"), ROOT / "train.py", ROOT / "evaluate.py"]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for part in [tree] if file.parent.name != "config" else _methods(tree):
            read |= _attributes_read(part)
    unread = [key for key in _keys(Config) if key.rpartition(".")[2] not in read]
    assert unread == []


@pytest.mark.parametrize(
    "text",
    [
        "dataset: {phrases: {crack: [crack, fissure]}}",
        "training: {concepts: {negatives: 4}}",
    ],
)
def test_keys_of_another_task_are_mistakes(tmp_path, text):
    section, key = text.partition(":")[0], text.partition("{")[2].partition(":")[0]
    assert f"{section}.{key}" in mistakes_in(tmp_path, text)


def test_a_category_may_have_one_phrase_or_several():
    phrases = DatasetConfig(phrases={"Riss": "crack", "Rost": ["rust", "corrosion"]}).phrases
    assert phrases == {"Riss": ["crack"], "Rost": ["rust", "corrosion"]}
