"""The page of ``sam2-mope demo``, in gradio: events go to a :class:`~src.demo.session.Session`, whose answers it shows.

An error is shown on the page in one line. Nothing is loaded from the network: fonts are the browser's own.
"""

from __future__ import annotations

import functools
import html
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import gradio as gr

from ..config import Config
from ..core.console import format_error
from ..core.errors import UserError
from ..data.decode.video import IMAGE_SUFFIXES
from .guard import MAX_UPLOAD, LocalPagesOnly
from .inputs import DemoInput, Samples, StillMotion, find_samples, keep_upload, open_input
from .marks import Kind
from .models import Models
from .session import Session

HOST = "127.0.0.1"
MEAN, LARGEST = "mean over layers", "largest share"
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
CSS = "#prompted img { cursor: crosshair }"
LEAST_SIDE = 480  # pixels; smaller pictures are enlarged to about this, since gradio enlarges none
WELCOME = "take a sample, or upload a picture or video"
INTRODUCTION = """**Try an adapter on.** Take a sample or upload a picture or a video, click on an object, and see what
the base and the adapted model make of it. *Track* follows it through all frames."""


def build_page(config: Config, adapter: str, most_frames: int, debug: bool = False) -> tuple[Page, list[str]]:
    """Return the page of a run's adapter, and why samples of some domains are missing.

    Args:
        config: the run.
        adapter: its adapter folder, or a checkpoint.
        most_frames: the largest number of frames of a video.
        debug: whether to write the traceback of an error to the terminal.
    """
    samples, missing = find_samples(config)
    motion = StillMotion(config.evaluation.frames, config.evaluation.max_side, config.dataset.clip.motion)
    return Page(Models(config, adapter), samples, motion, most_frames, debug), missing


@dataclass
class _Inputs:
    """The widgets that say what to look at and what a click means."""

    sample: Any
    upload: Any
    moving: Any
    kind: Any
    number: Any
    undo: Any
    clear: Any
    mode: Any


@dataclass
class _Results:
    """The widgets that show masks, and those that track."""

    gate: Any
    prompted: Any
    base: Any
    adapted: Any
    masks: Any
    frame: Any
    track: Any
    stop: Any
    status: Any
    video: Any
    files: Any


@dataclass
class _Experts:
    """The widgets that show which experts act where."""

    layer: Any
    expert: Any
    about: Any
    heat: Any


