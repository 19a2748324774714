"""Weights that were trained elsewhere: torchvision's, or those of a file."""

from __future__ import annotations

import difflib
import itertools
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgecil.errors import DataError, DependencyMissing, UsageError
from edgecil.nets.build import architectures, array_shapes, fill, mismatches, shapes
from edgecil.nets.mobile import TRUNKS
from edgecil.nets.net import Net, NetSpec
from edgecil.nets.packages import torchvision_models
from edgecil_runtime import container

Shape = tuple[int, ...]
IMAGENET = "imagenet"
LINEAR = "-linear"
_IMAGENET_NETS = ("resnet18", "resnet34", "resnet50", *TRUNKS)
_WRAPPERS = re.compile(r"^(net/|module\.|_orig_mod\.|model\.|backbone\.)+")
_HEAD = re.compile(r"^(?:fc|classifier|heads?|linear|last_linear)\.(?P<rest>.*)$")
_OTHER = re.compile(r"^rule/|^ranges$|num_batches_tracked$")
"""What our own version files hold beside a network, and counters that act on nothing."""
_NO_BACKBONE = re.compile(f"{_HEAD.pattern}|{_OTHER.pattern}")
_NESTED = ("state_dict", "model_state_dict", "model", "net")
_STATE_DICT_HINT = "save tensors only: torch.save(model.state_dict(), 'weights.pt')"


def load_backbone(net: Net, weights: str | Path) -> str:
    """Load weights into the backbone of ``net`` and return a sentence that says what was loaded.

    ``weights`` is ``imagenet`` (torchvision's) or a ``.safetensors``, ``.pt`` or ``.pth`` file
    with torchvision's names, whatever wraps them; a head in it is left out. ``net`` is
    untouched when the weights do not fit.

    Raises:
        UsageError: there are no such weights, or they belong to another network.
        DataError: the file cannot be read, is a pickle that asks for more than tensors, or holds
            two arrays for one place.
        DependencyMissing: torchvision or its weights cannot be had.
    """
    if str(weights) == IMAGENET:
        source, values = "torchvision's ImageNet weights", _torchvision(net.spec.arch)
    else:
        source, values = str(weights), _read(Path(weights))
    mapped, others = _unwrapped(values, source, _NO_BACKBONE)
    left_out = [name for name in others if not name.endswith("num_batches_tracked")]
    _check(net.backbone, net.spec.arch, mapped, source)
    fill(net.backbone, mapped)
    rest = f"; not taken: {', '.join(left_out[:4])}" if left_out else ""
    return f"backbone {net.spec.arch} starts from {source} ({len(mapped)} arrays{rest})"


def load_classifier(net: Net, path: Path, labels: str) -> str:
    """Load backbone and head of a whole classifier into ``net`` and return what was loaded.

    Files and names as for :func:`load_backbone`; ``labels`` says where the classes come from.
    ``net`` is untouched when anything is missing, left over or of another shape.

    Raises:
        UsageError: it is another network, or one of another number of classes.
        DataError: as :func:`load_backbone`.
    """
    wanted = net.state_dict()
    values, _ = _unwrapped(_read(path, whole=True), str(path), _OTHER)
    # Of two layers that could be the last, it is the later one.
    chosen = {own: name for name in values if (own := _own_name(net, name)) in wanted}
    names = {name: own for own, name in chosen.items()}
    mapped = {names.get(name, name): value for name, value in values.items()}
    _check_classes(net, mapped, path, labels)
    _check(net, net.spec.arch, mapped, str(path))
    fill(net, mapped)
    return f"{net.spec.arch} with {net.classes} classes from {path} ({len(mapped)} arrays)"


def _own_name(net: Net, name: str) -> str:
    """Return the name in ``net`` of what torchvision calls ``name``."""
    head = _HEAD.match(name)
    if head is None:
        return f"backbone.{name}"
    number, _, part = head["rest"].rpartition(".")
    hidden = getattr(net.head, "hidden", None)
    if hidden is None:
        return f"head.{part}"
    # torchvision's classifier is a Sequential: its last layer has the classes.
    known = dict(hidden.named_children())
    return f"head.hidden.{number}.{part}" if number in known else f"head.rows.{part}"


def _check_classes(net: Net, mapped: Mapping[str, Tensor], path: Path, labels: str) -> None:
    # The last parameter of the head is its bias: one number per class.
    (bias, wanted) = list(net.head.named_parameters())[-1]
    found = mapped.get(f"head.{bias}")
    if found is not None and found.shape != wanted.shape:
        raise UsageError(f"{path} has {len(found)} classes, {labels} names {len(wanted)}")


