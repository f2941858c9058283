"""Disks that are full after some bytes."""

import contextlib
import subprocess

import pytest


@contextlib.contextmanager
def small(path, num_bytes):
    """A file system of that size at `path`, while the block lasts."""
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", path], capture_output=True)
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)
