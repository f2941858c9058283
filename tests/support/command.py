"""The command line, run in this process."""

import json

from inlay.cli import main


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
