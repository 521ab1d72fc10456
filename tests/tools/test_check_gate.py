"""The check of a gate counts what it rejects and accepts, set by set, and names what it was not given."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from src.config import load_config
from src.data.synthetic import CELLS, HELD_OUT_SEED, SOURCE, TISSUE, make_videos, shifted
from src.gating.fit import fit_gate
from src.models.build import build_model
from tests.errors import refuses
from tools import check_gate

CONFIG = "src/configs/mope.yaml"


def write(folder, domain, count, seed):
    folder.mkdir()
    for i, video in enumerate(make_videos(domain, count, seed, frames=1).videos):
        Image.fromarray(video.frames[0].read()).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("sets")
    for domain in (CELLS, TISSUE):
        write(top / f"{domain.name}_train", domain, 8, 0)
        write(top / f"{domain.name}_test", domain, 4, HELD_OUT_SEED)
    write(top / "street", SOURCE, 3, HELD_OUT_SEED)
    write(top / "grey", shifted(CELLS, "grey"), 3, HELD_OUT_SEED)
    return top


def run(*more):
    check_gate.main(check_gate.build_parser().parse_args(["--config", CONFIG, *map(str, more)]))


def sets(folders, *names):
    return [x for n in names for x in ("--known", f"{n}={folders}/{n}_train", "--own", f"{n}={folders}/{n}_test")]


def test_a_gate_is_fitted_and_every_set_counted(folders, tmp_path, capsys):
    report, sheet = tmp_path / "report.json", tmp_path / "worst.png"
    run(*sets(folders, "cells", "tissue"), "--other", f"street={folders}/street", "--json", report, "--sheet", sheet)
    found = json.loads(report.read_text())["domains"]
    assert list(found) == ["cells", "tissue"]
    assert set(found["cells"]["false_accept"]) == {"tissue", "street"}
    for values in found.values():
        wrong = np.mean([values["false_reject"], values["false_reject_other_light"]])
        taken = np.mean(list(values["false_accept"].values()))
        assert values["balanced_accuracy"] == pytest.approx(1 - (wrong + taken) / 2)
    assert found["tissue"]["balanced_accuracy"] > 0.85
    said = capsys.readouterr().out
    assert f"worst {min(v['balanced_accuracy'] for v in found.values()):.3f}" in said
    assert Image.open(sheet).width == check_gate.WORST * check_gate.SIDE


def test_shares_are_those_of_the_gates_own_decisions(folders, tmp_path):
    """The gate of an adapter folder, asked picture by picture."""
    model = build_model(load_config(CONFIG).model).eval()
    pictures = [np.asarray(Image.open(path)) for path in sorted((folders / "cells_train").iterdir())]
    gate = fit_gate(model, "cells", pictures)
    gate.save(tmp_path)
    report = tmp_path / "report.json"
    more = ["--own", f"cells={folders}/cells_test", "--other", f"grey={folders}/grey"]
    run("--adapter", tmp_path, *more, "--json", report)
    found = json.loads(report.read_text())["domains"]["cells"]
    room = check_gate.model_spec("sam2_nano").load()

    def inside(folder):
        seen = [room.to_pixels(model, np.asarray(Image.open(path))) for path in sorted((folders / folder).iterdir())]
        return np.mean([gate.decide(room.gate_features(model, x[None])[0]).domain == "cells" for x in seen])

    assert found["false_reject"] == pytest.approx(1 - inside("cells_test"))
    assert found["false_accept"] == {"grey": pytest.approx(inside("grey"))}


def test_other_light_changes_pictures_and_stays_within_range():
    x = torch.rand(8, 8, 3).double().numpy()
    for light in check_gate.LIGHTS.values():
        assert not np.allclose(light(x, np.random.default_rng(0)), x)


def test_what_is_not_given_is_named(folders, tmp_path):
    own = ["--own", f"cells={folders}/cells_test"]
    with refuses("check-gate.gate"):
        run(*own)
    with refuses("check-gate.pair", "--own cells"):
        run("--own", "cells")
    with refuses("check-gate.folder", "nowhere"):
        run("--own", "cells=nowhere")
    with refuses("check-gate.own", "tissue"):
        run(*sets(folders, "cells"), "--known", f"tissue={folders}/tissue_train")
    with refuses("check-gate.other", "cells"):
        run(*sets(folders, "cells"))
    with refuses("check-gate.no-gate", str(tmp_path)):
        run("--adapter", tmp_path, *own)
