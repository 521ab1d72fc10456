"""The page of ``sam2-mope demo``, in gradio: clicks go to a :class:`~src.demo.session.Session`, and its word is shown.

A mistake is told on the page in one line. Nothing is asked of the network: fonts are the browser's own.
"""

from __future__ import annotations

import functools
import html
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import gradio as gr

from ..cli.command import format_error
from ..config import Config
from ..core.errors import UserError
from ..data.decode.video import IMAGE_SUFFIXES
from .material import DemoInput, find_samples, open_input
from .session import Kind, Models, Session

HOST = "127.0.0.1"
MEAN, LARGEST = "mean over layers", "largest share"
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
CSS = "#prompted img { cursor: crosshair }"
LEAST_SIDE = 480  # pixels that pictures are enlarged to, about, since gradio shows none larger than it is
WELCOME = "take a sample, or upload a picture or video"
INTRODUCTION = """**Try an adapter on.** Take a sample or upload a picture or a video, click on an object, and see what
the base and the adapted model make of it. *Track* follows it through all frames."""


class Page:
    """Builds the page; its handlers take the session of the browser tab first.

    Args:
        config: the run.
        models: its base and adapted model.
        most_frames: of a video that are looked at.
        debug: write the traceback of an error to the terminal.
    """

    def __init__(self, config: Config, models: Models, most_frames: int, debug: bool = False) -> None:
        self.config, self.models, self.most_frames, self.debug = config, models, most_frames, debug
        self.samples, self.missing_samples = find_samples(config)

    def serve(self, port: int) -> tuple[gr.Blocks, str]:
        """Serve it to this machine alone, in threads of its own; returns what to close, and the address to open.

        Raises:
            UserError: the port is taken.
        """
        blocks = self.build()
        fonts = {"font": "sans-serif", "font_mono": "monospace"}  # gradio's own may come from the network
        try:
            _, address, _ = blocks.launch(
                server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True, footer_links=[],
                theme=gr.themes.Default(**fonts), css=CSS, ssr_mode=False,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"port {port} cannot be used ({error}); give another one with --port") from None
        return blocks, address

    def build(self) -> gr.Blocks:
        """The page, not yet served."""
        with gr.Blocks(title="SAM2-MoPE", analytics_enabled=False, fill_width=True) as page:
            session = gr.State(None, delete_callback=lambda kept: kept and kept.close())
            gr.Markdown(INTRODUCTION)
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    sample = gr.Dropdown(list(self.samples), value=None, label="sample of the run", elem_id="sample")
                    upload = gr.File(
                        label="or a picture or video of yours", file_types=[*sorted(IMAGE_SUFFIXES), *VIDEO_SUFFIXES],
                        elem_id="upload", height=150,
                    )  # fmt: skip
                    moving = gr.Checkbox(
                        True, label=f"turn a picture into a clip of {self.config.evaluation.frames} frames",
                        info="by simulated motion, as in training; memory attention runs on tracked frames only",
                    )  # fmt: skip
                    kind = gr.Radio(list(get_args(Kind)), value="on it", label="a click is", elem_id="kind")
                    number = gr.Number(1, label="object number", precision=0, minimum=1, elem_id="number")
                    with gr.Row():
                        undo, clear = gr.Button("undo", min_width=60), gr.Button("clear", min_width=60)
                    mode = gr.Radio(
                        self.models.modes, value=self.models.modes[0], label="domain gate", elem_id="mode",
                        info="auto: it decides; others overrule it" if self.models.gate else "there is none",
                    )  # fmt: skip
                with gr.Column(scale=3):
                    says = gr.Textbox(label="gate", lines=3, interactive=False, elem_id="gate")
                    with gr.Row():
                        prompted, base, adapted = (
                            gr.Image(label=label, interactive=False, format="png", elem_id=name, buttons=["fullscreen"])
                            for label, name in (("click here", "prompted"), ("base", "base"), ("adapted", "adapted"))
                        )
                    masks = gr.Textbox(show_label=False, container=False, interactive=False, elem_id="masks")
                    frame = gr.Slider(0, 1, 0, step=1, label="frame", visible=False, elem_id="frame")
                    with gr.Row():
                        track = gr.Button("track", variant="primary", elem_id="track")
                        stop = gr.Button("stop")
                    status = gr.Textbox(show_label=False, container=False, interactive=False, elem_id="status")
                    with gr.Row():
                        video = gr.Video(label="base, adapted", interactive=False, elem_id="video", visible=False)
                        files = gr.File(label="masks of both: PNG, COCO JSON", elem_id="files", visible=False)
                    with gr.Accordion("which experts act where", open=bool(self.models.layers)):
                        with gr.Row():
                            layer = gr.Dropdown([MEAN, *self.models.layers], value=MEAN, label="layer", elem_id="layer")
                            expert = gr.Dropdown(
                                [LARGEST, *self.models.choices], value=LARGEST, label="expert", elem_id="expert"
                            )
                        about = gr.Textbox(show_label=False, container=False, interactive=False, elem_id="about")
                        heat = gr.Image(
                            show_label=False, interactive=False, format="png", elem_id="heat", height=420,
                            visible=False, buttons=["download", "fullscreen"],
                        )  # fmt: skip

            shown = [says, prompted, base, adapted, masks, about, heat]
            results = [video, files, status]
            looking = [session, frame, layer, expert]
            page.load(lambda: (Session(self.models), WELCOME), outputs=[session, status], show_progress="hidden")
            run = self._connect
            run(sample.input, self.take_sample, [session, sample, layer, expert], [frame, *shown, *results])
            run(upload.upload, self.take_file, [session, upload, moving, layer, expert], [frame, *shown, *results])
            run(prompted.select, self.click, [*looking, kind, number], [*shown, *results], "multiple")
            run(undo.click, self.undo, looking, [*shown, *results])
            run(clear.click, self.clear, looking, [*shown, *results])
            run(mode.input, self.choose_mode, [*looking, mode], [*shown, *results])
            run(frame.input, self.show, looking, shown, "always_last")
            run(layer.input, self.show, looking, shown)
            run(expert.input, self.show, looking, shown)
            tracking = run(track.click, self.track, looking, [*shown, *results])
            stop.click(lambda: "stopped", outputs=status, cancels=tracking, queue=False)
        return page

    def _connect(
        self,
        event: Callable[..., Any],
        handler: Callable[..., Any],
        inputs: list,
        outputs: list,
        repeated: Literal["once", "multiple", "always_last"] = "once",
    ) -> Any:
        """Call a handler on an event, one at a time on all pages; ``repeated``: events that come while it runs."""
        return event(
            self._telling(handler), inputs, outputs, concurrency_id="models", concurrency_limit=1,
            trigger_mode=repeated, show_progress="minimal", api_visibility="private",
        )  # fmt: skip

    def _telling(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """The handler with errors told on the page, in one line each."""

        @functools.wraps(handler)
        def call(*arguments: Any, **named: Any) -> Iterator[Any]:
            try:
                outcome = handler(*arguments, **named)
                yield from outcome if isinstance(outcome, Iterator) else [outcome]
            except Exception as error:
                if self.debug:
                    traceback.print_exc(file=sys.stderr)
                gr.Warning(html.escape(format_error(error)), title="")  # an Error would be written over every picture
                yield gr.skip()

        return call

    def take_sample(self, session: Session, name: str, layer: str, expert: str) -> list[Any]:
        """Look at a sample of the run."""
        return self._begin(session, self.samples[name](), layer, expert)

    def take_file(self, session: Session, path: str, moving: bool, layer: str, expert: str) -> list[Any]:
        """Look at an uploaded file."""
        try:
            material = open_input(path, self.most_frames, self.config, moving)
        except UserError as error:  # the folder it was uploaded to tells nobody anything
            raise UserError(str(error).replace(f"{Path(path).parent}/", "")) from None
        return self._begin(session, material, layer, expert)

    def click(
        self, session: Session, frame: int, layer: str, expert: str, kind: Kind, number: int, place: gr.SelectData
    ) -> list[Any]:
        """A click on the picture."""
        times = _enlargement(session)
        x, y = ((pixel + 0.5) / times for pixel in place.index)
        session.mark(kind, frame, number, x, y)
        return [*self.show(session, frame, layer, expert), *self._no_results()]

    def undo(self, session: Session, frame: int, layer: str, expert: str) -> list[Any]:
        """Take the last click back."""
        session.undo()
        return [*self.show(session, frame, layer, expert), *self._no_results()]

    def clear(self, session: Session, frame: int, layer: str, expert: str) -> list[Any]:
        """Take all clicks back."""
        session.clear()
        return [*self.show(session, frame, layer, expert), *self._no_results()]

    def choose_mode(self, session: Session, frame: int, layer: str, expert: str, mode: str) -> list[Any]:
        """Overrule the domain gate."""
        session.choose_mode(mode)
        return [*self.show(session, frame, layer, expert), *self._no_results()]

    def show(self, session: Session, frame: int, layer: str, expert: str) -> list[Any]:
        """A frame, as far as anything is known of it."""
        view = session.view(frame)
        heat, about = session.experts(frame, None if layer == MEAN else layer, None if expert == LARGEST else expert)
        # as files, since gradio writes an array that it has shown before again, over the file that a browser may read
        heat_map = gr.update(value=None if heat is None else str(session.picture_file(heat)), visible=heat is not None)
        times = _enlargement(session)
        pictures = (p.repeat(times, 0).repeat(times, 1) for p in (view.prompted, view.base, view.adapted))
        files = (str(session.picture_file(picture)) for picture in pictures)
        return [session.gate_line(), *files, view.masks_from, about, heat_map]

    def track(
        self,
        session: Session,
        frame: int,
        layer: str,
        expert: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[list[Any]]:
        """Track through all frames, and offer the files."""
        for done in session.track():
            count = session.material.count if session.material else done
            progress((done, count), desc="tracking", unit="frames")
            yield [gr.skip()] * 9 + [f"tracking: {done} of {count} frames"]
        video, masks = session.files()
        yield [
            *self.show(session, frame, layer, expert),
            gr.update(value=str(video), visible=True),
            gr.update(value=str(masks), visible=True),
            f"tracked {count} frames; move the slider to look at them",
        ]

    def _begin(self, session: Session, material: DemoInput, layer: str, expert: str) -> list[Any]:
        session.look_at(material)
        slider = gr.update(maximum=max(1, material.count - 1), value=0, visible=material.count > 1)
        height, width = material.size
        frames = f"{material.count} frame{'s' if material.count > 1 else ''} of {width}×{height} pixels"
        cut = f"; {material.left_out} more are left out (--frames)" if material.left_out else ""
        return [slider, *self.show(session, 0, layer, expert), *self._no_results(f"{material.name}: {frames}{cut}")]

    def _no_results(self, status: str = "") -> list[Any]:
        hidden = gr.update(value=None, visible=False)
        return [hidden, hidden, status]


def _enlargement(session: Session) -> int:
    """How many times larger than they are a session's pictures are shown, which clicks on them must be divided by."""
    assert session.material is not None, "there are pictures"
    return max(1, round(LEAST_SIDE / max(session.material.size)))
