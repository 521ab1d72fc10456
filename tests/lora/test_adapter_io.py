import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from src.config import LoraConfig
from src.core.errors import UserError
from src.lora.adapter import iter_adapter_layers, list_groups
from src.lora.adapter_io import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_state_dict,
    base_fingerprint,
    base_state_dict,
    join_adapters,
    load_adapter,
    read_adapter,
    read_adapter_config,
    save_adapter,
    write_adapter,
)
from src.lora.expert_groups import active_adapter, add_adapter, set_adapter, use_adapter
from src.lora.injection import apply_method
from src.lora.merging import merge_adapters, unload_merged, unmerge_adapters
from tests.errors import refuses

EXTRA = {"model_name": "sam2_nano", "image_size": 128}


def config(method="mope", **options):
    return LoraConfig(method=method, rank=2, experts=3, target_modules=["0", "2"], **options)


def base_model(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5, bias=False), nn.BatchNorm1d(5)).eval()
    model.register_buffer("step", torch.tensor(3))  # a scalar, which has no bytes view of its own
    return model


def trained_model(method="mope"):
    model = base_model()
    apply_method(model, config(method))
    torch.manual_seed(1)
    for parameter in adapter_state_dict(model).values():
        nn.init.normal_(parameter)
    return model


@pytest.fixture(params=["mope", "lora"])
def method(request):
    return request.param


@pytest.fixture
def saved(method, tmp_path):
    folder = tmp_path / "nested" / "adapter"
    model = trained_model(method)
    save_adapter(model, folder, config(method), EXTRA)
    return model, folder


def test_state_dicts_part_the_model_in_two(method):
    model, base = trained_model(method), base_model()
    assert base_state_dict(model).keys() == base.state_dict().keys()
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in base_state_dict(model).items())
    assert len(base_state_dict(model)) + len(adapter_state_dict(model)) == len(model.state_dict())
    assert ("0.gate.weight" if method == "mope" else "0.adapter.lora_A") in adapter_state_dict(model)


def test_the_fingerprint_is_of_the_base_alone():
    fingerprint = base_fingerprint(base_model())
    assert len(fingerprint) == 64
    assert base_fingerprint(trained_model("mope")) == fingerprint
    model = trained_model("lora")
    assert base_fingerprint(model) == fingerprint
    merge_adapters(model)
    assert base_fingerprint(model) == fingerprint


def test_the_fingerprint_sees_values_names_shapes_dtypes_and_buffers():
    changed = [base_model() for _ in range(5)]
    with torch.no_grad():
        changed[0][2].weight[4, 7] += 1e-6
    changed[1].bfloat16()
    changed[2].step += 1
    changed[3].add_module("4", nn.Identity().register_buffer("step", None) or nn.Linear(1, 1))
    changed[4][0].weight = nn.Parameter(changed[4][0].weight.detach().reshape(6, 8))
    fingerprints = {base_fingerprint(model) for model in [base_model(), *changed]}
    assert len(fingerprints) == 6


def test_round_trip_into_a_bare_model(saved):
    trained, folder = saved
    model = base_model()
    found = load_adapter(model, folder)
    x = torch.randn(20, 6)
    assert not torch.allclose(trained(x), base_model()(x), atol=1e-2)
    assert torch.equal(model(x), trained(x))
    assert found.lora == config(trained[0].settings()["method"])
    assert found.extra == EXTRA
    assert {n for n, p in model.named_parameters() if p.requires_grad} == adapter_state_dict(model).keys()
    assert sorted(path.name for path in folder.iterdir()) == [WEIGHTS_FILE, CONFIG_FILE]


def test_round_trip_into_a_model_with_adapters(saved, method):
    trained, folder = saved
    model = base_model()
    apply_method(model, config(method))
    load_adapter(model, folder)
    x = torch.randn(20, 6)
    assert torch.equal(model(x), trained(x))


