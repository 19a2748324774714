"""One increment from begin to rule: the order of things, for every method alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgecil.context import Classes, Context, Setup
from edgecil.data.images import ImageSet
from edgecil.data.loader import evaluation_batches
from edgecil.data.streams import stream, stream_seed
from edgecil.engine import state
from edgecil.engine.clock import Clock
from edgecil.engine.events import Note, Stage
from edgecil.engine.loop import PhaseRun, Session
from edgecil.engine.selection import Memory, seen_as_stored
from edgecil.errors import BudgetError, TrainingError
from edgecil.memory.budget import Budget
from edgecil.memory.store import Store
from edgecil.method import Phase, Recipe
from edgecil.model import Model
from edgecil.nets.build import build
from edgecil.nets.net import Net, NetSpec
from edgecil.nets.taps import freeze
from edgecil.settings import Training
from edgecil.units import format_bytes


@dataclass(frozen=True)
class Task:
    """Everything that defines an increment besides the images."""

    recipe: Recipe
    classes: Classes
    spec: NetSpec
    training: Training
    budget: Budget
    previous: Model | None = None
    start: Callable[[Net], str] | None = None
    """Loads pretrained weights into a new network and says what was loaded."""


@dataclass(frozen=True)
class Outcome:
    """A trained increment that is not committed yet."""

    model: Model
    clock: Clock
    images: int
    """Images trained on, over all epochs and phases."""
    training_bytes: Mapping[str, int]
    """Largest bytes of each kind of training memory."""
    exemplars_per_class: int | None


def _seeded_net(task: Task, session: Session) -> Net:
    """Return the student: the previous network grown by the new classes, or a new one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(session.seed, task.classes.increment, "weights"))
        if task.previous is None or task.recipe.fresh_start:
            net = build(task.spec, task.classes.seen)
            if task.start is not None:
                session.listener(Note(task.start(net)))
            return net
        net = freeze(task.previous.net)
        net.head.grow(task.classes.new)  # type: ignore[operator]
        return net


def _context(task: Task, sets: dict[str, ImageSet], net: Net, session: Session) -> Context:
    device = session.compute.torch_device
    said: set[str] = set()

    def note(text: str) -> None:
        if text not in said:
            said.add(text)
            session.listener(Note(text))

    def loader(images: ImageSet) -> Iterator[Tensor]:
        return evaluation_batches(images, session.preprocess, 512, device)

    def purpose(name: str) -> torch.Generator:
        return stream(session.seed, task.classes.increment, name)

    previous = task.previous
    setup = Setup(
        task.classes, task.training, {name: len(images) for name, images in sets.items()},
        pretrained=task.start is not None,
    )  # fmt: skip
    ctx = Context(
        setup=setup,
        net=net,
        previous=freeze(previous.net).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if previous
        else None,
        previous_rule=freeze(previous.rule).to(device) if previous else None,
        kept=previous.kept if previous else Store(()),
        keeps=Store(task.recipe.fields),
        sets=dict(sets),
        device=device,
        stream=purpose,
        autocast=session.compute.autocast,
        loader=loader,
        note=note,
        preprocess=session.preprocess,
        view_count=session.augment.view_count,
        agree=session.world.share,
    )
    if task.recipe.selection is not None:
        ctx.shelf = Memory(ctx, task.recipe.selection, task.budget, sets["new"])
        if len(sets["kept"]):
            ctx.sets["new"] = seen_as_stored(sets["new"], ctx.kept)
    return ctx


def _tensor_bytes(modules: Sequence[nn.Module]) -> int:
    every = [t for m in modules for t in m.state_dict(keep_vars=True).values()]
    # Teachers may share tensors; those without storage (on "meta") all have address 0.
    seen = {t.data_ptr() or id(t): t.nbytes for t in every}
    return sum(seen.values())


def measure(ctx: Context, run: PhaseRun | None, session: Session) -> None:
    """Keep the largest bytes of each kind of training memory."""
    found = {
        "teachers": _tensor_bytes(list(ctx.teachers.values())),
        "modules": _tensor_bytes(list(ctx.modules.values())),
        "caches": sum(t.nbytes for t in ctx.by_view.values()),
    }
    if run is not None:
        found["optimiser"] = sum(t.nbytes for t in run.optimisers.tensors().values())
        found["gradients"] = sum(p.nbytes for p in run.optimisers.parameters)
    for name, size in found.items():
        session.largest[name] = max(size, session.largest.get(name, 0))


def _build_modules(ctx: Context, task: Task, lifetime: tuple[str, ...]) -> None:
    for spec in task.recipe.modules:
        if spec.lifetime in lifetime and spec.name not in ctx.modules:
            ctx.modules[spec.name] = spec.build(ctx).to(ctx.device)


def _drop_modules(ctx: Context, task: Task, lifetime: str) -> None:
    for spec in task.recipe.modules:
        if spec.lifetime == lifetime:
            ctx.modules.pop(spec.name)


def _restore(ctx: Context, saved: state.Saved) -> None:
    ctx.net.load_state_dict(saved.part("net"))
    for name, module in ctx.modules.items():
        tensors = saved.part(f"module:{name}")
        if tensors:  # a base that another method trained has none: it is as it was built
            module.load_state_dict(tensors)
    for name in saved.extra_teachers:
        ctx.teachers[name] = freeze(ctx.net)
        ctx.teachers[name].load_state_dict(saved.part(f"teacher:{name}"))


