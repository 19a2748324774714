"""MFGR: which losses, on which images, with which weights; and how old classes are recorded."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
import toys
from torch import nn

from edgecil import registry
from edgecil.context import Classes
from edgecil.data.loader import rank_slice
from edgecil.engine import increment
from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun
from edgecil.errors import AdoptError, UsageError
from edgecil.losses.recording import sample_diversity
from edgecil.losses.synthesis import content, negative_entropy, statistics_distance
from edgecil.methods.mfgr import Options, old_share
from edgecil.nets.build import build
from edgecil.nets.net import NetSpec
from edgecil.nets.taps import freeze
from edgecil.options import make_options
from edgecil.parts.dreaming import SOURCE
from edgecil.parts.recorded import count_of, generated
from edgecil.settings import Optim
from edgecil.synthesis.recording import Recording
from edgecil.synthesis.statistics import look


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of three classes."""
    return toys.learn("mfgr", (3,), tmp_path_factory.mktemp("base"))[0].model


def started(previous, method="mfgr", sizes=(3, 2), width=None, **options):
    """Return the context of an increment in its last phase, the phases, and one batch."""
    even = {"ratio": 1.0} if "mfgr" in method and options.get("kd_synthetic", True) else {}
    given = toys.task(method, sizes, previous, options={**even, **options}, width=width)
    new = toys.image_set(range(sum(sizes[:-1]), sum(sizes)))
    session = toys.session()
    ctx, phases = begin(given, toys.sets_of(given, new), session)
    run = PhaseRun(ctx, phases[-1], len(phases) - 1, session)
    return ctx, phases, run._batch(0)


class Counted:
    """Counts images and passes of a network while it is open, and remembers both."""

    def __init__(self, net):
        self.net, self.sizes, self.images = net, [], []

    def __enter__(self):
        self.hook = self.net.register_forward_hook(self.see)
        return self

    def see(self, module, args, outputs):
        self.sizes.append(len(args[0]))
        self.images.append(args[0].detach().clone())

    def __exit__(self, *error):
        self.hook.remove()


def plain_kd(teacher, student, temperature):
    """Return the cross-entropy of softened probabilities, in float64."""
    soft = torch.softmax(teacher.double() / temperature, dim=1)
    return -(soft * torch.log_softmax(student.double() / temperature, dim=1)).sum(1).mean()


@pytest.mark.parametrize(
    ("options", "student", "teacher"),
    [
        ({}, 1, True), ({"mixed": False}, 2, True), ({"kd_real": False}, 1, True),
        ({"kd_synthetic": False}, 1, True),
        ({"kd_synthetic": False, "kd_real": False}, 1, False),
    ],
)  # fmt: skip
def test_terms_equal_a_plain_reference_and_no_pass_is_wasted(base, options, student, teacher):
    """Eq. (8), and Table 2's switches; what is not distilled is not asked about."""
    ctx, phases, batch = started(base, temperature=3.0, **options)
    reference = copy.deepcopy(ctx.net)
    teachers = ctx.teachers["previous"]
    with Counted(ctx.net) as net, Counted(teachers) as asked:
        terms = phases[-1].step(ctx, batch)
    synthetic = options.get("kd_synthetic", True)
    made = round(len(batch.labels) * 3 / 2) if synthetic else 0
    assert len(net.sizes) == student and sum(net.sizes) == len(batch.labels) + made
    real = options.get("kd_real", True)
    expected = ([len(batch.labels) * real + made]) if teacher else []
    assert asked.sizes == expected
    reference.train()
    with torch.no_grad():
        logits = torch.cat([reference(part).logits for part in net.images])
        taught = teachers(torch.cat(net.images)).logits
    n = len(batch.labels)
    wanted = {
        "classification": (0.5, nn.functional.cross_entropy(
            logits[:n, 3:5].double(), batch.labels - 3)),
        "distillation": (0.5, plain_kd(taught[:n, :3], logits[:n, :3], 3.0)),
        "generated distillation": (0.5, plain_kd(taught[n:, :3], logits[n:, :3], 3.0)),
    }  # fmt: skip
    if not real:
        del wanted["distillation"]
    if not synthetic:
        del wanted["generated distillation"]
    assert terms.keys() == wanted.keys()
    for name, (weight, value) in wanted.items():
        assert terms[name].weight == weight, name
        assert float(terms[name].value.detach()) == pytest.approx(float(value), rel=2e-4), name


