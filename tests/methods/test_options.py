"""Every option of every method changes what is learned. New options are found by themselves."""

import dataclasses

import pytest
import toys

from edgecil import registry

pytestmark = pytest.mark.usefixtures("small_generators")

SIZES = (2, 2, 3)  # two teachers in the end, of which one may be skipped
ELSEWHERE = {
    "collapse": "when all synthetic images show one class: tests/methods/test_abd.py",
}
"""Options that act where toys do not come to, and have tests of their own."""
BESIDE = {("mas", "steady"): {"strength": 3.0}}
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
    """Models after three increments by method, options and settings, each trained once."""
    made = {}

    def get(method, options, name):
        key = (method, repr(options), name)
        if key not in made:
            folder = tmp_path_factory.mktemp("learned")
            outcomes = toys.learn(method, SIZES, folder, count=8, options=options, **SETTINGS[name])
            made[key] = outcomes[-1].model
        return made[key]

    return get


@pytest.mark.parametrize(("method", "field"), list(every_option()))
def test_every_option_reaches_the_result(method, field, learned):
    beside = BESIDE.get((method.split("+")[0], field.name), {})
    for name in SETTINGS:
        plain = learned(method, beside, name)
        for value in other_values(field):
            model = learned(method, {**beside, field.name: value}, name)
            if not (toys.equal(plain.net, model.net) and toys.equal(plain.rule, model.rule)):
                return
    raise AssertionError(f"{field.name} changes nothing")