def _run_phases(
    ctx: Context, task: Task, phases: tuple[Phase, ...], session: Session, saved: state.Saved | None
) -> None:
    session.phases = len(phases)
    for number, phase in enumerate(phases):
        if saved is not None and number < saved.phase:
            continue
        resumed = saved if saved is not None and number == saved.phase else None
        _build_modules(ctx, task, (phase.name,))
        if resumed is not None:
            _restore(ctx, resumed)
        else:
            phase.prepare(ctx)
        run = PhaseRun(ctx, phase, number, session, resumed.attempt if resumed else 1)
        if resumed is not None:
            run.optimisers.load(resumed.part("optimiser"))
        run.run(resumed.step if resumed else 0)
        while phase.again is not None and phase.again(ctx, run.attempt):
            run = PhaseRun(ctx, phase, number, session, run.attempt + 1)
            run.run()
        measure(ctx, run, session)
        _drop_modules(ctx, task, phase.name)


def rehearse(
    ctx: Context, task: Task, phases: tuple[Phase, ...], session: Session
) -> Iterator[PhaseRun]:
    """Yield every phase as it begins, for a dry run: those before it are not trained."""
    for number, phase in enumerate(phases):
        _build_modules(ctx, task, (phase.name,))
        phase.prepare(ctx)
        run = PhaseRun(ctx, phase, number, session)
        yield run
        measure(ctx, run, session)
        _drop_modules(ctx, task, phase.name)


def _check_finite(ctx: Context, recipe: Recipe) -> None:
    # The losses are measured before each update: they do not show what the last one did.
    kept = {m.name: ctx.modules[m.name] for m in recipe.modules if m.lifetime == "kept"}
    values = ctx.net.state_dict()
    for part, module in kept.items():
        values |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise TrainingError(
                f"{name} became NaN or infinite; the last good version is untouched"
            )


def _check_budget(task: Task, kept: Store) -> None:
    # Exemplars are chosen to fit; what else is kept has the size it has.
    limit, size = task.budget.bytes, kept.report().kept_bytes
    if limit is not None and size > limit:
        raise BudgetError(
            f"{task.recipe.name} keeps {format_bytes(size)} after {task.classes.increment} "
            f"increments, the budget is {format_bytes(limit)}",
            hint="raise --memory-budget, or take a method that keeps nothing: lwm, lwf-mc",
        )


def begin(
    task: Task, sets: dict[str, ImageSet], session: Session
) -> tuple[Context, tuple[Phase, ...]]:
    """Return the context at the start of an increment and the phases to come.

    The result depends on the arguments alone, so that a resumed run begins alike.
    """
    if task.previous is not None and not task.recipe.reads_rule:
        task = replace(task, previous=task.previous.folded())
    device = session.compute.torch_device
    net = _seeded_net(task, session).to(device)
    net = net.to(memory_format=torch.channels_last)
    ctx = _context(task, sets, net, session)
    torch.manual_seed(stream_seed(session.seed, task.classes.increment, "begin"))
    task.recipe.begin(ctx)
    ctx.teachers = task.recipe.teachers(ctx)
    session.first_teachers = tuple(ctx.teachers)
    _build_modules(ctx, task, ("increment", "kept"))
    measure(ctx, None, session)
    return ctx, task.recipe.phases(ctx.setup)


def train(
    task: Task,
    sets: dict[str, ImageSet],
    session: Session,
    *,
    saved: state.Saved | None = None,
    paths: Sequence[Path] | None = None,
) -> Outcome:
    """Return the trained increment of ``task``.

    ``sets`` holds ``new`` and ``kept`` images; ``paths`` are the files of ``new``, for methods
    that keep references; ``saved`` continues an interrupted run.

    Raises:
        Interrupted: a stop was asked for; the run state is in ``session.folder``.
        TrainingError: a loss term or a weight became NaN or infinite.
        BudgetError: not one exemplar per class fits.
    """
    if saved is not None:
        session.clock = Clock(saved.seconds, saved.cpu_seconds)
        session.images = saved.images
    with torch.random.fork_rng(devices=_cuda_devices(session.compute.torch_device)):
        ctx, phases = begin(task, sets, session)
        try:
            _run_phases(ctx, task, phases, session, saved)
            _check_finite(ctx, task.recipe)
        except TrainingError as error:
            hint = error.hint or task.recipe.if_diverging  # who knows better says it
            raise TrainingError(error.message, hint=hint) from None
    session.clock.start()
    ctx.net.eval()
    ctx.net.requires_grad_(False)
    per_class = None
    if isinstance(ctx.shelf, Memory):
        session.listener(Stage("choosing exemplars"))
        per_class = ctx.shelf.keep(paths)
    task.recipe.end(ctx)
    _check_budget(task, ctx.keeps)
    rule = task.recipe.rule(ctx).eval()
    session.clock.count()
    model = Model(ctx.net, rule, ctx.keeps)
    largest: dict[str, Any] = dict(session.largest)
    return Outcome(model, session.clock, session.images, largest, per_class)


def _cuda_devices(device: torch.device) -> list[int]:
    return [] if device.type != "cuda" else [device.index or 0]
