"""The file from which help and usage are answered says what the classes say; `scripts/make_flags.py` writes it."""

import dataclasses

from inlay.methods.lora import Lora
from inlay.options import describe, flag
from tests.support.scripts import script


def test_the_file_is_what_the_classes_say():
    is_right = flag.FILE.read_text("utf-8") == script("make_flags").found()
    assert is_right, "a flag or its help has changed: python scripts/make_flags.py"


def test_a_command_or_method_is_the_same_by_the_file():
    assert flag.stored("methods", "lora") == describe.method(Lora)
    assert flag.stored("methods", "nothing") is None


def test_another_default_would_be_seen():
    assert flag.stored("methods", "lora") != describe.method(Lora, dataclasses.replace(Lora(), r=9))
