"""What a run of training is, in one value: all that its remaining steps depend on.

    state = TrainState.new(adapter, settings, plan)     # prepared: nothing is attached, nothing learned
    loop.run(base, state, rows, held_out)               # a loop over it, to its last step

Between two steps `tensors()` and `values()` are the whole of it: tensors, and what JSON can hold. `restore_` puts them into a
run that was prepared anew in the same way, which then ends with the same bytes as if it had never been stopped. That is so on
the same processor, versions and number of threads; `restore_` says where they differ.

    adapter, shared   the tensors of the method, trained and frozen, and those that all modules share
    optimizer         AdamW's running means, and how many steps each tensor has made
    method            what the method remembers from step to step
    best              the tensors that are kept, and their held-out loss
    progress          the steps done, the curves, counts and seconds
    random            where the generator of dropout stands

The order of the rows needs no more than its seed (`Settings.seed`) and its place (`Progress.step`), the learning rate no more
than the plan and the step. Gradients last for a step; who listens, and requests to end, are not the run's.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inlay import methods
from inlay.distributed.world import ALONE, World
from inlay.errors import CompatibilityError, FormatError, explain, few
from inlay.methods import hooks
from inlay.methods.contract import Method
from inlay.model.adapter import Adapter
from inlay.runs.mixing import Part
from inlay.runs.progress import Progress
from inlay.runs.provenance import multiply_like_, products, versions
from inlay.training.settings import LOOKED_AT, Plan, Settings

MIN_ROWS_TO_CHOOSE = 20
"""With fewer held-out rows the last adapter is kept, not the best one: the mean loss of n rows is uncertain by the spread
between rows over the root of n, more than a fifth of it, and the evaluations of a run that goes well differ by less. Choosing
among them would be drawing lots, and steps thrown away."""


NOT_KEPT = ("doing", "best_step", "interrupted", "stopped_early", "diverged", "failure")
"""The fields of `Progress` that are of the moment, or say how a run ended."""


@dataclasses.dataclass
class Best:
    """The tensors of the lowest held-out loss so far, or of the latest evaluation; at first those of the start."""

    tensors: dict[str, Tensor]
    by_loss: bool
    """It is the lowest loss that is looked for."""
    loss: float = math.inf
    step: int = 0

    def offer(self, loss: float, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a copy of these tensors if they are better."""
        if loss < self.loss or not self.by_loss:
            self.loss, self.step = loss, step
            _copy_(self.tensors, tensors)

    def restore_(self, tensors: Mapping[str, Tensor]) -> None:
        """Make these tensors those that are kept."""
        _copy_(tensors, self.tensors)