def test_lambda_4_grows_with_the_increments_or_follows_the_classes():
    assert [old_share(Options(), Classes((5,) * t)) for t in (2, 3, 5)] == [1 / 2, 2 / 3, 4 / 5]
    assert old_share(Options(balance="classes"), Classes((50, 10))) == 50 / 60
    assert old_share(Options(), Classes((10, 0, 5))) == 1 / 2, "the second one brought no classes"


@pytest.mark.parametrize(
    ("groups", "real", "options", "count"),
    [((20, 20), 128, {}, 128), ((80, 20), 128, {}, 512), ((3, 2), 7, {}, 10),
     ((80, 20), 128, {"ratio": 0.5}, 256), ((80, 20), 128, {"synthetic": 512}, 512),
     ((20, 20), 5, {"synthetic": 512}, 512), ((1, 50), 16, {}, 2), ((1, 1), 1, {}, 2),
     ((98, 2), 128, {}, 512), ((99, 1), 128, {"ratio": 0.01}, 127),
     ((99, 1), 128, {"most": 0}, 12_672), ((98, 2), 128, {"most": 100}, 100),
     ((99, 1), 128, {"synthetic": 6272, "most": 100}, 6272)],
)  # fmt: skip
def test_batches_are_balanced_by_class_whatever_their_size(groups, real, options, count):
    assert count_of(Options(**options), Classes(groups), real) == count


@pytest.mark.parametrize(
    ("options", "notes"),
    [({"most": 23}, 1), ({"most": 24}, 0), ({"most": 0}, 0), ({"most": 8, "synthetic": 9}, 0)],
)
def test_a_number_of_generated_images_that_is_cut_is_said(base, options, notes):
    ctx, phases, batch = started(base, **options)  # 24 beside 16 of two new classes
    said = []
    ctx.note = said.append
    assert phases[1].step(ctx, batch)["generated distillation"].value.isfinite()
    assert len(said) == notes and all("23 are made" in text for text in said)


@pytest.mark.parametrize(("options", "count"), [({}, 15), ({"synthetic": 7}, 7), ({"most": 8}, 8)])
def test_ranks_make_parts_of_the_images_of_the_global_batch(base, options, count):
    ctx, _, _ = started(base, **options)
    asked, source = [], ctx.modules[SOURCE]
    real = source.draw
    source.draw = lambda number, skip: asked.append((skip, number)) or real(number, skip)
    parts = [rank_slice(0, 10, rank, 3) for rank in range(3)]  # two new classes after three
    for part in parts:
        ctx.total, ctx.offset = 10, part.start
        generated(Options(**options), ctx, part.stop - part.start)
    assert asked[0][0] == 0 and sum(number for _, number in asked) == count
    assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(asked))
    ctx.total, ctx.offset = 10, 0
    assert len(generated(Options(synthetic=2), ctx, 1)) == 2, "fewer cannot be normalised"


@pytest.mark.parametrize(
    ("groups", "options", "smaller"),
    [
        ((20, 20), {}, "--batch-size {}"), ((20, 20), {"synthetic": 512}, "--set synthetic=256"),
        ((80, 20), {}, "--set synthetic=256"), ((80, 20), {"most": 0}, "--set synthetic=256"),
        ((40, 20), {}, "--set synthetic=128"), ((80, 20), {"ratio": 0.1}, "--batch-size {}"),
    ],
)  # fmt: skip
def test_where_most_images_are_generated_fewer_of_them_need_less_memory(groups, options, smaller):
    training = dataclasses.replace(toys.TRAINING, batch_size=128)
    for method in ("mfgr", "icarl+mfgr"):
        recipe = registry.build(method, options)
        setup = increment.Setup(Classes(groups), training, {"new": 100, "kept": 0})
        assert recipe.phases(setup)[-1].smaller == smaller
        first = increment.Setup(Classes(groups[:1]), training, {"new": 100, "kept": 0})
        assert [phase.smaller for phase in recipe.phases(first)] == ["--batch-size {}"]


