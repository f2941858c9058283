"""Where the real data and models lie: beside the checkout, or where INLAY_SHARED says; tests that need them skip without."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("INLAY_SHARED") or Path(__file__).parents[2].parent / "shared")
STORIES = SHARED / "models" / "stories260K"
GPT2_TOKENIZER = SHARED / "models" / "gpt2-tokenizer"
E2E = SHARED / "data" / "e2e"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