class Page:
    """Builds the page; its handlers take the session of the browser tab first.

    Args:
        models: base and adapted model.
        samples: videos and pictures to choose from.
        motion: how an uploaded picture becomes a clip.
        most_frames: the largest number of frames of a video.
        debug: whether to write the traceback of an error to the terminal.
    """

    def __init__(
        self, models: Models, samples: Samples, motion: StillMotion, most_frames: int, debug: bool = False
    ) -> None:
        self.models, self.samples, self.motion = models, samples, motion
        self.most_frames, self.debug = most_frames, debug

    def serve(self, port: int) -> tuple[gr.Blocks, str]:
        """Serve the page to this machine alone, in threads of its own; return what to close, and the address.

        Raises:
            UserError: the port is taken.
        """
        blocks = self.build()
        fonts = {"font": "sans-serif", "font_mono": "monospace"}  # gradio's own may come from the network
        try:
            _, address, _ = blocks.launch(
                server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True, footer_links=[],
                theme=gr.themes.Default(**fonts), css=CSS, ssr_mode=False, max_file_size=MAX_UPLOAD,
                app_kwargs={"middleware": [(LocalPagesOnly, (), {})]},
            )  # fmt: skip
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used ({error}); give another one with --port", code="demo.port"
            ) from None
        return blocks, address

    def build(self) -> gr.Blocks:
        """Build the page, not yet served."""
        # files that gradio keeps by itself go within two hours
        with gr.Blocks(title="SAM2-MoPE", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as page:
            session = gr.State(None, delete_callback=lambda ended: ended and ended.close())
            gr.Markdown(INTRODUCTION)
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    inputs = self._build_inputs()
                with gr.Column(scale=3):
                    results = self._build_results()
                    with gr.Accordion("which experts act where", open=bool(self.models.layers)):
                        experts = self._build_experts()
            page.load(lambda: (Session(self.models), WELCOME), outputs=[session, results.status],
                      show_progress="hidden")  # fmt: skip
            self._wire(session, inputs, results, experts)
        return page

    def _build_inputs(self) -> _Inputs:
        sample = gr.Dropdown(list(self.samples), value=None, label="sample of the run", elem_id="sample")
        upload = gr.File(
            label="or a picture or video of yours", file_types=[*sorted(IMAGE_SUFFIXES), *VIDEO_SUFFIXES],
            elem_id="upload", height=150,
        )  # fmt: skip
        moving = gr.Checkbox(
            True, label=f"turn a picture into a clip of {self.motion.frames} frames",
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
        return _Inputs(sample, upload, moving, kind, number, undo, clear, mode)

    def _build_results(self) -> _Results:
        gate = gr.Textbox(label="gate", lines=3, interactive=False, elem_id="gate")
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
        return _Results(gate, prompted, base, adapted, masks, frame, track, stop, status, video, files)

    def _build_experts(self) -> _Experts:
        with gr.Row():
            layer = gr.Dropdown([MEAN, *self.models.layers], value=MEAN, label="layer", elem_id="layer")
            expert = gr.Dropdown([LARGEST, *self.models.choices], value=LARGEST, label="expert", elem_id="expert")
        about = gr.Textbox(show_label=False, container=False, interactive=False, elem_id="about")
        heat = gr.Image(
            show_label=False, interactive=False, format="png", elem_id="heat", height=420,
            visible=False, buttons=["download", "fullscreen"],
        )  # fmt: skip
        return _Experts(layer, expert, about, heat)

    def _wire(self, session: gr.State, inputs: _Inputs, results: _Results, experts: _Experts) -> None:
        """Connect the widgets' events to the handlers."""
        frame, layer, expert = results.frame, experts.layer, experts.expert
        pictures = [results.gate, results.prompted, results.base, results.adapted, results.masks]
        shown = [*pictures, experts.about, experts.heat]
        everything = [*shown, results.video, results.files, results.status]
        view = [session, frame, layer, expert]
        run = self._connect
        run(inputs.sample.input, self.take_sample, [session, inputs.sample, layer, expert], [frame, *everything])
        upload = [session, inputs.upload, inputs.moving, layer, expert]
        run(inputs.upload.upload, self.take_file, upload, [frame, *everything])
        run(results.prompted.select, self.click, [*view, inputs.kind, inputs.number], everything, "multiple")
        run(inputs.undo.click, self.undo, view, everything)
        run(inputs.clear.click, self.clear, view, everything)
        run(inputs.mode.input, self.choose_mode, [*view, inputs.mode], everything)
        run(frame.input, self.show, view, shown, "always_last")
        run(layer.input, self.show, view, shown)
        run(expert.input, self.show, view, shown)
        tracking = run(results.track.click, self.track, view, everything)
        results.stop.click(lambda: "stopped", outputs=results.status, cancels=tracking, queue=False)

    def _connect(
        self,
        event: Callable[..., Any],
        handler: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        repeated: Literal["once", "multiple", "always_last"] = "once",
    ) -> Any:
        """Call a handler on an event, one at a time on all pages; ``repeated`` is for events while it runs."""
        return event(
            self._reporting_errors(handler), list(inputs), list(outputs), concurrency_id="models", concurrency_limit=1,
            trigger_mode=repeated, show_progress="minimal", api_visibility="private",
        )  # fmt: skip

    def _reporting_errors(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Return the handler with errors shown on the page, in one line each."""

        @functools.wraps(handler)
        def call(*arguments: Any, **named: Any) -> Iterator[Any]:
            try:
                if arguments[0] is None:  # the server was started again since the page was opened
                    raise UserError("this page is of a server that has ended: reload the page", "demo.old-page")
                outcome = handler(*arguments, **named)
                yield from outcome if isinstance(outcome, Iterator) else [outcome]
            except Exception as error:
                if self.debug:
                    traceback.print_exc(file=sys.stderr)
                gr.Warning(html.escape(format_error(error)), title="")  # an Error would be written over every picture
                yield gr.skip()

        return call

    def take_sample(self, session: Session, name: str, layer: str, expert: str) -> list[Any]:
        """Open a sample of the run."""
        return self._open(session, self.samples[name](), layer, expert)

    def take_file(self, session: Session, path: str, moving: bool, layer: str, expert: str) -> list[Any]:
        """Open an uploaded file."""
        kept = keep_upload(path, session.folder)
        try:
            source = open_input(kept, self.most_frames, self.motion if moving else None)
        except UserError as error:  # the folder of uploads means nothing to the user
            raise UserError(str(error).replace(f"{kept.parent}/", ""), code=error.code) from None
        return self._open(session, source, layer, expert)

    def click(
        self, session: Session, frame: int, layer: str, expert: str, kind: Kind, number: int, place: gr.SelectData
    ) -> list[Any]:
        """Handle a click on the picture."""
        times = _enlargement(session)
        x, y = ((pixel + 0.5) / times for pixel in place.index)
        session.mark(kind, frame, number, x, y)
        return [*self.show(session, frame, layer, expert), *self._no_results()]

    def undo(self, session: Session, frame: int, layer: str, expert: str) -> list[Any]:
        """Remove the last click."""
        session.undo()
        return [*self.show(session, frame, layer, expert), *self._no_results()]

    def clear(self, session: Session, frame: int, layer: str, expert: str) -> list[Any]:
        """Remove all clicks."""
        session.clear()
        return [*self.show(session, frame, layer, expert), *self._no_results()]

    def choose_mode(self, session: Session, frame: int, layer: str, expert: str, mode: str) -> list[Any]:
        """Overrule the domain gate."""
        session.choose_mode(mode)
        return [*self.show(session, frame, layer, expert), *self._no_results()]

    def show(self, session: Session, frame: int, layer: str, expert: str) -> list[Any]:
        """Return a frame with its results."""
        view = session.view(frame)
        heat, about = session.experts(frame, None if layer == MEAN else layer, None if expert == LARGEST else expert)
        # as files: gradio would write a known array again, over a file that a browser may be reading
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
        """Track through all frames, then offer the files."""
        for done in session.track():
            count = session.source.count if session.source else done
            progress((done, count), desc="tracking", unit="frames")
            yield [gr.skip()] * 9 + [f"tracking: {done} of {count} frames"]
        video, masks = session.files()
        yield [
            *self.show(session, frame, layer, expert),
            gr.update(value=str(video), visible=True),
            gr.update(value=str(masks), visible=True),
            f"tracked {count} frames; move the slider to look at them",
        ]

    def _open(self, session: Session, source: DemoInput, layer: str, expert: str) -> list[Any]:
        session.open(source)
        slider = gr.update(maximum=max(1, source.count - 1), value=0, visible=source.count > 1)
        height, width = source.size
        frames = f"{source.count} frame{'s' if source.count > 1 else ''} of {width}×{height} pixels"
        cut = f"; {source.left_out} more are left out (--frames)" if source.left_out else ""
        return [slider, *self.show(session, 0, layer, expert), *self._no_results(f"{source.name}: {frames}{cut}")]

    def _no_results(self, status: str = "") -> list[Any]:
        hidden = gr.update(value=None, visible=False)
        return [hidden, hidden, status]


def _enlargement(session: Session) -> int:
    """Return the factor by which a session's pictures are shown larger; clicks are divided by it."""
    assert session.source is not None
    return max(1, round(LEAST_SIDE / max(session.source.size)))