@pytest.mark.parametrize("method", ["mfgr", "icarl+mfgr", "abd"])
def test_whether_images_collapsed_is_seen_on_images_drawn_as_in_training(
    method, tmp_path, monkeypatch
):
    host = {"icarl+mfgr": "icarl"}.get(method, "finetune")
    previous = toys.learn(host, (3,), tmp_path)[0].model
    ctx, phases, batch = started(previous, method, collapse="retry")
    modes = []

    def looking(source, *others):
        modes.append(source.training)
        return torch.tensor([1, 1, 1])

    monkeypatch.setattr("edgecil.synthesis.training.shown", looking)
    for before in (True, False):
        ctx.modules[SOURCE].train(before)
        assert not phases[0].again(ctx, 1)
    phases[1].step(ctx, batch)
    assert modes == [ctx.modules[SOURCE].training] * 2 == ["mfgr" in method] * 2


def test_recording_asks_for_what_eq_7_says(base):
    images = torch.randn(6, 3, 32, 32)
    seen = look(freeze(base.net), images)
    losses = Recording().losses(images, seen, 3)
    logits = seen.logits[:, :3]
    wanted = {
        "content": (1.0, content(logits)), "diversity": (5.0, negative_entropy(logits)),
        "statistics": (20.0, statistics_distance(seen.layers)),
        "sample diversity": (0.1, sample_diversity(images)),
    }  # fmt: skip
    assert losses.keys() == wanted.keys()
    for name, (weight, value) in wanted.items():
        assert losses[name].weight == weight and torch.equal(losses[name].value, value), name
    released = Recording(samples=0.0, activation=0.1).losses(images, seen, 3)
    assert "sample diversity" not in released
    assert float(released["activation"].value) == -float(seen.features.abs().mean())
    assert set(Recording(0, 0, 0, 0, samples=0).losses(images, seen, 3)) == set()
    one = images[:1]
    assert "sample diversity" not in Recording().losses(one, look(freeze(base.net), one), 3)


def test_the_recorded_images_come_nearer_to_what_is_asked(base):
    given = toys.task("mfgr", (3, 2), base, options={"synthesis_steps": 25})
    new = toys.image_set(range(3, 5))
    session = toys.session()
    ctx, phases = begin(given, toys.sets_of(given, new), session)
    run = PhaseRun(ctx, phases[0], 0, session)

    def total():
        torch.manual_seed(0)
        with torch.no_grad():
            terms = phases[0].step(ctx, None)
        assert all(set(t.to) == {SOURCE} for t in terms.values())
        return sum(t.weight * float(t.value) for t in terms.values())

    before = total()
    run.run()
    assert total() < 0.8 * before


def test_the_generator_goes_with_the_increment_unless_it_is_kept(tmp_path):
    outcome = toys.learn("mfgr", (2, 2), tmp_path / "a", count=4)[-1]
    assert outcome.model.kept.encode() == b"" and outcome.training_bytes["modules"] > 8e6
    kept = toys.learn("mfgr", (2, 2), tmp_path / "b", count=4, options={"warm_start": True})[-1]
    assert kept.model.kept.report().kept_bytes > 8e6


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (1, 1)])
def test_one_old_class_and_one_new_class_are_learned(sizes, tmp_path):
    outcome = toys.learn("mfgr", sizes, tmp_path, count=5)[-1]
    assert outcome.model.net.classes == sum(sizes)


def test_a_network_without_batch_norms_is_refused(base):
    net = build(NetSpec("resnet8"), 3)
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    with pytest.raises(AdoptError, match="no batch norms"):
        started(dataclasses.replace(base, net=net))
    started(dataclasses.replace(base, net=net), kd_synthetic=False)  # needs none