def test_saving_again_replaces(saved, method):
    trained, folder = saved
    nn.init.zeros_(trained[0].lora_B)
    save_adapter(trained, folder, config(method), {})
    assert read_adapter_config(folder).extra == {}
    model = base_model()
    load_adapter(model, folder)
    assert not model[0].lora_B.any()


def test_a_failed_write_leaves_the_old_file(saved, method, monkeypatch):
    trained, folder = saved
    before = (folder / WEIGHTS_FILE).read_bytes()

    def half_write(weights, path, *_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    def refuse(*_):
        raise OSError("not replaced")

    nn.init.zeros_(trained[0].lora_B)
    with monkeypatch.context() as patch, refuses("files.not-written", "disk full"):
        patch.setattr("src.lora.adapter_io.save_file", half_write)
        save_adapter(trained, folder, config(method), EXTRA)
    with monkeypatch.context() as patch, refuses("files.not-written", "not replaced"):
        patch.setattr("os.replace", refuse)
        save_adapter(trained, folder, config(method), EXTRA)
    assert (folder / WEIGHTS_FILE).read_bytes() == before
    assert len(list(folder.iterdir())) == 2


def test_saving_a_merged_model_saves_the_same(tmp_path):
    model = trained_model("lora")
    save_adapter(model, tmp_path / "a", config("lora"), {})
    merge_adapters(model)
    save_adapter(model, tmp_path / "b", config("lora"), {})
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_loading_into_a_merged_model_unmerges(tmp_path):
    model = trained_model("lora")
    save_adapter(model, tmp_path, config("lora"), {})
    x = torch.randn(4, 6)
    expected = model(x)
    nn.init.zeros_(model[0].lora_B)
    merge_adapters(model)
    load_adapter(model, tmp_path)
    assert torch.equal(model(x), expected)


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="no adapters"):
        save_adapter(base_model(), tmp_path, config(), {})
    with pytest.raises(ValueError, match="lora"):
        save_adapter(trained_model(), tmp_path, config(), {"lora": 1})
    with pytest.raises(ValueError, match="0: "):
        save_adapter(trained_model(), tmp_path, config(alpha=99.0), {})
    assert not list(tmp_path.iterdir())


