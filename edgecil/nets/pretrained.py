"""Backbone weights that were trained elsewhere: torchvision's, or those of a file."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgecil.errors import DataError, DependencyMissing, UsageError
from edgecil.nets.build import architectures, fill, mismatches, shapes
from edgecil.nets.net import Net, NetSpec
from edgecil_runtime import container

IMAGENET = "imagenet"
_IMAGENET_NETS = ("resnet18", "resnet34")
_WRAPPERS = re.compile(r"^(net/|module\.|_orig_mod\.|model\.|backbone\.)+")
_NOT_BACKBONE = re.compile(r"^(fc|classifier|heads?|linear|last_linear)\.|^rule/|^ranges$")
_NESTED = ("state_dict", "model_state_dict", "model", "net")
_STATE_DICT_HINT = "save tensors only: torch.save(model.state_dict(), 'weights.pt')"


def load_backbone(net: Net, weights: str | Path) -> str:
    """Load weights into the backbone of ``net`` and return a sentence that says what was loaded.

    ``weights`` is ``imagenet`` (torchvision's) or a ``.safetensors``, ``.pt`` or ``.pth`` file
    with torchvision's names, whatever wraps them; a head in it is left out. ``net`` is
    untouched when the weights do not fit.

    Raises:
        UsageError: there are no such weights, or they belong to another network.
        DataError: the file cannot be read, or is a pickle that asks for more than tensors.
        DependencyMissing: torchvision or its weights cannot be had.
    """
    if str(weights) == IMAGENET:
        source, values = "torchvision's ImageNet weights", _torchvision(net.spec.arch)
    else:
        source, values = str(weights), _read(Path(weights))
    mapped, left_out = _backbone_part(values)
    _check(net, mapped, source)
    fill(net.backbone, mapped)
    rest = f"; not taken: {', '.join(left_out[:4])}" if left_out else ""
    return f"backbone {net.spec.arch} starts from {source} ({len(mapped)} arrays{rest})"


def _backbone_part(values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the backbone's tensors by our names, and the names of what is not backbone."""
    mapped, left_out = {}, []
    for name, value in values.items():
        short = _WRAPPERS.sub("", name)
        if _NOT_BACKBONE.match(short):
            left_out.append(name)
        elif not short.endswith("num_batches_tracked"):
            mapped[short] = value
    return mapped, left_out


def _check(net: Net, mapped: Mapping[str, Tensor], source: str) -> None:
    found = {name: tuple(value.shape) for name, value in mapped.items()}
    problems = mismatches(net.backbone, found)
    if problems:
        fitting = [arch for arch in architectures() if _backbone_shapes(arch) == found]
        raise UsageError(
            f"{source} does not fit {net.spec.arch}; " + "; ".join(problems),
            hint=f"it fits --arch {' or '.join(fitting)}" if fitting else None,
        )
    broken = [n for n, v in mapped.items() if not v.is_floating_point() or not v.isfinite().all()]
    if broken:
        raise DataError(f"{source} has arrays that are not finite floats: {', '.join(broken[:5])}")


def _backbone_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    trees = shapes(NetSpec(arch), 1)
    every = {**trees["backbone"], **trees["batchnorm"]}
    return {name.removeprefix("backbone."): shape for name, shape in every.items()}


def _torchvision(arch: str) -> Mapping[str, Tensor]:
    # The ReLU after the last block has no weights.
    name = arch.removesuffix("-linear")
    if name not in _IMAGENET_NETS:
        raise UsageError(
            f"there are no ImageNet weights for {arch}",
            hint=f"use --arch {' or '.join(_IMAGENET_NETS)}, or --weights FILE",
        )
    try:
        from torchvision.models import get_model_weights
    except (ImportError, RuntimeError, OSError) as error:
        if "torchvision::" in str(error) or "undefined symbol" in str(error):
            reason = f"it was built for another torch than the installed {torch.__version__}"
        else:
            reason = str(error)
        raise DependencyMissing(
            f"torchvision cannot be imported: {reason}",
            hint="install both from one index: pip install --force-reinstall torch torchvision",
        ) from error
    weights = get_model_weights(name).IMAGENET1K_V1
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


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise UsageError(
            f"no weights file {path}",
            hint=f"use --weights {IMAGENET}, or a .safetensors, .pt or .pth file",
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
