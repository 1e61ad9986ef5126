# SPDX-License-Identifier: Apache-2.0
"""Pictures of what refinement did to an image: colours and tiles, panels, the figure with truth."""
