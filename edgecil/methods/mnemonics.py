"""Mnemonics: exemplars whose pixels are trained, so that a model trained on them does well.

A plug-in (Liu et al. 2020) over methods that replay images: ``icarl+mnemonics``, over ``lucir``,
``bic``, ``lwf-coreset`` and others. Kept between increments: what the host keeps.

The released code is another algorithm, without inner training, adjusting and fine-tuning: the
preset ``mnemonics-released``, of which ``mode=prototype`` is the loss alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from edgecil.context import Context, Setup
from edgecil.errors import UsageError
from edgecil.memory.fields import COUNTS, IMAGES, columns
from edgecil.memory.process import device_peak, peak_memory
from edgecil.method import Phase, Preset, Recipe
from edgecil.options import option
from edgecil.parts.mnemonics import Mnemonics, candidates, modules, phases
from edgecil.parts.unrolled import check_twice_differentiable
from edgecil.parts.weight_transfer import transferred
from edgecil.rankings import herding, random_ranking
from edgecil.settings import Optim, Schedule, Training
from edgecil.units import format_bytes

PAPER = (
    "Liu, Su, Liu, Schiele and Sun: Mnemonics Training: Multi-Class Incremental Learning "
    "without Forgetting, CVPR 2020"
)


@dataclass(frozen=True)
class Options:
    """Options of ``mnemonics``; the defaults are the paper's (section 5.1) unless it is said."""

    mode: Literal["unrolled", "prototype"] = option(
        "unrolled", "through inner training (paper), or class means (released code's loss)",
        choices=("unrolled", "prototype"),
    )  # fmt: skip
    exemplars: Literal["mnemonics", "random", "herding"] = option(
        "mnemonics", "optimised; or left as chosen, at random or by herding (Table 2)",
        choices=("mnemonics", "random", "herding"),
    )  # fmt: skip
    adjust: bool = option(True, "optimise old exemplars too, each half on the other (eq. (10))")
    exemplar_epochs: int = option(
        50, "epochs of fine-tuning on exemplars alone, after the base; 0: none", low=0
    )
    weight_transfer: bool = option(
        False, "after the base, train scales of kernels instead of weights (paper: true)"
    )
    inner_steps: int = option(50, "steps of the temporary model (eq. (8))", low=1)
    inner_lr: float = option(0.01, "its learning rate, and that of the fine-tuning", low=0.0)
    inner_batch: int = option(
        0, "exemplars drawn for an inner step; 0: all (eq. (8)), which takes most memory", low=0
    )
    outer_epochs: int = option(50, "epochs of the pixels (released code: 1)", low=1)
    pixel_lr: float = option(
        0.001,
        "rate of the pixels in units of the input, halved every 10 epochs (paper: 0.01, with sgd)",
        low=0.0,
    )
    pixel_optim: Literal["adam", "sgd"] = option(
        "adam", "optimiser of the pixels (paper: sgd, too slow to change 8-bit pixels)",
        choices=("adam", "sgd"),
    )  # fmt: skip
    pixel_momentum: float = option(
        0.0, "momentum of sgd on the pixels (released code: 0.9)", low=0.0, high=1.0
    )
    pixel_decay: float = option(0.0, "weight decay of the pixels (released code: 0.0005)", low=0.0)


def _settings(host: Recipe, options: Options) -> Mnemonics:
    assert host.selection is not None
    return Mnemonics(
        unrolled=options.mode == "unrolled",
        learns=options.exemplars == "mnemonics",
        adjusts=options.adjust,
        finetuning=options.exemplar_epochs,
        inner_steps=options.inner_steps,
        inner_lr=options.inner_lr,
        inner_batch=options.inner_batch,
        epochs=options.outer_epochs,
        pixel_optim=Optim(
            options.pixel_lr, options.pixel_momentum, options.pixel_decay, kind=options.pixel_optim
        ),
        halve_every=10,
        sigmoid=host.head_kind == "sigmoid",
        apart=host.selection.apart,
    )


def check_host(host: Recipe) -> None:
    """Do nothing for a host that replays images and keeps nothing else.

    Raises:
        UsageError: it has no exemplars, keeps all images, or keeps parts of the network, which
            the fine-tuning would change behind its back.
    """
    selection = host.selection
    fits = selection is not None and not selection.everything
    exemplars = {IMAGES, COUNTS, *(f.name for f in columns(host.fields))} if fits else set()
    if not fits or {f.name for f in host.fields} - exemplars:
        why = "keeps more than exemplars" if fits else "does not choose exemplars"
        raise UsageError(
            f"mnemonics cannot be laid over {host.name}, which {why}",
            hint="hosts replay exemplars: lwf-coreset, icarl, bic, lucir, eeil, rehearsal",
        )


def _peak(ctx: Context) -> str:
    """Return where gradients through inner training lie, and how much there was, in words."""
    device = device_peak(ctx.device)
    if device is not None:
        return f"tensors took {format_bytes(device)} of the GPU's memory"
    return f"the process took {format_bytes(peak_memory()['peak_rss_bytes'])} of memory"


def plug(host: Recipe, options: Options) -> Recipe:
    """Return ``host`` with exemplars that are optimised after its phases.

    Raises:
        UsageError: the host does not choose exemplars.
    """
    check_host(host)
    assert host.selection is not None
    method = _settings(host, options)
    # Optimisation starts from random images in the paper, from herded ones in the released code.
    drawn = options.exemplars == "random" or (method.learns and method.unrolled)
    # A host that draws its own has no form of herding that would be preferred.
    own = host.selection.rank
    herded = herding if own is random_ranking else own

    def all_phases(setup: Setup) -> tuple[Phase, ...]:
        return (*host.phases(setup), *phases(method, setup))

    def begin(ctx: Context) -> None:
        host.begin(ctx)
        if method.learns and method.unrolled:
            check_twice_differentiable(ctx.net)

    def end(ctx: Context) -> None:
        ctx.note(f"mnemonics: {_peak(ctx)} at its peak")
        host.end(ctx)

    recipe = replace(
        host,
        phases=all_phases,
        modules=(*host.modules, *modules(method)),
        selection=replace(
            host.selection,
            rank=random_ranking if drawn else herded,
            candidates=candidates,
        ),
        begin=begin,
        end=end,
        updates_known=False,  # eq. (10) has no data of old classes but their exemplars
    )
    return transferred(recipe) if options.weight_transfer else recipe


# Section 5.1 and, for its network and the batch, LUCIR's code that it is laid over. The optimiser
# of the pixels stays Adam: by plain descent at the printed rate they hardly change.
_CIFAR = Training(160, 128, Optim(0.1, 0.9, 5e-4, Schedule("step", (0.5, 0.75))))
PRESETS: Mapping[str, Preset] = {
    "mnemonics": Preset(_CIFAR, options={"weight_transfer": True}, arch="resnet32-b-linear"),
    # The released code neither trains a temporary model nor adjusts nor fine-tunes. Its pixels
    # wrap where they leave 0 to 255; here they are clamped.
    "mnemonics-released": Preset(
        _CIFAR,
        options={
            "mode": "prototype", "adjust": False, "exemplar_epochs": 0, "weight_transfer": True,
            "outer_epochs": 1, "pixel_lr": 1e-5, "pixel_optim": "sgd", "pixel_momentum": 0.9,
            "pixel_decay": 5e-4,
        },
        arch="resnet32-b-linear",
    ),
}  # fmt: skip
