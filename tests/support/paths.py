"""Where data and models lie: the repository's own, and for slow tests larger ones beside the checkout, or where INLAY_SHARED says."""

import os
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"
DEMO_BASE = Path(__file__).parents[2] / "src" / "inlay" / "cli" / "demo_base"
"""A trained Llama of 831 thousand weights, with its tokenizer."""

SHARED = Path(os.environ.get("INLAY_SHARED") or Path(__file__).parents[2].parent / "shared")
STORIES = SHARED / "models" / "stories260K"
E2E = SHARED / "data" / "e2e"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
