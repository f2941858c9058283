"""`python -m inlay`: the same as the command `inlay`.

Python puts the current folder first among those that modules are looked for in. What lies there may be anybody's, a downloaded
model with a `torch.py` among its files; so it is taken out, unless this package itself lies there.
"""

import os
import sys


def _leave_current_folder() -> None:
    here, package = os.getcwd(), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if sys.path and sys.path[0] in ("", here) and not os.path.samefile(here, package):
        del sys.path[0]


if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):  # Python 3.11 has an option that does the same
        _leave_current_folder()

    from inlay.cli import main

    raise SystemExit(main())
