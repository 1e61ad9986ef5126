# SPDX-License-Identifier: Apache-2.0
"""The page that web_demo.py serves: uploads -> runner -> views -> page, behind server's gate."""
