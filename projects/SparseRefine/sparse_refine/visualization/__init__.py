# SPDX-License-Identifier: Apache-2.0
"""Pictures of what refinement did to an image.

pictures.py   labels, entropy, selected and changed pixels as pictures, and both as files
layout.py     titled tiles on one canvas
panel.py      what was refined and why, of any image
figure.py     the same beside the ground truth
"""
