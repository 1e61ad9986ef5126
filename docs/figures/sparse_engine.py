#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draws docs/figures/sparse_engine.svg, from what the engine itself makes of a small mask.

python docs/figures/sparse_engine.py [--output docs/figures/sparse_engine.svg]
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import ConnectionPatch, FancyArrowPatch, Rectangle

from sparse_refine.sparse import Pyramid
from sparse_refine.sparse.kernel_map import submanifold_map

MASK = """
. . . . # # # . . . . .
. . . # # # # . . . . .
. . # # # . . . . . # #
. . # # . . . . . # # #
. . . . . . . . # # # .
. # . . . . . . . # . .
"""
SITE = 13  # the site whose window is followed, by its row of the feature matrix
BLUE, ORANGE, GREY, LIGHT = "#4878b0", "#e07b39", "#8a8a8a", "#eeeeee"
MIDDLE = {"ha": "center", "va": "center"}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", default=str(Path(__file__).with_suffix(".svg")))
    args = parser.parse_args()
    rows = [line.split() for line in MASK.strip().splitlines()]
    mask = torch.tensor([[cell == "#" for cell in row] for row in rows])
    sites = torch.cat([torch.zeros(int(mask.sum()), 1, dtype=torch.long), mask.nonzero()], 1)
    pyramid = Pyramid(sites, [tuple(mask.shape)], levels=3)

    matplotlib.rcParams.update({"svg.hashsalt": "sparse_engine", "font.size": 10})
    figure = plt.figure(figsize=(12.5, 8.2), facecolor="white")
    draw_canvas(figure.add_axes([0.02, 0.60, 0.46, 0.36]), pyramid.levels[0])
    draw_pyramid(figure, [0.54, 0.60, 0.44, 0.36], pyramid)
    draw_table(figure.add_axes([0.02, 0.31, 0.96, 0.23]), pyramid.levels[0])
    draw_product(figure.add_axes([0.04, 0.02, 0.94, 0.24]))
    figure.savefig(args.output, metadata={"Date": None}, bbox_inches="tight")


def panel(axes, title, width, height, top=0.0):
    axes.set(xlim=(-0.6, width), ylim=(height, -top - 0.6), aspect="equal")
    axes.axis("off")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")


def cell(axes, x, y, text="", face="white", edge=GREY, width=1.0, **style):
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=face, edgecolor=edge, linewidth=width))
    axes.text(x + 0.5, y + 0.5, text, fontsize=8.5, **MIDDLE, **style)


def draw_canvas(axes, level):
    """The index map: positions of the canvas, with the number of the row that lies there."""
    width, index = level.width, level.index.view(-1, level.width).tolist()
    panel(axes, "1  One index map: site → row of the feature matrix", width, len(index) + 0.2)
    for y, line in enumerate(index):
        for x, row in enumerate(line):
            border = y in (0, len(index) - 1) or x in (0, width - 1)
            face = BLUE if row < level.count else LIGHT if border else "white"
            face = ORANGE if row == SITE else face
            text, colour = (row, "white") if row < level.count else ("", GREY)
            cell(axes, x, y, text, face, edge="#cccccc", color=colour)
    y, x = (level.sites[SITE, 1:] + 1).tolist()
    axes.add_patch(Rectangle((x - 1, y - 1), 3, 3, fill=False, edgecolor=ORANGE, linewidth=2.5))


