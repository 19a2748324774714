"""From a request to a job: images decoded, method built, every refusal made before training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from edgecil import registry
from edgecil.context import Classes
from edgecil.data.images import ImageSet
from edgecil.engine.compute import pick_device
from edgecil.engine.events import Listener, Note, ignore
from edgecil.engine.increment import Task
from edgecil.engine.selection import exemplar_images, stored_side
from edgecil.errors import AdoptError, UsageError
from edgecil.learning.intake import Images, choose_input, decode_new, scan_new, updated_rows
from edgecil.learning.request import DEFAULT_PER_CLASS, LearnRequest, default_codec
from edgecil.learning.sources import fingerprints, load_sources, scan_sources
from edgecil.memory.budget import Budget
from edgecil.memory.codecs import item_codec
from edgecil.memory.fields import COUNTS, IMAGES
from edgecil.memory.store import Store
from edgecil.method import Origin, Preset, Recipe
from edgecil.model import Model
from edgecil.nets.net import Net, NetSpec
from edgecil.settings import Augment, Preprocess, Training
from edgecil.versions import load_version, recipe_of
from edgecil.workspace import FOREIGN, MEMORY, VersionManifest, Workspace

ONLY_COPIES = "it needs the files of the old images, and only copies of some are kept"


@dataclass(frozen=True)
class Job:
    """Everything about an increment that is settled before the first step."""

    request: LearnRequest
    recipe: Recipe
    task: Task
    preprocess: Preprocess
    augment: Augment
    parent: VersionManifest | None
    names: tuple[str, ...]
    """All classes after this increment, in order of introduction."""
    images: Images
    kept: ImageSet
    device: torch.device
    others: Mapping[str, ImageSet] = field(default_factory=dict)
    """Images of the recipe's sources, by name."""
    other_fingerprints: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def sets(self) -> dict[str, ImageSet]:
        """All images to train on."""
        return {**self.others, "new": self.images.new, "kept": self.kept}

    @property
    def class_sizes(self) -> list[int]:
        """How many images of each class can be kept: all new ones, old exemplars."""
        labels = torch.cat([self.kept.labels.cpu(), self.images.new.labels.cpu()])
        sizes: list[int] = torch.bincount(labels, minlength=self.task.classes.seen).tolist()
        return sizes


def _refusal(
    recipe: Recipe, parent: VersionManifest, model: Model, updated: Sequence[int]
) -> str | None:
    """Return why a method cannot continue from ``parent``, or None when it can.

    ``updated`` are the old classes of which there are new images.
    """
    if updated and not recipe.updates_known:
        return f"it cannot learn more images of known classes ({_some(parent.names, updated)})"
    method = None if parent.method == FOREIGN else parent.method
    present = tuple(model.kept.field(name) for name in model.kept.names)
    origin = Origin(method, parent.head_kind, parent.rule["kind"], present)
    reason = recipe.adopt(origin)
    if reason is not None or recipe.selection is None:
        return reason
    if IMAGES not in origin.kept_fields:
        return "it replays exemplars, and none are kept of the old classes"
    if recipe.selection.everything and model.kept.field(IMAGES).codec != "reference":
        return ONLY_COPIES
    counts = model.kept.read(COUNTS).tolist()
    gone = [row for row, count in enumerate(counts) if not count and row not in updated]
    if gone:
        return f"it replays exemplars, and none are kept of {_some(parent.names, gone)}"
    return None


def _some(names: Sequence[str], rows: Sequence[int]) -> str:
    return ", ".join(names[row] for row in rows[:5]) + (", ..." if len(rows) > 5 else "")


def _adopt(recipe: Recipe, parent: VersionManifest, model: Model, updated: Sequence[int]) -> None:
    """Refuse a method that cannot continue from ``parent``, naming those that can."""
    reason = _refusal(recipe, parent, model, updated)
    if reason is not None:
        kind = parent.head_kind
        able = [
            name
            for name, info in registry.methods().items()
            if info.kind == "method"
            and _refusal(registry.build(name).on(kind), parent, model, updated) is None
        ]
        gone = MEMORY in parent.files and not model.kept.names
        raise AdoptError(
            f"{recipe.name} cannot continue from version {parent.version} "
            f"({parent.method}): {reason}" + (f"; its {MEMORY} is gone" if gone else ""),
            hint=f"these can: {', '.join(able)}; or start a new workspace: --workspace DIR",
        )


def _budget(request: LearnRequest, recipe: Recipe) -> Budget:
    everything = recipe.selection is not None and recipe.selection.everything
    if everything and request.memory_budget is not None:
        raise UsageError(f"{recipe.name} keeps references to all images and takes no budget")
    return Budget() if everything else Budget(**request.limits)


def _limit_without_effect(
    request: LearnRequest, recipe: Recipe, parent: VersionManifest | None
) -> str | None:
    """Return what to note when the user limits what the method does not keep at all."""
    given = [name for name, value in request.limits.items() if value is not None]
    default = {"bytes": None, "per_class": DEFAULT_PER_CLASS, "total": None}
    if not given or request.limits == (parent.kept["budget"] if parent else default):
        return None  # a resumed run has it from the version before, or from nobody
    flag = {"bytes": "memory-budget", "per_class": "exemplars-per-class"}.get(
        given[0], "exemplars-total"
    )
    if recipe.selection is not None and recipe.selection.everything:
        return f"{recipe.name} keeps references to all images: --{flag} has no effect"
    kept = [f.name for f in recipe.fields if f.scope == "kept"]
    if given == ["bytes"]:
        text = f"{recipe.name} keeps nothing between increments: any --{flag} holds"
        return None if kept else text
    return None if IMAGES in kept else f"{recipe.name} stores no exemplars: --{flag} has no effect"