@pytest.mark.parametrize("method", ["icarl+mfgr", "lwf+mfgr", "lwm+mfgr"])
def test_over_a_host_its_batch_stays_and_generated_images_are_distilled(method, tmp_path):
    host = method.partition("+")[0]
    previous = toys.learn(host, (3,), tmp_path)[0].model
    ctx, phases, batch = started(previous, method, weight=0.7)
    assert [p.name for p in phases] == ["synthesis", "train"]
    alone, (own,), _ = started(previous, host)
    plain = own.step(alone, batch)
    with Counted(ctx.net) as net, Counted(ctx.teachers["previous"]) as asked:
        terms = phases[1].step(ctx, batch)
    assert net.sizes == [len(batch.labels), round(len(batch.labels) * 3 / 2)]
    assert asked.sizes == net.sizes
    for name, term in plain.items():
        assert torch.equal(terms[name].value, term.value) and terms[name].weight == term.weight
    added = set(terms) - set(plain)
    assert all(terms[name].weight == 0.7 for name in added)
    with torch.no_grad():
        taught = ctx.teachers["previous"](net.images[1]).logits.double()
        copied = copy.deepcopy(alone.net)  # has seen the batch, as the other has
        logits = copied(net.images[1]).logits.double()
    if host == "lwf":
        wanted = {"generated distillation": plain_kd(taught[:, :3], logits[:, :3], 2.0)}
    else:
        bce = nn.functional.binary_cross_entropy_with_logits
        zero = torch.zeros_like(logits[:, 3:])
        wanted = {
            "generated distillation": 3 * bce(logits[:, :3], taught[:, :3].sigmoid()),
            "generated classification": 2 * bce(logits[:, 3:], zero),
        }
    assert added == wanted.keys()
    for name, value in wanted.items():
        assert float(terms[name].value.detach()) == pytest.approx(float(value), rel=2e-4)


@pytest.mark.parametrize(
    ("host", "options", "weights"),
    [
        ("icarl", {"reduction": "mean"}, (0.1, 0.1)), ("icarl", {"reduction": "sum"}, (1, 1)),
        ("lwf-mc", {"reduction": "mean"}, (0.1, 0.1)), ("lwm", {"beta": 3.0}, (1, 3)),
        ("lwf", {"kd_weight": 4.0, "temperature": 5.0}, (1, 4)),
        ("lwf", {"balance": True}, (0.4, 0.6)), ("lwf-coreset", {"temperature": 1.0}, (1, 1)),
    ],
)  # fmt: skip
def test_generated_images_weigh_what_the_hosts_own_do(host, options, weights, tmp_path):
    """Reduction over units, temperature, weights: in units of the host, times ``weight``."""
    previous = toys.learn(host, (3,), tmp_path, width=10)[0].model
    ctx, phases, batch = started(previous, f"{host}+mfgr", width=10, weight=0.5, **options)
    with Counted(ctx.net) as net:
        terms = phases[1].step(ctx, batch)
    kinds = ("classification", "distillation")
    assert [terms[k].weight for k in kinds] == pytest.approx(weights)
    found = [t for name, t in terms.items() if name.startswith("generated")]
    with torch.no_grad():
        taught = ctx.teachers["previous"](net.images[1]).logits.double()
        logits = ctx.net(net.images[1]).logits.double()  # in train mode, as in the step
        total = sum(float(t.weight * t.value) for t in found)
    if host.startswith("lwf") and host != "lwf-mc":
        wanted = (
            0.5
            * weights[1]
            * plain_kd(taught[:, :3], logits[:, :3], options.get("temperature", 2.0))
        )
    else:
        bce = nn.functional.binary_cross_entropy_with_logits
        old = 3 * bce(logits[:, :3], taught[:, :3].sigmoid())
        new = 7 * bce(logits[:, 3:], torch.zeros_like(logits[:, 3:]))
        wanted = 0.5 * (weights[0] * new + weights[1] * old)
    assert total == pytest.approx(float(wanted), rel=2e-4)


def test_the_exemplars_of_a_host_are_kept_and_nothing_else(tmp_path):
    plain = toys.learn("icarl", (2, 2), tmp_path / "a", count=6)[-1].model.kept
    with_images = toys.learn("icarl+mfgr", (2, 2), tmp_path / "b", count=6)[-1].model.kept
    assert with_images.report().kept_bytes == plain.report().kept_bytes


@pytest.mark.parametrize("host", ["m2kd", "lucir", "ncm", "mfgr", "bic", "eeil", "finetune"])
def test_hosts_of_another_kind_are_refused(host):
    with pytest.raises(UsageError, match=f"cannot be laid over {host}") as refused:
        registry.build(f"{host}+mfgr")
    offered = refused.value.hint.partition(": ")[2].split(", ")
    assert offered == sorted(registry.hosts("mfgr"))