def refused(model, folder, code):
    """Load what is refused with this code, which must leave the model as it was; return the message."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with refuses(code) as error:
        load_adapter(model, folder)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trains
    return str(error.value)


def test_another_base_is_refused_with_both_fingerprints(saved):
    _, folder = saved
    other = base_model(seed=5)
    message = refused(other, folder, "adapter.other-base")
    assert base_fingerprint(base_model())[:12] in message
    assert base_fingerprint(other)[:12] in message


@pytest.mark.parametrize("adapted", [False, True])
def test_missing_left_over_and_misshapen_keys_are_all_listed(saved, method, adapted):
    trained, folder = saved
    a_key, *_, b_key = adapter_state_dict(trained)
    weights = load_file(folder / WEIGHTS_FILE)
    del weights[a_key]
    weights["9.lora_A"] = torch.zeros(2)
    weights[b_key] = torch.zeros(1, 2)
    save_file(weights, folder / WEIGHTS_FILE)
    model = base_model()
    if adapted:
        apply_method(model, config(method))
    message = refused(model, folder, "adapter.mismatch")
    assert f"missing: {a_key}" in message
    assert "left over: 9.lora_A" in message
    assert f"{b_key}: shape (1, 2) in the file" in message


@pytest.mark.parametrize("other", [{"alpha": 99.0}, {"top_k": 1}])
def test_adapters_of_equal_shapes_and_other_settings_are_refused(tmp_path, other):
    save_adapter(trained_model(), tmp_path, config(), {})
    model = base_model()
    apply_method(model, config(**other))
    assert "0: the configuration says" in refused(model, tmp_path, "adapter.mismatch")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved, share):
    _, folder = saved
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[: int(share * len(data))])
    assert WEIGHTS_FILE in refused(base_model(), folder, "adapter.damaged")


def test_a_flipped_bit_never_changes_the_weights_that_load(saved):
    model, folder = saved
    path = folder / WEIGHTS_FILE
    whole = path.read_bytes()
    for place in range(8, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            found = read_adapter(folder).weights
        except UserError as error:
            assert error.code == "adapter.damaged" and WEIGHTS_FILE in str(error)
            continue
        assert place < 8 + int.from_bytes(whole[:8], "little"), "a bit of a number flipped"
        assert all(torch.equal(tensor, found[name]) for name, tensor in adapter_state_dict(model).items())


def test_a_flipped_bit_of_the_settings_never_changes_what_adapters_compute(saved):
    _, folder = saved
    path = folder / CONFIG_FILE
    whole, settings = path.read_bytes(), read_adapter_config(folder).lora
    alpha = whole.index(b'"alpha": ') + len(b'"alpha": ')
    flips = [(place, bit) for place in range(alpha - 9, alpha + 4) for bit in range(8)]
    for place, bit in [*flips, *((place, place % 8) for place in range(0, len(whole), 7))]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            found = read_adapter(folder).config.lora
        except UserError as error:
            assert CONFIG_FILE in str(error)
            continue
        assert found == settings


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_with_or_without_a_checksum(saved, value):
    model, folder = saved
    name, tensor = next(reversed(adapter_state_dict(model).items()))
    tensor.data.view(-1)[-1:].fill_(value)
    save_file({name: tensor.contiguous() for name, tensor in adapter_state_dict(model).items()}, folder / WEIGHTS_FILE)
    assert name in refused(base_model(), folder, "adapter.not-finite")
    save_adapter(model, folder, read_adapter_config(folder).lora, EXTRA)
    assert name in refused(base_model(), folder, "adapter.not-finite")


def test_weights_of_earlier_versions_without_a_checksum_load(saved):
    model, folder = saved
    save_file(load_file(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    assert read_adapter(folder).weights.keys() == adapter_state_dict(model).keys()


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE])
def test_a_missing_file_is_refused(saved, name):
    _, folder = saved
    (folder / name).unlink()
    assert str(folder / name) in refused(base_model(), folder, "adapter.missing-file")


@pytest.mark.parametrize(
    ("change", "code", "fact"),
    [
        ("{", "adapter.damaged", "JSON"),
        ("[]", "adapter.format", "format_version 1 or 2"),
        ({"format_version": 99}, "adapter.format", "format_version 1 or 2"),
        ({"base_fingerprint": None}, "adapter.config", "base_fingerprint"),
        ({"lora": {"rank": 0, "alhpa": 1}}, "adapter.config", "lora.alhpa: "),
        ({"lora": None}, "adapter.config", "lora"),
        ({"lora": {"method": "full"}}, "adapter.config", "lora.method 'full'"),
    ],
)
def test_a_wrong_config_file_is_refused(saved, change, code, fact):
    _, folder = saved
    path = folder / CONFIG_FILE
    path.write_text(change if isinstance(change, str) else json.dumps({**json.loads(path.read_text()), **change}))
    message = refused(base_model(), folder, code)
    assert str(path) in message
    assert fact in message


def test_merging_a_model_keeps_its_output_and_unmerging_restores_it():
    model = trained_model("lora")
    x = torch.randn(20, 6)
    out, state = model(x), copy.deepcopy(model.state_dict())
    for _ in range(3):
        merge_adapters(model)
    assert all(adapter.merged for _, adapter in iter_adapter_layers(model))
    torch.testing.assert_close(model(x), out, rtol=1e-4, atol=1e-4)
    unmerge_adapters(model)
    assert torch.equal(model(x), out)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_unloading_gives_a_plain_model_with_the_adapted_output():
    model = trained_model("lora")
    x = torch.randn(20, 6)
    out = model(x)
    unload_merged(model)
    assert type(model[0]) is type(model[2]) is nn.Linear
    plain = base_model()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("action", [merge_adapters, unmerge_adapters, unload_merged])
def test_routed_layers_are_not_merged(action):
    with refuses("merge.router"):
        action(trained_model("mope"))
    with pytest.raises(ValueError, match="no adapters"):
        action(base_model())


GROUPS = {
    "cells": config(),
    "endoscopy": config("lora"),
    "road": config(router={"null_expert": True}),
}


def model_with(*names):
    """A model with trained groups; a group's weights follow from its name."""
    model = base_model()
    for name in names:
        torch.manual_seed(list(GROUPS).index(name))
        for adapter in add_adapter(model, name, GROUPS[name]).values():
            for tensor in adapter.adapter_state().values():
                nn.init.normal_(tensor)
    return model


