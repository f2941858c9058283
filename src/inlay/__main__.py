"""`python -m inlay`: the same as the command `inlay`."""

from inlay.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
