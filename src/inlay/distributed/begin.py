"""How processes begin a run together: all that has to be alike is compared, then the first one's state is everybody's."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from inlay.distributed.world import Kept, World
from inlay.errors import ConfigError, explain


@runtime_checkable  # the tests check it where they check shapes
class Run(Protocol):
    """What is asked of a run; `inlay.training.state.TrainState` is one."""

    def tensors(self) -> dict[str, Tensor]: ...

    def values(self) -> dict[str, Any]: ...

    def restore_(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> list[str]: ...


def begin_(world: World, run: Run, kept: Callable[[], Kept | None], also: Mapping[str, Any]) -> list[str]:
    """Put a run where it was stopped, or leave it at its beginning: in every process what the first one has.

    Tensors that are drawn or found anew differ in their last bits from one kind of processor to another, and a state is where
    the first process keeps it: so both travel, once.

    **Arguments:**

    - `kept`: the state that it goes on from, if there is one; the first process looks.
    - `also`: what else has to be alike, beside method, settings, plan, digests of base and data, and versions.

    **Returns:** why the end may differ in its last bits from that of a run that was never stopped.

    **Raises:**

    - `CompatibilityError`: the processes differ, or the state is that of another run.
    """
    values = run.values()
    world.same({**values["run"], "versions": values["versions"], **also})
    found = world.from_first(kept)
    if found is not None:
        return run.restore_(*found)
    if world.size > 1 and (first := world.from_first(lambda: (run.tensors(), run.values()))) is not None:
        run.restore_(*first)
    return []


def check_divides(world: World, batch_size: int, parts: Iterable[Sequence[Any]]) -> None:
    """Refuse a run whose steps the processes can't share.

    **Arguments:**

    - `batch_size`: the rows of a step.
    - `parts`: two rows as the parts of a step, none longer than has to be.

    **Raises:**

    - `ConfigError`: there are fewer rows than processes, or the rows of a step can't be told apart.
    """
    if world.size > batch_size:
        what, found = "a step has fewer rows than there are processes", f"{batch_size} rows, {world.size} processes"
        raise ConfigError(explain(what, found=found, do=f"--batch-size {world.size}, or fewer processes"))
    if world.size > 1 and any(len(part) > 1 for part in parts):
        what = "the rows of this task see each other: a step can't be shared among processes"
        raise ConfigError(explain(what, found=f"{world.size} processes", do="one process, without torchrun"))


def check_one(world: World, what: str) -> None:
    """Refuse what several processes do not share.

    **Raises:**

    - `ConfigError`: there are several.
    """
    if world.size > 1:
        found = f"{world.size} processes"
        raise ConfigError(
            explain(f"{what} are not shared among processes", found=found, do="the same without torchrun")
        )
