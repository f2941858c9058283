"""Pages of the documentation that tests write: committed, and compared with what the tests find.

INLAY_WRITE_PAGES=1 scripts/test tests/laws/test_architectures.py tests/interop/test_methods.py      writes them anew
"""

import os
from pathlib import Path

SWITCH = "INLAY_WRITE_PAGES"
REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def check(name, lines):
    """The committed page of this name has these lines; it is written where that is asked for."""
    path, text = REFERENCE / f"{name}.md", "\n".join(lines) + "\n"
    if os.environ.get(SWITCH):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    assert path.read_text("utf-8") == text, f"{path.name} is not what was found: see tests/support/pages.py"


def band(difference):
    """What a page says of a difference that is held to 1e-5: nothing that another processor would say otherwise."""
    return next(f"below {limit}" for limit in ("1e-5", "1") if difference < float(limit))