def _codec_chosen(
    asked: LearnRequest, recipe: Recipe, parent: VersionManifest | None
) -> str | None:
    """Return what to note when exemplars of a new workspace lose pixels that nobody gave up."""
    images = recipe.stored_images
    said = parent is not None or asked.codec is not None
    if images is None or said or asked.memory_budget is None:
        return None
    return (
        f"exemplars are stored as {images.codec}, of which a budget in bytes holds more; --codec "
        f"{default_codec(None)} keeps every pixel of fewer"
    )


def _check_exemplar_size(asked: int | None, recipe: Recipe, resize: int, kept: Store) -> None:
    """Refuse a size that is of no use: ``asked`` is what the user gave in this increment."""
    images = recipe.stored_images
    if images is None:
        if asked is not None:
            raise UsageError(f"{recipe.name} stores no exemplars: --exemplar-size has no effect")
        return
    size = stored_side(images, resize)
    if asked is not None and asked > resize:
        raise UsageError(
            f"--exemplar-size {asked}: images are decoded to {resize} x {resize} pixels, and "
            "training sees no more than that",
            hint=f"--exemplar-size {resize} or less",
        )
    before = kept.item_size(IMAGES)[0] if IMAGES in kept else size
    if before < size:
        raise UsageError(
            f"--exemplar-size {size}: the exemplars of the old classes are stored with {before} "
            "pixels; they can be made smaller, not larger",
            hint=f"--exemplar-size {before} or less, or a new workspace: --workspace DIR",
        )


def _training(request: LearnRequest, recipe: Recipe, preset: Preset | None) -> Training:
    chosen = request.training or (preset.training if preset else recipe.training)
    changes = {k: getattr(request, k) for k in ("epochs", "batch_size", "lr")}
    return chosen.updated(**{k: v for k, v in changes.items() if v is not None})


def _starter(weights: str | None) -> Callable[[Net], str] | None:
    if weights is None:
        return None
    from edgecil.nets.pretrained import load_backbone

    return lambda net: load_backbone(net, weights)


def prepare(request: LearnRequest, workspace: Workspace, listener: Listener = ignore) -> Job:
    """Return the job of a request: images decoded, method built, every refusal already made.

    Raises:
        EdgecilError: the images, the method, its options or the budget cannot be used.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        listener(Note(text))

    device = pick_device(request.device)
    parent, model = load_version(workspace) if workspace.exists() else (None, None)
    asked, asked_size = request, request.exemplar_size
    request = request.inherited(parent)
    assert request.method is not None and request.codec is not None
    if item_codec(request.codec).name == "reference":
        raise UsageError("codec 'reference' keeps no images: it is that of the method joint")
    preset = registry.preset_of(request.method, request.preset)
    options = registry.with_preset(preset, request.options)
    recipe = recipe_of(
        request.method, options, request.codec, request.exemplar_size,
        parent.head_kind if parent else "",
    )  # fmt: skip
    old = parent.groups if parent else ()
    folder = scan_new(request, parent, note)
    updated = updated_rows(folder, sum(old))
    if parent is not None and model is not None:
        _adopt(recipe, parent, model, updated)
    budget = _budget(request, recipe)
    for told in (_limit_without_effect, _codec_chosen):
        if (text := told(asked, recipe, parent)) is not None:
            note(text)
    if parent is not None:
        preprocess, spec = parent.input, NetSpec.from_json(parent.net)
    else:
        preprocess, arch = choose_input(request, folder, preset.arch if preset else None, note)
        width = preset.head_width if preset else recipe.head_width
        spec = NetSpec(arch, "cosine" if recipe.head_kind == "cosine" else "linear", width)
    _check_exemplar_size(asked_size, recipe, preprocess.resize, model.kept if model else Store(()))
    known = (*(parent.names if parent else ()), *folder.classes)
    others = scan_sources(recipe, folder.paths, known)
    images = decode_new(
        request, folder, sum(old), preprocess, device, workspace.root, note, listener
    )
    names = (*(parent.names if parent else ()), *images.names)
    if len(names) == 1:
        note(f"a single class: until more are learned, every image is a {names[0]}")
    task = Task(
        recipe, Classes((*old, len(images.names)), updated), spec,
        _training(request, recipe, preset), budget, model, _starter(request.weights),
    )  # fmt: skip
    kept = _kept_images(model, recipe, preprocess, device)
    augment = request.augment or (preset and preset.augment) or Augment.for_size(preprocess.size)
    options |= {source.option: source.folder for source in recipe.sources}
    request = dataclasses.replace(request, options=options)
    return Job(
        request, recipe, task, preprocess, augment, parent, names, images, kept, device,
        load_sources(others, request, preprocess, device, workspace.root, note),
        fingerprints(others), notes,
    )  # fmt: skip


def _kept_images(
    model: Model | None, recipe: Recipe, preprocess: Preprocess, device: torch.device
) -> ImageSet:
    """Return the old images a method trains on; without a field for images, old data is out of
    reach."""
    if model is not None and recipe.selection is not None:
        return exemplar_images(model.kept, preprocess.resize).to(device)
    side = preprocess.resize
    empty = torch.zeros(0, side, side, 3, dtype=torch.uint8, device=device)
    return ImageSet(empty, torch.zeros(0, dtype=torch.int64, device=device))