def save_groups(folder, *names, extra=EXTRA):
    save_adapter(model_with(*names), folder, {name: GROUPS[name] for name in names}, extra)
    return folder


def outputs(model, *names):
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    found = {}
    for name in names:
        with use_adapter(model, name):
            found[name] = model(x)
    return found


def assert_same_outputs(model, expected, *names):
    theirs, ours = outputs(expected, *names), outputs(model, *names)
    assert not any(torch.allclose(out, base_model()(torch.zeros(20, 6))) for out in theirs.values())
    assert all(torch.equal(ours[name], theirs[name]) for name in names)


def test_groups_round_trip_into_a_bare_model_and_one_with_groups(tmp_path):
    save_groups(tmp_path, *GROUPS)
    model = base_model()
    found = load_adapter(model, tmp_path)
    assert found.lora == GROUPS
    assert list_groups(model) == list(GROUPS)
    assert active_adapter(model) is None
    assert_same_outputs(model, model_with(*GROUPS), *GROUPS)
    own = {p for _, adapter in iter_adapter_layers(model) for p in adapter.adapter_parameters()}
    assert {p for p in model.parameters() if p.requires_grad} == own
    for tensor in adapter_state_dict(model).values():
        tensor.zero_()
    load_adapter(model, tmp_path)
    assert_same_outputs(model, model_with(*GROUPS), *GROUPS)


def test_a_single_group_is_active_when_loaded(tmp_path):
    model = base_model()
    load_adapter(model, save_groups(tmp_path, "road"))
    assert active_adapter(model) == "road"


@pytest.mark.parametrize(
    "written", [{}, {"level": "token", "jitter": 0.0, "noise": 0.0, "bias": True, "bias_rate": 0.0}]
)
def test_files_of_earlier_versions_are_read(saved, written):
    trained, folder = saved
    save_file(read_adapter(folder).weights, folder / WEIGHTS_FILE)  # without checksums
    content = json.loads((folder / CONFIG_FILE).read_text())
    content["lora"]["router"] |= written
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    model, x = base_model(), torch.randn(20, 6)
    load_adapter(model, folder)
    assert torch.equal(model(x), trained(x))


@pytest.mark.parametrize("written", [{"level": "frame"}, {"bias": False}, {"bias_rate": 0.01}])
def test_adapters_with_an_option_that_was_removed_are_refused(saved, written):
    _, folder = saved
    content = json.loads((folder / CONFIG_FILE).read_text())
    content["lora"]["router"] |= written
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    message = refused(base_model(), folder, "adapter.config")
    assert next(iter(written)) in message
    assert "docs/forgetting.md" in message


def test_groups_that_could_not_be_loaded_are_not_saved(tmp_path):
    both = {name: GROUPS[name] for name in ("cells", "road")}
    for model, configs in [(model_with("cells"), both), (model_with("cells", "road"), {"cells": config()}),
                           (model_with("cells"), config()), (trained_model(), {"cells": config()})]:  # fmt: skip
        with pytest.raises(ValueError, match="not the adapters' own"):
            save_adapter(model, tmp_path / "a", configs, {})
    assert not list(tmp_path.iterdir())


