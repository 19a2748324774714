"""Every option of every method changes what is learned. New options are found by themselves."""

import dataclasses
import functools

import pytest
import toys

from edgecil import registry
from edgecil.engine import increment
from edgecil.engine.loop import PhaseRun

pytestmark = pytest.mark.usefixtures("small_generators")

SIZES = (2, 2, 3)  # two teachers in the end, of which one may be skipped
ELSEWHERE = {
    "repeats": "where herding comes back to an image: tests/memory/test_exemplars.py",
    "most": "where more images are wanted than toys make: tests/methods/test_mfgr.py",
    "collapse": "when all synthetic images show one class: tests/methods/test_abd.py",
}
"""Options that act where toys do not come to, and have tests of their own."""
BESIDE = {
    ("bic", "fit_lr"): {"fit": "early-stopped"},
    ("bic", "fit_epochs"): {"fit": "early-stopped"},
    ("mas", "clamp"): {"strength": 3.0},
    ("icarl", "pixel_momentum"): {"pixel_optim": "sgd", "pixel_lr": 100.0},
}
"""Options of a host that matter only beside another value of a second one."""
# A margin matters only where something has been learned, future units where there are some.
SETTINGS = {
    "short": {"training": toys.TRAINING},
    "longer": {"training": dataclasses.replace(toys.TRAINING, epochs=8)},
    "wide": {"width": 10},
}


def every_option():
    """Yield a test parameter for each option of each method."""
    for method in (m for m in toys.METHODS if ":" not in m):
        for part in registry.option_fields(method).values():
            for field in (f for f in part if not f.metadata["path"] and f.name not in ELSEWHERE):
                yield pytest.param(method, field, id=f"{method}-{field.name}")


def other_values(field):
    """Return values of an option that are not its default, the likelier to matter first."""
    choices, low, high = (field.metadata[key] for key in ("choices", "low", "high"))
    default = toys.SMALL.get(field.name, field.default)
    if choices:
        return [c for c in choices if c != default]
    if isinstance(default, bool):
        return [not default]
    double = default * 2 or 1.0
    values = [double if high is None or double <= high else default / 2, low]
    return [type(default)(v) for v in values if v is not None]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Return the models after each of three increments, by method, options and settings."""

    def get(method, options, name):
        folder = tmp_path_factory.mktemp("learned")
        given = {"count": 8, "options": options, **SETTINGS[name]}
        return (done.model for done in toys.increments(method, SIZES, folder, **given))

    return get


@pytest.fixture(scope="module")
def plain(learned):
    """Models that the options of a method are compared with, each trained once."""
    return functools.cache(lambda method, beside, name: list(learned(method, dict(beside), name)))


@pytest.mark.parametrize(("method", "field"), list(every_option()))
def test_every_option_reaches_the_result(method, field, learned, plain):
    beside = BESIDE.get((method.split("+")[0], field.name), {})
    for name in SETTINGS:
        before = plain(method, tuple(beside.items()), name)
        for value in other_values(field):
            after = learned(method, {**beside, field.name: value}, name)
            for old, new in zip(before, after, strict=True):  # no increment more than it takes
                if not (toys.equal(old.net, new.net) and toys.equal(old.rule, new.rule)):
                    return
    raise AssertionError(f"{field.name} changes nothing")


def base_after_a_step(method, options):
    """Return the word for a method's base increment, and the network after one step of it."""
    given = toys.task(method, SIZES[:1], options=options)
    if given.recipe.base is None:
        return None, None
    session = toys.session()
    sets = toys.sets_of(given, toys.image_set(range(SIZES[0]), 4))
    ctx, phases = increment.begin(given, sets, session)
    phases[0].prepare(ctx)
    PhaseRun(ctx, phases[0], 0, session).step(0)
    return given.recipe.base, ctx.net


@pytest.mark.parametrize("method", [m for m in toys.METHODS if toys.built(m).base])
def test_an_option_that_changes_the_base_increment_changes_its_name(method):
    """Comparisons train bases of one name once: ``edgecil.bench.bases``."""
    word, net = base_after_a_step(method, {})
    for fields in registry.option_fields(method).values():
        for field in (f for f in fields if not f.metadata["path"]):
            for value in other_values(field):
                found, other = base_after_a_step(method, {field.name: value})
                alike = found != word or toys.equal(net, other)
                assert alike, f"{field.name}={value} trains another base {word!r}"
