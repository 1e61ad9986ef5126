# SPDX-License-Identifier: Apache-2.0
"""Segment your own images and videos, and look at what refinement did to them.

    python -m sparse_refine predict --model rgbweed/sparse_refine photos/ --show-why
    python -m sparse_refine predict --config-file C.yaml --weights W 'photos/*.jpg' a.mp4
    python -m sparse_refine predict --model rgbweed/sparse_refine --webcam 0

Inputs are images, videos, folders and globs. Written to --output (output/predictions):

    overlays/NAME.jpg       class colours over the image
    labels/NAME.png         class ids: indexed PNG of 8 bits, above 256 classes grey of 16 bits
    panels/NAME.jpg         --show-why: coarse, entropy, selected, refined and changed pixels
    probabilities/NAME.npz  --probabilities: np.load(F)["probabilities"] / 65535 is (K,H,W)

Of videos and cameras overlays and panels are written, as .mp4. Sizes are those of the upright
image: EXIF orientation is applied. Files are written atomically; inputs, and files that this
program did not write, are never overwritten, and what two inputs of one name make has two names.

Exit code: 0 all done, 1 some inputs failed (listed at the end), 2 wrong command line, 130 stopped.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import warnings
from pathlib import Path


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("inputs", nargs="*", help="images, videos, folders, globs")
    add("--webcam", type=int, metavar="N", help="camera number N, until Ctrl-C")
    add("--model", metavar="NAME", help="of the model zoo: rgbweed/sparse_refine, ...")
    add("--config-file", help="yaml of a model of your own")
    add("--weights", help="its checkpoint (default: its MODEL.WEIGHTS)")
    add("--trust-code", action="store_true", help="run code that the yaml names")
    add("--output", default="output/predictions", help="folder for everything it writes")
    add("--budget", type=float, metavar="FRACTION", help="of the pixels to refine, 0 to 1")
    add("--show-why", action="store_true", help="write panels")
    add("--probabilities", action="store_true", help="write probabilities of images")
    add("--no-overlays", action="store_true")
    add("--no-labels", action="store_true")
    add("--format", choices=("jpg", "png"), default="jpg", help="of overlays and panels")
    add("--alpha", type=float, default=0.5, help="weight of the colours in overlays, 0 to 1")
    add("--recursive", action="store_true", help="look into subfolders")
    add("--resume", action="store_true", help="skip what is done with the same model and options")
    add("--overwrite", action="store_true", help="replace files that this program did not write")
    add("--max-megapixels", type=float, default=200, help="larger images are refused")
    add("--max-frames", type=int, metavar="N", help="of a video or a camera")
    add("--display", action="store_true", help="show videos and cameras in a window; q ends it")
    add("--device", help="cpu, cuda, cuda:1 (default: the GPU where there is one)")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="pairs of the config, last on the line")  # fmt: skip
    return parser


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if bool(args.model) == bool(args.config_file):
        parser.error("one of --model and --config-file is needed")
    if args.weights and not args.config_file:
        parser.error("--weights belong to --config-file; the zoo's models have theirs")
    if bool(args.inputs) == (args.webcam is not None):
        parser.error("give inputs (images, videos, folders, globs) or --webcam N")
    if args.config_file and not Path(args.config_file).expanduser().is_file():
        parser.error(f"--config-file {args.config_file}: no such file")
    for name, low, high in (("budget", 0, 1), ("alpha", 0, 1), ("max_frames", 1, 1e9)):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            parser.error(f"--{name.replace('_', '-')} {value:g}: {low} to {high:g}")
    if not args.max_megapixels > 0:
        parser.error(f"--max-megapixels {args.max_megapixels:g}: more than 0")
    if not kinds(args):
        parser.error("--no-overlays --no-labels leave nothing to write")
    if args.webcam is not None and not {"overlays", "panels"} & set(kinds(args)):
        parser.error("of a camera overlays and panels are written: --no-overlays leaves nothing")


def kinds(args: argparse.Namespace) -> list[str]:
    wanted = {
        "overlays": not args.no_overlays,
        "labels": not args.no_labels,
        "probabilities": args.probabilities,
        "panels": args.show_why,
    }
    return [kind for kind, asked in wanted.items() if asked]


def main(arguments: list[str] | None = None) -> int:
    # asked to end, it ends as with Ctrl-C: without half a file, and a camera's video whole
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return predict(arguments)
    except KeyboardInterrupt:
        return 130


def predict(arguments: list[str] | None) -> int:
    parser = argument_parser()
    args = parser.parse_args(arguments)
    check_arguments(parser, args)
    # of Detectron2's layers, at import: nothing that a user could change
    warnings.filterwarnings("ignore", r".*torch\.jit\.script.* is deprecated", FutureWarning)
    import yaml
    from PIL import Image

    from ..inference.inputs import assign_names, find_inputs
    from ..inference.journal import Journal, check_targets
    from ..inference.outputs import plan
    from ..inference.run import Run, settings_digest
    from ..inference.video import check_display, show
    from ..storage.files import check_writable_folder
    from .memory import keep_freed_memory

    Image.MAX_IMAGE_PIXELS = None  # --max-megapixels is the limit
    keep_freed_memory()
    folder = Path(args.output).expanduser()
    try:
        check_writable_folder(folder, "--output")
        if args.display:
            check_display()
        inputs = find_inputs(args.inputs, folder, args.recursive)
        predictor = load_predictor(args)
        if args.webcam is None:
            settings = settings_digest(predictor, args.budget, args.alpha, args.max_frames)
            journal = Journal(folder, settings)
            names = assign_names(inputs, journal.names())
            jobs = plan(names, folder, kinds(args), f".{args.format}")
            check_targets(jobs, journal, args.overwrite)
    except (ValueError, OSError, KeyError, RuntimeError, ImportError) as error:
        parser.error(str(error.args[0] if isinstance(error, KeyError) else error))
    except yaml.YAMLError as error:
        parser.error(f"config: {error}")
    on_frame = show if args.display else None
    if args.webcam is not None:
        return record_camera(args, folder, predictor, on_frame)

    todo = [job for job in jobs if not (args.resume and journal.is_done(job))]
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} are done already")
    run = Run(predictor, args.alpha, 1e6 * args.max_megapixels, args.max_frames, on_frame)
    report = run.all(todo, journal)
    print(f"{report.done} of {len(todo)} done: {folder}")
    for path, reason in report.failed:
        print(f"failed: {reason if str(path) in reason else f'{path}: {reason}'}", file=sys.stderr)
    if report.stopped:
        print(f"{report.stopped}; the same line with --resume goes on", file=sys.stderr)
    if report.interrupted:
        return 130
    return 1 if report.failed else 0


def load_predictor(args: argparse.Namespace):
    from ..inference.predictor import SparseRefinePredictor

    # scores of K x H x W only where they are written
    output = ["MODEL.SPARSE_REFINE.OUTPUT", "logits" if args.probabilities else "labels"]
    predictor = SparseRefinePredictor(
        args.model or args.config_file,
        args.weights,
        device=args.device,
        opts=[*output, *args.opts],
        trust_code=args.trust_code,
    )
    if args.budget is not None:
        predictor.set_budget(args.budget)
    if args.show_why and not predictor.refines:
        raise ValueError(
            f"--show-why: MODEL.META_ARCHITECTURE is {predictor.cfg.MODEL.META_ARCHITECTURE!r}, "
            "which refines nothing"
        )
    return predictor


def record_camera(args: argparse.Namespace, folder: Path, predictor, on_frame) -> int:
    from tqdm import tqdm

    from ..inference.outputs import OF_VIDEOS
    from ..inference.video import Pictures, predict_camera

    name = time.strftime(f"webcam{args.webcam}_%Y%m%d_%H%M%S.mp4")
    outputs = {kind: folder / kind / name for kind in kinds(args) if kind in OF_VIDEOS}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(unit="image") as bar:

        def count(made) -> None:
            bar.update()
            if on_frame is not None:
                on_frame(made)

        try:
            pictures = Pictures(outputs, predictor, args.alpha)
            predict_camera(args.webcam, outputs, pictures, count, args.max_frames)
        except (OSError, ValueError, RuntimeError) as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    print(*outputs.values(), sep="\n")
    return 0