def test_groups_are_not_loaded_into_other_adapters(tmp_path):
    save_groups(tmp_path, "cells")
    assert "group" in refused(trained_model(), tmp_path, "adapter.mismatch")
    assert "the model has no group 'cells'" in refused(model_with("road"), tmp_path, "adapter.mismatch")
    weights = load_file(tmp_path / WEIGHTS_FILE)
    del weights["0.groups.cells.gate.bias"]
    save_file(weights, tmp_path / WEIGHTS_FILE)
    assert "missing: 0.groups.cells.gate.bias" in refused(base_model(), tmp_path, "adapter.mismatch")


@pytest.mark.parametrize(
    ("groups", "code", "fact"),
    [
        (None, "adapter.config", "groups"),
        ({}, "adapter.config", "groups"),
        ([1], "adapter.config", "groups"),
        ({"a": {"rank": 0}}, "adapter.config", "groups.a.rank: "),
        ({"a": {"method": "full"}}, "adapter.config", "groups.a.method 'full'"),
        (
            {"cells": config().model_dump(mode="json"), "b": {"target_modules": ["nowhere"]}},
            "targets.no-match",
            "nowhere",
        ),
        ({"a/b": config().model_dump(mode="json")}, "groups.invalid-name", "a/b"),
    ],
)
def test_a_wrong_list_of_groups_is_refused(tmp_path, groups, code, fact):
    path = save_groups(tmp_path, "cells") / CONFIG_FILE
    save_file(load_file(tmp_path / WEIGHTS_FILE), tmp_path / WEIGHTS_FILE)  # without checksums
    path.write_text(json.dumps({**json.loads(path.read_text()), "groups": groups}))
    assert fact in refused(base_model(), tmp_path, code)


def test_joined_groups_are_as_they_were_learned_apart(tmp_path):
    save_adapter(trained_model(), tmp_path / "plain", config(), EXTRA)
    parts = [
        ("a", read_adapter(save_groups(tmp_path / "1", "cells", "road"))),
        ("b", read_adapter(save_groups(tmp_path / "2", "endoscopy", extra={**EXTRA, "note": 1}))),
        ("plain", read_adapter(tmp_path / "plain")),
    ]
    write_adapter(tmp_path / "joined", join_adapters(parts))
    model = base_model()
    assert load_adapter(model, tmp_path / "joined").extra == {**EXTRA, "note": 1}
    assert list_groups(model) == ["cells", "road", "endoscopy", "plain"]
    assert_same_outputs(model, model_with(*GROUPS), *GROUPS)
    x = torch.randn(20, 6)
    set_adapter(model, "plain")
    assert torch.equal(model(x), trained_model()(x))


def test_what_cannot_be_joined_is_named(tmp_path):
    first = read_adapter(save_groups(tmp_path / "1", "cells"))
    with refuses("join.same-name"):
        join_adapters([("a", first), ("b", read_adapter(save_groups(tmp_path / "2", "road", "cells")))])
    with refuses("join.different"):
        join_adapters(
            [("a", first), ("b", read_adapter(save_groups(tmp_path / "3", "road", extra={"image_size": 64})))]
        )
    other = base_model(seed=5)
    add_adapter(other, "road", GROUPS["road"])
    save_adapter(other, tmp_path / "4", {"road": GROUPS["road"]}, EXTRA)
    with refuses("join.other-base"):
        join_adapters([("a", first), ("b", read_adapter(tmp_path / "4"))])
    save_adapter(trained_model(), tmp_path / "5", config(), EXTRA)
    with refuses("groups.invalid-name"):
        join_adapters([("a", first), ("b c", read_adapter(tmp_path / "5"))])


def test_a_model_with_groups_does_not_become_a_plain_one():
    with refuses("merge.groups"):
        unload_merged(model_with("endoscopy"))