def test_a_host_that_distils_every_head_apart_is_refused():
    with pytest.raises(UsageError, match="cannot be laid over eeil"):
        registry.build("eeil+mfgr", {"finetuning": 0.0})


def test_options_as_a_plug_in_are_those_that_act():
    with pytest.raises(UsageError, match="no option 'kd_real'"):
        registry.build("icarl+mfgr", {"kd_real": False})
    assert registry.build("icarl+mfgr", {"weight": 2.0}).name == "icarl+mfgr"
    with pytest.raises(UsageError, match="weight=0"):
        registry.build("icarl+mfgr", {"weight": 0.0})


def test_over_a_host_a_loss_that_diverges_may_be_that_of_the_synthesis():
    assert "synthesis_lr" in registry.build("icarl+mfgr").if_diverging


def test_something_must_be_asked_of_every_generated_image():
    nothing = {"content": 0.0, "statistics": 0.0}
    for method in ("mfgr", "icarl+mfgr"):
        with pytest.raises(UsageError, match="content, statistics, prior and activation are all 0"):
            registry.build(method, nothing)
        registry.build(method, {**nothing, "activation": 0.1})


def test_options_of_a_generator_that_there_is_none_of_are_refused():
    for name, value in (("synthesis_steps", 100), ("ratio", 2.0), ("collapse", "accept")):
        with pytest.raises(UsageError, match=f"kd_synthetic=false .* no use for {name}"):
            registry.build("mfgr", {"kd_synthetic": False, name: value})
    for value in ({"samples": 0.0}, {"activation": 0.1}, {"synthetic": 512}, {"most": 0}):
        with pytest.raises(UsageError, match=rf"no use for {next(iter(value))}$"):
            registry.build("mfgr", {"kd_synthetic": False, **value})  # a preset's, by itself
    for preset in ({}, *(preset.options for preset in registry.presets("mfgr").values())):
        assert not registry.build("mfgr", {**preset, "kd_synthetic": False}).modules
        with pytest.raises(UsageError, match=r"no use for prior$"):
            registry.build("mfgr", {**preset, "kd_synthetic": False, "prior": 1.0})


@pytest.mark.parametrize("weight", ["ce_weight", "kd_weight"])
def test_weights_beside_those_of_the_balance_are_refused(weight):
    with pytest.raises(UsageError, match="balance gives both weights"):
        registry.build("lwf", {"balance": True, weight: 2.0})
    assert registry.build("lwf", {"balance": True, weight: 1.0}).name == "lwf"


COMMON = {
    "synthesis_steps": 60_000, "synthesis_batch": 512, "synthesis_lr": 0.01, "content": 1.0,
    "statistics": 20.0, "prior": 0.0, "content_temperature": 1.0, "entropy": "nats",
    "warm_start": False, "kd_real": True, "kd_synthetic": True, "temperature": 2.0, "ratio": 1.0,
    "balance": "steps",
}  # fmt: skip
PUBLISHED = {
    "mfgr": (0.01, {
        "diversity": 5.0, "samples": 0.1, "activation": 0.0, "synthetic": 0, "most": 0,
        "mixed": True,
    }),
    "mfgr-released": (0.1, {
        "diversity": 5 / math.log(10), "samples": 0.0, "activation": 0.1, "synthetic": 512,
        "most": 512, "mixed": False,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_build_and_are_of_the_paper(name):
    preset, (lr, options) = registry.presets("mfgr")[name], PUBLISHED[name]
    found = vars(make_options(Options, preset.options))
    assert {key: found[key] for key in (COMMON | options)} == COMMON | options
    assert preset.training.optim == Optim(lr, 0.9, 5e-4) and preset.arch == "resnet34-3x3"
    recipe = registry.build("mfgr", preset.options)
    setup = increment.Setup(Classes((20, 20)), preset.training, {"new": 10_000, "kept": 0})
    recording, training = recipe.phases(setup)
    asked = {key: options[key] for key in ("diversity", "samples", "activation")}
    assert recording.step.args == (Recording(**asked), 512) and recording.steps == 60_000
    assert recording.training.batch_size == 512 and recording.training.optim.lr == 0.01
    assert training.training.batch_size == 128 and training.training.epochs == 150
