# SPDX-License-Identifier: Apache-2.0
"""How many pixels to refine: accuracy against cost on one's own images, and the setting for a goal.

images.py        the images, with labels or without
temperature.py   the scalar that makes coarse probabilities match how often they are right
kinds.py         the selectors that can be calibrated
histogram.py     coarse uncertainty of all images -> the threshold for a share of the pixels
curve.py         accuracy, seconds and found errors at several settings
goals.py         a goal and the curve -> the share of the pixels
report.py        table, plot and yaml
"""