def _unwrapped(
    values: Mapping[str, Tensor], source: str, without: re.Pattern[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return tensors by their names without wrappers, and the names of those ``without`` has.

    Raises:
        DataError: two tensors have the same name then.
    """
    found: dict[str, Tensor] = {}
    whole: dict[str, str] = {}
    left_out = []
    for name, value in values.items():
        short = _WRAPPERS.sub("", name)
        if without.search(short):
            left_out.append(name)
            continue
        if short in found:
            raise DataError(
                f"{source} holds both {whole[short]} and {name}: which is meant is not said",
                hint="save one of them alone",
            )
        found[short], whole[short] = value, name
    return found, left_out


def _check(module: nn.Module, arch: str, mapped: Mapping[str, Tensor], source: str) -> None:
    found = {name: tuple(value.shape) for name, value in mapped.items()}
    problems = mismatches(module, found)
    if problems:
        lines = [*problems, *_nearest(module, found)]
        # Nobody's file has our prefix.
        listed = "".join(f"\n  {line.replace('backbone.', '')}" for line in lines)
        hint = _fitting(found) or _prefixed(module, found)
        raise UsageError(f"{source} does not fit {arch}:{listed}", hint=hint)
    broken = [n for n, v in mapped.items() if not v.is_floating_point() or not v.isfinite().all()]
    if broken:
        raise DataError(f"{source} has arrays that are not finite floats: {', '.join(broken[:5])}")


def _nearest(module: nn.Module, found: Mapping[str, Shape], limit: int = 3) -> list[str]:
    """Return which left-over arrays look like missing ones: the same shape, nearest name."""
    wanted = array_shapes(module)
    left = [name for name in found if name not in wanted]
    pairs = []
    for name in [n for n in wanted if n not in found][:limit]:
        alike = [other for other in left if found[other] == wanted[name]]
        pairs += [
            f"{other} for {name}?" for other in difflib.get_close_matches(name, alike, 1, 0.3)
        ]
    return [f"nearest: {' '.join(pairs)}"] if pairs else []


def _fitting(found: Mapping[str, Shape]) -> str | None:
    """Return the hint that names the networks whose backbone has these arrays."""
    trunk = {
        name.removeprefix("backbone."): shape
        for name, shape in found.items()
        if not _HEAD.match(name)
    }
    fitting = [arch for arch in architectures() if _backbone_shapes(arch) == trunk]
    # Names and shapes do not tell that a last ReLU is left out: the usual network has it.
    usual = [
        arch
        for arch in fitting
        if arch.removesuffix(LINEAR) not in fitting or not arch.endswith(LINEAR)
    ]
    return f"it fits --arch {' or '.join(usual)}" if usual else None


def _prefixed(module: nn.Module, found: Mapping[str, Shape]) -> str | None:
    """Return the hint to remove what all names begin with, where names of ours come after it."""
    names = [name for name in found if not name.startswith(("backbone.", "head."))]
    steps = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = itertools.takewhile(lambda words: len(set(words)) == 1, steps)
    prefix = ".".join(words[0] for words in shared)
    ours = {name.removeprefix("backbone.") for name in array_shapes(module)}
    if not prefix or not any(name.removeprefix(f"{prefix}.") in ours for name in names):
        return None
    return f"all names begin with '{prefix}.': remove it and save again"


def _backbone_shapes(arch: str) -> dict[str, Shape]:
    trees = shapes(NetSpec(arch), 1)
    every = {**trees["backbone"], **trees["batchnorm"]}
    return {name.removeprefix("backbone."): shape for name, shape in every.items()}


def _torchvision(arch: str) -> Mapping[str, Tensor]:
    # The ReLU after the last block has no weights.
    name = arch.removesuffix(LINEAR)
    if name not in _IMAGENET_NETS:
        raise UsageError(
            f"there are no ImageNet weights for {arch}",
            hint=f"use --arch {' or '.join(_IMAGENET_NETS)}, or --weights FILE",
        )
    weights = torchvision_models().get_model_weights(name).IMAGENET1K_V1
    try:
        values: Mapping[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu"
        )
    except (OSError, RuntimeError) as error:
        raise DependencyMissing(
            f"{weights.url} could not be downloaded: {error}",
            hint="download it where there is a network and pass it with --weights FILE",
        ) from error
    return values


def _read(path: Path, *, whole: bool = False) -> Mapping[str, Tensor]:
    """Return the tensors in a file: of a ``whole`` classifier, or of a backbone to begin with."""
    if not path.is_file():
        raise UsageError(
            f"no weights file {path}",
            hint="give a .safetensors, .pt or .pth file"
            + ("" if whole else f", or --weights {IMAGENET}"),
        )
    if path.suffix == ".safetensors":
        try:
            arrays, _ = container.read(path)
        except (OSError, container.ContainerError) as error:
            raise DataError(f"cannot read weights: {error}") from None
        return {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}
    if path.suffix in (".pt", ".pth"):
        return _tensors(path, _unpickle(path))
    raise UsageError(
        f"{path}: unknown kind of weights file {path.suffix!r}",
        hint="use .safetensors, .pt or .pth",
    )


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            raise DataError(f"{path} is not a PyTorch checkpoint, or it is damaged") from None
        raise DataError(
            f"{path} is a pickle that asks for {wanted[1]}, which could run code: only tensors "
            "are read",
            hint=_STATE_DICT_HINT,
        ) from None
    except Exception as error:  # a damaged file can fail in any way
        first = str(error).strip().partition("\n")[0]
        raise DataError(f"{path} is not a PyTorch checkpoint, or it is damaged: {first}") from None


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of the one inside a training checkpoint."""
    if isinstance(content, Mapping):
        inner = [content[key] for key in _NESTED if isinstance(content.get(key), Mapping)]
        for candidate in (*inner, content):
            found = {str(n): t for n, t in candidate.items() if isinstance(t, Tensor)}
            if found:
                return found
    raise DataError(f"{path} holds no state dict", hint=_STATE_DICT_HINT)
