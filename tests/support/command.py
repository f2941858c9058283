"""The command line, run in this process."""

import json
import time

from inlay.cli import main
from inlay.runs.bounds import CLOSING_SECONDS


def run(capsys, *arguments):
    """(exit status, stdout, stderr) of `inlay ARGUMENTS`."""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        status = exit_.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def run_json(capsys, *arguments):
    """The JSON object that a successful command prints."""
    status, out, err = run(capsys, *arguments, "--json")
    assert status == 0, err
    return json.loads(out.splitlines()[-1])


def run_short_of_time(capsys, place, output):
    """(the report, stderr) of a training of half a million steps that gets some seconds for them, and keeps to these."""
    start, allowed = time.monotonic(), CLOSING_SECONDS + 6
    command = ["train", place / "base", place / "rows.jsonl", "--output", output, "--r", 3]
    long = ["--max-steps", 500_000, "--eval-every", 400_000, "--eval-fraction", 0.5]
    status, out, err = run(capsys, *command, *long, "--time", f"{allowed}s", "--json")
    assert status == 0, err
    assert time.monotonic() - start < allowed + 2
    return json.loads(out.splitlines()[-1]), err
