# SPDX-License-Identifier: Apache-2.0
"""What `make docs-check` and tests/test_docs.py hold against the code: pages and their parts."""
