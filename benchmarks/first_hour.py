"""The README by a newcomer, word for word: python3 benchmarks/first_hour.py SOURCE MODEL [FOLDER]

SOURCE is a wheel, or a clone of the repository; MODEL a directory with the model that README.md trains, which stands for the
download of 270 MB. In FOLDER, a new one unless it is given, Python makes an environment with SOURCE in it and nothing else, the
home of its user is empty, and what README.md shows at a prompt is typed. Printed is how long each line takes. It needs nothing
but Python's own library, so that it runs where only that is: in a new container, say. torch is the build that
`constraints.txt` names, from whatever index pip is set up with."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_SECONDS = 600
"""What all of it may take, on two cores."""


def main(source: str, model: str, folder: str = "") -> int:
    """Print a line for each command; 1 where one fails, the answer is not that of the page, or all take too long."""
    place = Path(folder or tempfile.mkdtemp(prefix="first-hour-")).resolve()
    page = (ROOT / "README.md").read_text("utf-8")
    commands = re.findall(r"^\$ (inlay .*)$", page, re.MULTILINE)
    (place / "home").mkdir(parents=True)
    _put_into_cache(Path(model), next(word for word in shlex.split(commands[1]) if "/" in word), place / "home")
    torch = next(
        line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line.startswith("torch==")
    )
    binaries = place / "env" / "bin"
    lines = [
        [sys.executable, "-m", "venv", str(place / "env")],
        [str(binaries / "pip"), "install", "-q", torch],
        [str(binaries / "pip"), "install", "-q", "-c", str(ROOT / "constraints.txt"), str(Path(source).resolve())],
        *[[str(binaries / "inlay"), *shlex.split(command)[1:]] for command in commands],
    ]
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "LANG", "SSL_"))}
    own = {"HOME": str(place / "home"), "PATH": f"{binaries}:/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    start, answers = time.monotonic(), ""
    for line in lines:
        before = time.monotonic()
        done = subprocess.run(line, cwd=place, env=kept | own, capture_output=True, text=True, check=False)
        typed = shlex.join([Path(line[0]).name, *line[1:]])
        print(f"{time.monotonic() - before:6.1f} s  {typed if len(typed) < 100 else typed[:97] + '...'}", flush=True)
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-4000:])
            return 1
        answers = done.stdout
    took, expected = time.monotonic() - start, page.split("--- tell: ")[1].splitlines()[1]
    is_said = expected in answers
    print(
        f"{took:6.1f} s  in all, of {MOST_SECONDS}; the answer is {'that' if is_said else 'not that'} of the page; {place}"
    )
    print(answers)
    return int(took > MOST_SECONDS or not is_said)


def _put_into_cache(model: Path, name: str, home: Path) -> None:
    """Lay a model where a download by its name would have put it."""
    repository = home / ".cache" / "huggingface" / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).symlink_to(model.resolve())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
