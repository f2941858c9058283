"""The flags that commands share."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from inlay import extras, quant, screen
from inlay.errors import ConfigError, OutputError, explain
from inlay.io import output
from inlay.options.types import Mark, found_in, one_of, repeated
from inlay.runs import budget
from inlay.runs.budget import Budget

if TYPE_CHECKING:
    from inlay.base.base import Base
    from inlay.distributed.world import World
    from inlay.options.purpose import Chosen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Flags that every command has."""

    json: bool = False
    """Print one JSON object as the last line of stdout."""

    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plots(Common):
    """Flags of the commands whose report can be a picture."""

    plot: Annotated[Path | None, Mark(metavar="FILE.png")] = None
    """A file for a picture of the report; it must not exist. It needs matplotlib, which the extra train brings."""

    def check_plot(self) -> None:
        """Refuse a picture that can't be drawn or has no place, before the work.

        **Raises:**

        - `ConfigError`: the file is no PNG.
        - `OutputError`: there is one of that name.
        - `MissingExtraError`: matplotlib is not installed.
        """
        if self.plot is None:
            return
        if self.plot.suffix.lower() != ".png":
            raise ConfigError(explain("a picture is a PNG", found=f"--plot {self.plot}", do="--plot FILE.png"))
        if self.plot.exists():
            wrong = "there is such a file, and nothing is overwritten"
            raise OutputError(explain(wrong, found=str(self.plot), do="another --plot"))
        extras.need("matplotlib", "a picture")

    def draw(self, png: Callable[[], bytes]) -> None:
        """Write the picture, where one is wanted."""
        if self.plot is not None:
            output.write_file(self.plot, png())
            screen.say("drew", str(self.plot))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signed(Common):
    """The flag of commands that can ask who signed an adapter."""

    require_signed_by: repeated(Path) = ()  # type: ignore[valid-type]  # an annotation built by a function
    """A public key: nothing is used that it has not signed, wherever it comes from; given several times, one of them."""

    def check_signed(self, adapters: Sequence[str | None]) -> None:
        """Refuse adapters that nobody of them has signed, before a base is loaded; 'none' is none.

        **Raises:**

        - `TrustError`: there is one.
        """
        from inlay import formats

        for adapter in adapters if self.require_signed_by else ():
            if adapter not in (None, "none"):
                formats.fetched(adapter, self.require_signed_by)


Verbose = Annotated[bool, Mark(short="-v")]
"""A switch that is `-v` too."""

Model = Annotated[str, Mark(metavar="MODEL", is_positional=True)]
Data = Annotated[str, Mark(metavar="DATA", is_positional=True)]
AdapterDirectory = Annotated[str, Mark(metavar="ADAPTER", is_positional=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budgeted(Common):
    """Flags that bound what a run may take."""

    memory: Annotated[str | None, Mark(metavar="SIZE")] = None
    """The most memory that the run may hold, such as 6GB; it takes fewer tokens at a time for that, then a base in nf4."""

    time: Annotated[str | None, Mark(metavar="TIME")] = None
    """The most time from here on, such as 2h or 90min: the run then ends with an adapter that is evaluated and written."""

    disk: Annotated[str | None, Mark(metavar="SIZE")] = None
    """The most that the run may add to the disk, such as 20GB, a base that it quantises among it."""

    @property
    def budget(self) -> Budget:
        """What these flags name.

        **Raises:**

        - `ConfigError`: one is no size, or no time.
        """
        return budget.read(self.memory, self.time, self.disk, "--{}".format)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnBase(Common):
    """Flags of the commands that compute with a base."""

    model: Model
    """The base model: a folder, a GGUF file, or a name on the Hugging Face hub."""

    quantize: Annotated[str | None, found_in(quant.TABLE)] = None
    """Compute over the base's linear layers quantised so; made once, and kept in Inlay's cache for the next time."""

    dtype: Annotated[str | None, one_of(("bfloat16", "float16", "float32"))] = None
    """What the base computes in; by default bfloat16 where the processor multiplies it."""

    device: str = "auto"
    """Where to compute: cpu or cuda; auto takes a CUDA device if there is one, else the CPU."""

    device_memory: Annotated[str | None, Mark(metavar="SIZE")] = None
    """Memory of the device that a quantised base may take, such as 24GB; layers beyond that travel there as they are used."""

    def load(self, chosen: "Chosen | None" = None, held_by: "World | None" = None) -> "Base":
        """The base that the flags name, for next tokens unless for something else, held by this process or by several."""
        from inlay.base.load import load

        memory = None if self.device_memory is None else num_bytes("--device-memory", self.device_memory)
        how: dict[str, Any] = dict(dtype=self.dtype, device=self.device, device_memory=memory, held_by=held_by)
        how |= {} if chosen is None else {"task": chosen.spec, "labels": chosen.labels}
        source = self.model if chosen is None else chosen.checkpoint
        if self.quantize is not None:
            with screen.bar("quantizing", screen.size) as update:
                base = load(source, quantize=self.quantize, progress=update, **how)
        else:
            base = load(source, **how)
        if (device := base.model.device).type != "cpu":
            screen.say("device", f"{device}{' (--device cpu: the processor)' if self.device == 'auto' else ''}")
        return base


def num_bytes(flag: str, text: str) -> int:
    """A size such as 24GB or 500MB in bytes.

    **Raises:**

    - `ConfigError`: it is no number with a unit.
    """
    match = re.fullmatch(r"(\d+\.?\d*)\s*([kMGT]?B)", text)
    if not match:
        raise ConfigError(explain("this is no size", found=f"{flag} {text}", do=f"{flag} 24GB"))
    return int(float(match[1]) * 1000 ** ("B", "kB", "MB", "GB", "TB").index(match[2]))
