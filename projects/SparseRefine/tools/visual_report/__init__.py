# SPDX-License-Identifier: Apache-2.0
"""What tools/visualize.py is made of: measure, pictures, plots, and the report that holds them."""