@dataclasses.dataclass
class TrainState:
    """A run: what is trained, how, and how far it has come. `new` makes one."""

    adapter: Adapter
    """What is trained; it is attached while the run is under way."""
    method: Method
    """How it is adapted; the adapter's own is what is left of that once training is over."""
    settings: Settings
    plan: Plan
    trained: dict[str, Tensor]
    """The tensors of the adapter that steps move, by path and name."""
    optimizer: torch.optim.Optimizer
    method_state: dict[str, Tensor]
    """What the method remembers from step to step; see `StepHooks`."""
    best: Best
    progress: Progress
    generator: torch.Generator
    """What dropout draws from."""
    goes_on: bool
    """The adapter has been trained before, so that it is the start that is to be measured, not the base."""
    digests: dict[str, str | None]
    """Of the base and of the rows, by name."""
    versions: dict[str, str]
    threads: int
    """Threads that torch computes with: sums are divided among them."""
    parts: tuple[Part, ...]
    """Of a mixture: its parts, which have the numbers of all rows; their weights are among the digests."""
    world: World
    """The processes that share its steps."""

    @classmethod
    def new(
        cls,
        adapter: Adapter,
        settings: Settings,
        plan: Plan,
        *,
        num_held_out: int = 0,
        goes_on: bool = False,
        digests: Mapping[str, str | None] | None = None,
        parts: tuple[Part, ...] = (),
        world: World = ALONE,
    ) -> "TrainState":
        """A run of which no step is made. The adapter's tensors, on the device where they are trained, collect gradients."""
        method = adapter.method
        adapter.train_()
        trained = {key: tensor for key, tensor in _named(adapter).items() if hooks.rate(method, _name(key))}
        start = {key: tensor.detach().clone() for key, tensor in trained.items()}
        device = next(adapter.tensors()).device
        return cls(
            adapter=adapter,
            method=method,
            settings=settings,
            plan=plan,
            trained=trained,
            optimizer=_optimizer(method, trained, settings, plan.learning_rate),
            method_state={},
            best=Best(start, num_held_out >= MIN_ROWS_TO_CHOOSE),
            progress=Progress(plan.num_steps, num_evaluations=plan.num_evaluations if num_held_out else 0),
            generator=torch.Generator(device).manual_seed(settings.seed),
            goes_on=goes_on,
            digests=dict(digests or {}),
            versions=versions(),
            threads=torch.get_num_threads(),
            parts=parts,
            world=world,
        )

    @property
    def about_method(self) -> dict[str, Any]:
        """The method and its settings, by name."""
        return {"name": methods.name_of(self.method), **dataclasses.asdict(self.method)}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state, by name; they are its own, and the next step changes them."""
        found = self._fixed()
        for key, tensor in self.trained.items():
            moments = self.optimizer.state.get(tensor, {})
            found |= {f"optimizer/{key}/{name}": value for name, value in moments.items()}
        found |= {f"method/{key}": tensor for key, tensor in self.method_state.items()}
        return {key: tensor.detach() for key, tensor in found.items()} | {"random": self.generator.get_state()}

    def values(self) -> dict[str, Any]:
        """The rest of the state, as JSON can hold it."""
        progress = {key: value for key, value in vars(self.progress).items() if key not in NOT_KEPT}
        loss = None if math.isinf(self.best.loss) else self.best.loss
        return {
            "run": self._identity(),
            "versions": self.versions,
            **self._decides_bits(),
            "progress": progress,
            "best": {"loss": loss, "step": self.best.step},
        }

    @torch.no_grad()
    def restore_(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> list[str]:
        """Take the place of a run prepared alike: go on from what its `tensors` and `values` were between two steps.

        On the same processor this process then multiplies by the library that the run did (`inlay.core.float32`).

        **Returns:** why the end may differ in its last bits, where it may: other versions, or another number of threads.

        **Raises:**

        - `CompatibilityError`: they are of another run: of other rows, another base, method or settings.
        - `FormatError`: tensors are missing, or of other shapes.
        """
        self._check(tensors, values)
        _copy_(self._fixed(), tensors)
        self.generator.set_state(tensors["random"].to("cpu", copy=True))  # torch reads it as words, wherever it lies
        self.method_state = {key: t.clone() for key, t in _within(tensors, "method/").items()}
        self._restore_optimizer_(tensors)
        progress = {**values["progress"], "eval_losses": [(s, loss) for s, loss in values["progress"]["eval_losses"]]}
        self.progress = Progress(**{**progress, "losses": list(progress["losses"])})
        loss, self.best.step = values["best"]["loss"], values["best"]["step"]
        self.best.loss = math.inf if loss is None else loss
        multiply_like_(values)
        now = {**self.versions, **self._decides_bits()}
        before = {**now, "processes": 1, **values, **values["versions"]}
        return [f"{key}: {before.get(key)} before, {now[key]} now" for key in now if before.get(key) != now[key]]

    def _decides_bits(self) -> dict[str, Any]:
        """What decides the last bits of a step beside the run itself and the versions."""
        return {"threads": self.threads, "processes": self.world.size, **products()}

    def _restore_optimizer_(self, tensors: Mapping[str, Tensor]) -> None:
        names = {tensor: key for key, tensor in self.trained.items()}
        state: dict[int, dict[str, Tensor]] = {}
        for group in self.optimizer.param_groups:
            for tensor in group["params"]:
                own = _within(tensors, f"optimizer/{names[tensor]}/")
                state[len(state)] = {key: _laid_out_as(tensor, value) for key, value in own.items()}
        kept = {number: own for number, own in state.items() if own}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": kept})

    def _fixed(self) -> dict[str, Tensor]:
        """The tensors that there are at every step, by what they are of and their own name."""
        each = {"adapter": _named(self.adapter), "shared": self.adapter.shared, "best": self.best.tensors}
        return {f"{where}/{key}": tensor for where, some in each.items() for key, tensor in some.items()}

    def _identity(self) -> dict[str, Any]:
        """What has to be the same for the one run to be the other."""
        return {
            "method": self.about_method,
            "settings": {key: value for key, value in vars(self.settings).items() if key not in LOOKED_AT},
            "plan": dataclasses.asdict(self.plan),
            "digests": self.digests,
            "goes_on": self.goes_on,
        }

    def _check(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        given, own = values["run"], json.loads(json.dumps(self._identity()))
        other = [
            f"{key}: {given.get(key)}, here {own[key]}"
            for key in own
            if json.loads(json.dumps(given.get(key))) != own[key]
        ]
        if other:
            what = "the run to go on from is another one"
            raise CompatibilityError(
                explain(what, found=few(other), do="the settings, rows and base that it began with")
            )
        fixed = self._fixed() | {"random": self.generator.get_state()}
        wanted = {key: tensor.shape for key, tensor in fixed.items()}
        lacking = [key for key, shape in wanted.items() if key not in tensors or tensors[key].shape != shape]
        if lacking:
            raise FormatError(explain("the state of a run lacks tensors, or has others", found=few(lacking)))


def _optimizer(method: Method, trained: Mapping[str, Tensor], settings: Settings, rate: float) -> torch.optim.Optimizer:
    """AdamW over these tensors, in a group for each rate at which the method has them learn."""
    groups: dict[float, list[Tensor]] = {}
    for key, tensor in trained.items():
        path, _, name = key.rpartition("/")
        own = hooks.rate(hooks.for_module(method, path), name, by_default=settings.learning_rate is None)
        groups.setdefault(own, []).append(tensor)
    by_rate = [{"params": tensors, "rate": factor} for factor, tensors in groups.items()]
    return torch.optim.AdamW(by_rate, lr=rate, weight_decay=settings.weight_decay, fused=True)


def _named(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of an adapter by path and name, in its order."""
    return {f"{path}/{name}": tensor for path, params in adapter.params.items() for name, tensor in params.items()}


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _within(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}


def _laid_out_as(tensor: Tensor, value: Tensor) -> Tensor:
    """A copy of what an optimiser keeps for a tensor, in that one's strides: fused, AdamW takes them to be the same."""
    return torch.empty_like(tensor).copy_(value).detach() if value.shape == tensor.shape else value.clone()


@torch.no_grad()
def _copy_(to: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    for key, tensor in to.items():
        tensor.copy_(source[key])
