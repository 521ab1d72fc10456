"""The demo's page in a headless Chromium, from the first click to the tracked clip; and the command's refusals."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.config import load_config
from src.gating.fit import fit_gate
from src.lora.adapter import iter_adapter_layers
from src.lora.adapter_io import save_adapter
from src.lora.injection import apply_method
from src.models.sam2.build import build_model
from tests.errors import refuses

SCRIPT = "demo"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 120_000  # milliseconds that a busy machine may take for a step


def test_without_gradio_one_line_says_what_to_install(run_script, monkeypatch, tiny_yaml):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "src.demo.page", raising=False)
    status, _, errors = run_script(SCRIPT, "--config", tiny_yaml)
    assert status == 2
    assert errors == "error: the page needs gradio: pip install gradio\n"


@pytest.fixture(scope="module")
def gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return pytest.importorskip("gradio", reason="the page needs gradio")


@pytest.fixture(scope="module")
def page(gradio, tiny_yaml, tmp_path_factory) -> Any:
    """The page of an adapter that is random, with a gate that knows noise."""
    from src.demo.page import build_page

    config = load_config(tiny_yaml)
    torch.manual_seed(config.training.seed)
    model = build_model(config.model)
    apply_method(model, config.lora)
    for _, adapter in iter_adapter_layers(model):
        torch.nn.init.normal_(adapter.lora_B)
    folder = tmp_path_factory.mktemp("demo") / "adapter"
    save_adapter(model, folder, config.lora, {})
    fit_gate(model, "noise", np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)).save(folder)
    return build_page(config, str(folder), most_frames=10)[0]


@pytest.fixture(scope="module")
def served(page) -> Iterator[str]:
    blocks, address = page.serve(free_port())
    yield address
    blocks.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="driving the page needs playwright")
    with playwright.sync_playwright() as player:
        try:
            started = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium to drive the page with: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture
def tab(browser, served) -> Iterator[Any]:
    """The page in a tab of its own, which can reach nothing but this machine."""
    context = browser.new_context(viewport={"width": 1400, "height": 1500})
    context.set_default_timeout(PATIENCE)
    asked: list[str] = []

    def refuse(route: Any) -> None:
        asked.append(route.request.url)
        route.abort()

    context.route(lambda url: not url.startswith((served, "data:", "blob:")), refuse)
    tab = context.new_page()
    tab.goto(served)
    says(tab, "status", "take a sample")
    yield tab
    context.close()
    assert not asked, "the page asks nothing of the network"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def says(tab: Any, name: str, text: str) -> str:
    """Wait until a text box holds a text; returns all it holds."""
    tab.wait_for_function(
        "([id, text]) => document.querySelector(`#${id} textarea, #${id} input`)?.value.includes(text)",
        arg=[name, text],
    )
    return tab.locator(f"#{name} textarea, #{name} input").first.input_value()


def choose(tab: Any, name: str, option: str) -> None:
    tab.locator(f"#{name} input").click()
    tab.get_by_role("option", name=option).click()


def source_of(tab: Any, name: str) -> str:
    return tab.locator(f"#{name} img").get_attribute("src")


def click_at(tab: Any, x: float, y: float) -> None:
    """Click on the picture, at shares of its width and height."""
    box = tab.locator("#prompted img").bounding_box()
    tab.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def test_a_sample_is_clicked_on_overruled_and_tracked(tab):
    tab.locator("#sample input").click()
    tab.get_by_role("option").first.click()
    assert "none of the domains it knows" in says(tab, "gate", "domain gate on frame 0:")
    assert "adapters off" in says(tab, "gate", "mode auto")
    empty = source_of(tab, "base")
    click_at(tab, 0.5, 0.5)
    assert "object 1: base and adapted the same" in says(tab, "masks", "this frame alone")
    assert source_of(tab, "base") != empty
    says(tab, "about", "adapters are off")
    tab.locator("#mode label", has_text="on").first.click()
    says(tab, "gate", "adapters on (noise)")
    tab.locator("#track").click()
    says(tab, "status", "tracked 3 frames")
    tab.locator("#video video").wait_for()
    assert tab.locator("#files a").count() >= 1
    tab.locator("#frame input[type=range]").press("ArrowRight")
    tab.locator("#frame input[type=range]").press("ArrowRight")
    says(tab, "about", "frame 2: mean over")
    assert "tracked" in says(tab, "masks", "object 1")
    assert source_of(tab, "base") != source_of(tab, "adapted")
    tab.locator("#heat img").wait_for()


def test_an_upload_takes_a_box_and_a_mistake_takes_one_line(tab, tmp_path):
    tab.locator("#track").click()
    assert told(tab) == "there is no picture yet: upload one, or take a sample"
    (tmp_path / "notes.png").write_text("no picture")
    tab.locator("#upload input[type=file]").set_input_files(tmp_path / "notes.png")
    assert told(tab).startswith("notes.png: ")
    picture = np.full((40, 60, 3), 90, np.uint8)
    picture[10:30, 15:45] = (220, 80, 80)
    Image.fromarray(picture).save(tmp_path / "patch.png")
    tab.locator("#upload button[aria-label='Remove this file'], #upload button[aria-label='Clear']").first.click()
    tab.locator("#upload input[type=file]").set_input_files(tmp_path / "patch.png")
    says(tab, "status", "patch: 3 frames of 60×40 pixels")
    tab.locator("#track").click()
    assert told(tab).startswith("nothing is pointed at yet")
    tab.locator("#kind label", has_text="corner").click()
    click_at(tab, 0.2, 0.2)
    click_at(tab, 0.8, 0.8)
    says(tab, "masks", "this frame alone; object 1")
    tab.get_by_role("button", name="undo").click()
    says(tab, "masks", "no masks yet")


def told(tab: Any) -> str:
    """The message on the page, which is closed."""
    message = tab.get_by_test_id("toast-text")
    message.wait_for()
    text = message.inner_text()
    tab.get_by_test_id("toast-close").click()
    message.wait_for(state="detached")
    return text


def test_a_port_that_is_taken(page, served):
    port = served.rstrip("/").rpartition(":")[2]
    with refuses("demo.port", port, "--port"):
        page.serve(int(port))
