"""``edgecil init``: a workspace from a model that was trained elsewhere."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgecil.settings import PRESETS
from edgecil.units import format_bytes
from edgecil_cli._options import EXPERT, JsonOption, QuietOption, WorkspaceOption, value
from edgecil_cli._output import Output, short
from edgecil_cli._summary import manifest_json

EPILOG = """\
Examples:

  edgecil init --weights base.pt --classes labels.txt --arch resnet18 \\
    --preset imagenet

  edgecil init --weights base.safetensors --classes labels.json \\
    --arch mobilenet_v3_small --mean 0.5 0.5 0.5 --std 0.25 0.25 0.25 \\
    --image-size 160
"""
IMAGES = "How images enter the model (a preset, or the rest)"
Triple = tuple[float, float, float]


class Head(StrEnum):
    """What the outputs of the model mean."""

    softmax = "softmax"
    sigmoid = "sigmoid"


def complete_preset(incomplete: str) -> list[str]:
    """Return the named preprocessings that begin so."""
    return [name for name in PRESETS if name.startswith(incomplete)]


def init(
    weights: Annotated[Path, value("State dict or checkpoint: .pt, .pth or .safetensors.", "FILE")],
    classes: Annotated[
        Path, value("Names of the outputs in order: a line each, or a JSON list.", "FILE")
    ],
    arch: Annotated[str, value("The network, as torchvision calls it.", "NAME")],
    preset: Annotated[
        str | None, value("As is usual for: imagenet, cifar.", "NAME", IMAGES, complete_preset)
    ] = None,
    mean: Annotated[Triple | None, value("Of red, green, blue in [0, 1].", "R G B", IMAGES)] = None,
    std: Annotated[Triple | None, value("Of red, green, blue in [0, 1].", "R G B", IMAGES)] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            "--imgsz",
            help="Pixels of the network's input.",
            metavar="N",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    resize: Annotated[
        int | None, value("Shorter side before the centre is cut out.", "N", IMAGES)
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    head: Annotated[
        Head, value("How it was trained: softmax, or sigmoid per class.", "KIND", EXPERT)
    ] = Head.softmax,
) -> None:
    """Start from a model that was trained elsewhere."""
    output = Output("init", as_json=as_json, quiet=quiet)
    from edgecil import api

    manifest = api.init(
        weights=weights, classes=classes, arch=arch, preset=preset, mean=mean, std=std,
        image_size=image_size, resize=resize, head=head.value, workspace=workspace,
    )  # fmt: skip
    from edgecil.workspace import Workspace

    path = Workspace.find(workspace).path(manifest.version).absolute()
    output.result(manifest_json(manifest) | {"path": path}, value_only=str(path))
    if not output.for_people:
        return
    given = manifest.input
    output.print(f"version 1: {len(manifest.classes)} classes, trained elsewhere")
    output.print()
    output.pairs(
        [
            ("network", f"{manifest.net['arch']}, {format_bytes(manifest.classifier_bytes)}"),
            ("outputs", manifest.head_kind),
            ("images", f"resized to {given.resize}, centre of {given.size} x {given.size} pixels"),
            ("mean", ", ".join(f"{v:g}" for v in given.mean)),
            ("std", ", ".join(f"{v:g}" for v in given.std)),
            ("path", short(path)),
        ]
    )
    place = "" if workspace is None else f" --workspace {shlex.quote(str(workspace))}"
    output.next(
        f"edgecil evaluate{place} test-images/",
        f"edgecil learn{place} --new-data dir/",
    )