def draw_pyramid(figure, place, pyramid):
    left, bottom, width, height = place
    figure.text(
        *(left, bottom + height + 0.008),
        "5  Levels of a UNet, each half the resolution",
        fontsize=11,
        fontweight="bold",
    )
    shares, axes = (0.5, 0.27, 0.15), []
    for number, (level, share) in enumerate(zip(pyramid.levels, shares)):
        start = left + width * (sum(shares[:number]) + 0.04 * number)
        ax = figure.add_axes([start, bottom, width * share, height])
        rows, columns = level.sizes[0]
        ax.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
        ax.axis("off")
        filled = {tuple(site) for site in level.sites[:, 1:].tolist()}
        for y in range(rows):
            for x in range(columns):
                face = BLUE if (y, x) in filled else "white"
                ax.add_patch(Rectangle((x, y), 1, 1, facecolor=face, edgecolor="#cccccc"))
        ax.set_title(f"level {number}: {level.count} sites", fontsize=9.5)
        axes.append(ax)
    for fine, coarse in zip(axes, axes[1:]):
        arrow = ConnectionPatch(
            xyA=(0.5, 0.0),
            xyB=(0.5, 0.0),
            coordsA=fine.transAxes,
            coordsB=coarse.transAxes,
            arrowstyle="<|-|>",
            connectionstyle="arc3,rad=0.35",
            color=GREY,
            mutation_scale=12,
        )
        figure.add_artist(arrow)
    figure.text(
        *(left + width * 0.5, bottom + 0.02),
        "3x3 with stride 2 down, its transpose up",
        fontsize=9.5,
        color=GREY,
        **MIDDLE,
    )


def draw_table(axes, level):
    """The table of the form "runs": a column here is a row of it in memory."""
    stream, pick = level.stream()
    (group,) = submanifold_map(level, "runs").groups
    table = group.table.clone()
    if group.absent is not None:
        table.view(-1)[group.absent] = level.count
    outputs = {place + 1: site for site, place in enumerate(pick.tolist())}
    panel(
        axes,
        "2  The table: the stream of sites, one empty place at each end of a run; "
        "for each the rows above, at and below it",
        len(stream) + 0.2,
        5.6,
    )
    for x, three in enumerate(table.tolist()):
        for y, row in enumerate(three):
            here = row < level.count
            face = (ORANGE if row == SITE else BLUE) if here else LIGHT
            cell(axes, x, y, row if here else "", face, edge="#cccccc", color="white")
        text = str(outputs[x]) if x in outputs else "–"
        axes.text(
            x + 0.5, 3.55, text, fontsize=8.5, color="black" if x in outputs else GREY, **MIDDLE
        )
    at = int(pick[SITE])  # windows are counted from the stream's second place
    axes.add_patch(Rectangle((at, 0), 3, 3, fill=False, edgecolor=ORANGE, linewidth=2.5))
    axes.text(
        *(0, 4.55),
        f"output row of the window around each place. The window of site {SITE}: three columns "
        "that follow one another, nine rows, one piece of memory",
        fontsize=9.5,
        color=GREY,
        va="center",
    )
    assert outputs[at + 1] == SITE


def draw_product(axes):
    axes.set(xlim=(0, 100), ylim=(10, -0.6))
    axes.axis("off")

    def heading(x, text):
        axes.text(x, -0.2, text, fontsize=11, fontweight="bold")

    def box(x, y, width, height, label, face):
        axes.add_patch(Rectangle((x, y), width, height, facecolor=face, edgecolor=GREY))
        axes.text(x + width / 2, y + height / 2, label, fontsize=9.5, **MIDDLE)

    def arrow(start, end):
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", color=GREY, mutation_scale=14))

    heading(0, "3  A chunk of the table is gathered …")
    box(1, 1, 9, 8, "features\n(P, C)", "#c9d8ea")
    arrow((10.5, 5), (17, 5))
    axes.text(13.5, 4.2, "gather", fontsize=9.5, color=GREY, **MIDDLE)
    box(17.5, 2.8, 20, 4.4, "rows of 3 C numbers,\nas many as fit\nthe cores' L2 caches", "#c9d8ea")
    heading(42, "4  … and multiplied while it is in the cache")
    axes.text(40, 5, "×", fontsize=16, **MIDDLE)
    box(42.5, 1, 12, 8, "weights\n(C_out, 3 C, 1, 3):\nnine taps", "#f3d3be")
    axes.text(57, 5, "=", fontsize=16, **MIDDLE)
    box(59.5, 2.8, 15, 4.4, "the chunk's outputs\n(n, C_out)", "#d5e8d4")
    arrow((75, 5), (86.5, 5))
    axes.text(80.5, 3.8, "+ bias, ReLU,\n+ residual", fontsize=9.5, color=GREY, **MIDDLE)
    box(87, 1, 9, 8, "output\n(P, C_out)", "#d5e8d4")


if __name__ == "__main__":
    main()
