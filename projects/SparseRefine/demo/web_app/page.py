# SPDX-License-Identifier: Apache-2.0
"""The page: what is on it, and what happens on which event."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import cv2
import gradio as gr

from sparse_refine.data import read_image

from . import views
from .runner import Runner
from .uploads import FORMATS, UploadError, display_name

MOST = 50  # percent of the pixels, at the right end of the slider
START = 10  # percent, for a model whose config has no budget

INTRO = """# SparseRefine
A frozen model segments a **downsampled** copy of your image; the pixels it is least sure of are
looked at again **at full resolution**. Choose how many, and swipe to compare."""

logger = logging.getLogger(__name__)


def build(runner: Runner, examples: Sequence[str]) -> gr.Blocks:
    """The page as gradio's Blocks.

    Args:
        examples: paths of images to start from; they are shown, and chosen by their number.
    """
    with gr.Blocks(
        title="SparseRefine", analytics_enabled=False, fill_width=True, delete_cache=(300, 1800)
    ) as page:
        # gr.State stays on the server: the path of the image never comes from outside
        image = gr.State(None)
        gr.Markdown(INTRO, elem_id="intro")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300, elem_id="controls"):
                drop, gallery = _sources(runner, examples)
                model, budget, own, opacity = _settings(runner)
                legend = gr.HTML(elem_id="legend")
            with gr.Column(scale=4, min_width=320):
                outputs = [*_answers(), legend]

        def show(*inputs):
            return refine(runner, *inputs)

        def example(event: gr.SelectData):
            return examples[event.index], None

        def choose(name):
            by_itself = runner.own_budget(name) is None
            return _percent(runner, name), gr.update(value=by_itself, visible=by_itself)

        quick = {
            "concurrency_limit": None,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        slow = {
            "fn": show,
            "inputs": [image, model, budget, own, opacity],
            "outputs": outputs,
            "concurrency_id": "model",  # one at a time, whatever the event
            "trigger_mode": "always_last",
            "show_progress_on": outputs[1],
            "api_visibility": "private",
        }
        drop.upload(lambda path: path, drop, image, **quick)
        gallery.select(example, None, [image, drop], **quick)
        if examples:  # the page shows at once what it is for
            page.load(lambda: examples[0], None, image, **quick)
        model.input(choose, model, [budget, own], **quick).then(**slow)
        gr.on([image.change, budget.release, own.input, opacity.release], **slow)
    page.queue(max_size=16, default_concurrency_limit=1, api_open=False)
    return page


def refine(
    runner: Runner, path: str | None, name: str, percent: float, by_itself: bool, opacity: float
) -> tuple:
    """What the page shows after an event, in the order of `_answers` and the legend.

    Args:
        percent: of the pixels, cut to 0..MOST; `by_itself`: the model's own selector instead.
        opacity: of the colours, percent.
    """
    if path is None:
        return tuple(gr.skip() for _ in range(7))
    try:
        fraction = None if by_itself else min(max(float(percent), 0), MOST) / 100
        result = runner.run(path, name, fraction)
        pictures = views.draw(result, min(max(float(opacity), 0), 100) / 100)
    except UploadError as error:
        return _problem(str(error))
    except Exception:  # the server goes on, and its log alone has the details
        logger.exception("%s with %s", display_name(path), name)
        return _problem(f"{display_name(path)} could not be processed; the server's log says why.")
    remarks = views.message(views.remarks(result))
    return (
        gr.update(value=remarks, visible=bool(remarks)),
        pictures.whole,
        pictures.close,
        pictures.entropy,
        pictures.selected,
        views.figures(result),
        views.legend(result),
    )


def _problem(text: str) -> tuple:
    message = gr.update(value=views.message([text], problem=True), visible=True)
    return (message, None, None, None, None, "", "")


def _sources(runner: Runner, examples: Sequence[str]) -> tuple:
    limits = runner.limits
    drop = gr.File(label="Your image", show_label=False, height=132, elem_id="drop")
    gr.Markdown(
        f"{FORMATS}; at most {limits.bytes / 2**20:g} MB and {limits.pixels / 1e6:g} megapixels."
        + (" Or one of these:" if examples else ""),
        elem_id="limits",
    )
    gallery = gr.Gallery(
        [_thumbnail(path) for path in examples],
        label="Examples",
        show_label=False,
        columns=3,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        visible=bool(examples),
        buttons=[],
        elem_id="examples",
    )
    return drop, gallery


def _settings(runner: Runner) -> tuple:
    names = list(runner.predictors)
    by_itself = runner.own_budget(names[0]) is None
    return (
        gr.Dropdown(names, value=names[0], label="Model", elem_id="model"),
        gr.Slider(
            0,
            MOST,
            value=_percent(runner, names[0]),
            step=0.5,
            label="Budget, % of pixels",
            elem_id="budget",
        ),
        gr.Checkbox(
            by_itself,
            label="What the model's own selector takes, not a budget",
            visible=by_itself,
            elem_id="own",
        ),
        gr.Slider(0, 100, value=50, step=5, label="Opacity of colours, %", elem_id="opacity"),
    )


def _answers() -> list:
    output = {"interactive": False, "buttons": ["fullscreen"], "min_width": 280}
    message = gr.HTML(
        views.message(["Drop an image on the left, or click one of the examples."]),
        elem_id="message",
    )
    with gr.Row(equal_height=False):
        whole = gr.ImageSlider(
            label="Coarse (left), refined (right)",
            format="jpeg",
            max_height=620,
            elem_id="whole",
            **output,
        )
        close = gr.ImageSlider(
            label="Close-up where most labels changed",
            format="png",
            max_height=620,
            elem_id="close",
            **output,
        )
    with gr.Row(equal_height=False):
        entropy = gr.Image(
            label="Entropy of the coarse answer (bright: unsure)",
            format="jpeg",
            elem_id="entropy",
            **output,
        )
        selected = gr.Image(
            label="Pixels looked at again", format="jpeg", elem_id="selected", **output
        )
        with gr.Column(min_width=280):
            numbers = gr.HTML(elem_id="numbers")
    return [message, whole, close, entropy, selected, numbers]


def _percent(runner: Runner, name: str) -> float:
    found = runner.own_budget(name)
    return START if found is None else min(MOST, 100 * found)


def _thumbnail(path: str):
    picture = read_image(path)
    factor = 320 / max(picture.shape[:2])
    return cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
