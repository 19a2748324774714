"""Mnemonics: exemplars whose pixels are trained, so that a model trained on them does well.

A plug-in (Liu et al. 2020) over methods that replay images: ``icarl+mnemonics``, over ``lucir``,
``bic``, ``lwf-coreset`` and others. Kept between increments: what the host keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgecil.context import Context, Setup
from edgecil.errors import UsageError
from edgecil.exemplars import random_ranking
from edgecil.memory.fields import COUNTS, IMAGES, columns
from edgecil.memory.process import peak_memory
from edgecil.method import Phase, Recipe
from edgecil.options import option
from edgecil.parts.mnemonics import Mnemonics, candidates, modules, phases
from edgecil.parts.weight_transfer import transferred
from edgecil.settings import Optim
from edgecil.units import format_bytes

PAPER = (
    "Liu, Su, Liu, Schiele and Sun: Mnemonics Training: Multi-Class Incremental Learning "
    "without Forgetting, CVPR 2020"
)


@dataclass(frozen=True)
class Options:
    """Options of ``mnemonics``; the defaults are the paper's (section 5.1) unless it is said."""

    mode: Literal["unrolled", "prototype"] = option(
        "unrolled", "gradient through inner training (paper), or class means (released code)",
        choices=("unrolled", "prototype"),
    )  # fmt: skip
    exemplars: Literal["mnemonics", "random", "herding"] = option(
        "mnemonics", "optimised; or left as chosen, at random or by the host's ranking (Table 2)",
        choices=("mnemonics", "random", "herding"),
    )  # fmt: skip
    adjust: bool = option(True, "optimise old exemplars too, each half on the other (eq. (10))")
    finetune: int = option(50, "epochs on exemplars alone, after the base; 0: none", low=0)
    weight_transfer: bool = option(
        False, "after the base, train scales of kernels instead of weights (paper: true)"
    )
    inner_steps: int = option(50, "steps of the temporary model (eq. (8))", low=1)
    inner_lr: float = option(0.01, "its learning rate, and that of the fine-tuning", low=0.0)
    inner_batch: int = option(128, "exemplars in an inner step, at most; not published", low=1)
    outer_epochs: int = option(50, "epochs of the pixels (released code: 1)", low=1)
    pixel_lr: float = option(
        0.01, "rate of the pixels in units of the input, halved every 10 epochs", low=0.0
    )
    pixel_optim: Literal["adam", "sgd"] = option(
        "adam", "optimiser of the pixels (paper: sgd, too slow to change 8-bit pixels)",
        choices=("adam", "sgd"),
    )  # fmt: skip


def _settings(host: Recipe, options: Options) -> Mnemonics:
    assert host.selection is not None
    return Mnemonics(
        unrolled=options.mode == "unrolled",
        learns=options.exemplars == "mnemonics",
        adjusts=options.adjust,
        finetuning=options.finetune,
        inner_steps=options.inner_steps,
        inner_lr=options.inner_lr,
        inner_batch=options.inner_batch,
        epochs=options.outer_epochs,
        pixel_optim=Optim(options.pixel_lr, 0.0, 0.0, kind=options.pixel_optim),
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
            hint="hosts are lwf-coreset, icarl, bic and lucir",
        )


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

    def all_phases(setup: Setup) -> tuple[Phase, ...]:
        return (*host.phases(setup), *phases(method, setup))

    def end(ctx: Context) -> None:
        peak = format_bytes(peak_memory()["peak_rss_bytes"])
        ctx.note(f"mnemonics: the process took {peak} of memory at its peak")
        host.end(ctx)

    recipe = replace(
        host,
        phases=all_phases,
        modules=(*host.modules, *modules(method)),
        selection=replace(
            host.selection,
            rank=random_ranking if drawn else host.selection.rank,
            candidates=candidates,
        ),
        forms={kind: plug(form, options) for kind, form in host.forms.items()},
        end=end,
        updates_known=False,  # eq. (10) has no data of old classes but their exemplars
    )
    return transferred(recipe) if options.weight_transfer else recipe
