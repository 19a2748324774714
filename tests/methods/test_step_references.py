"""Single steps and what is kept after them, against plain references in float64."""

import copy
import math

import pytest
import torch
import toys
from torch import nn

from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun
from edgecil.memory.budget import Budget
from edgecil.methods import bic, eeil, icarl
from edgecil.model import Model
from edgecil.nets.rules import CorrectedRule
from edgecil.parts.importance import fisher, sensitivity
from edgecil.rankings import herding_dot

T = 2.0


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the model of a method after four classes, trained once."""
    made = {}

    def get(method, **changes):
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            made[method] = toys.learn(method, (4,), folder, **changes)[0].model
        return made[method]

    return get


def begun(method, groups, previous, **changes):
    """Return context, phases and session at the start of an increment that adds two classes."""
    given = toys.task(method, groups, previous, **changes)
    session = toys.session()
    new = toys.image_set(range(4, 4 + groups[-1]))
    return *begin(given, toys.sets_of(given, new), session), session


def terms_of(ctx, phases, number, session):
    """Return a step's terms and its batch: in eval mode, with weights that differ from before."""
    phases[number].prepare(ctx)
    run = PhaseRun(ctx, phases[number], number, session)
    torch.manual_seed(number)
    with torch.no_grad():
        for parameter in ctx.net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ctx.net.eval()
    batch = run._batch(0)
    return phases[number].step(ctx, batch), batch


def softened(teacher, student):
    """Return the cross-entropy of softened float64 logits, mean over images."""
    soft = torch.softmax(teacher / T, 1)
    return float(-(soft * torch.log_softmax(student / T, 1)).sum(1).mean())


def logits_of(net, batch):
    with torch.no_grad():
        return net(batch.images).logits.double()


def entropy_of(logits, labels):
    return float(nn.functional.cross_entropy(logits, labels))


def value_of(term):
    return float(term.value.detach())


def near(value):
    return pytest.approx(value, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("pairs", ["last", "all"])
def test_bic_weighs_by_classes_and_corrects_the_teacher(pairs, base):
    """lambda = K_o / K; the student's logits are corrected only where all pairs stay (ABD)."""
    before = base("bic", budget=Budget(per_class=10), count=20)
    scale, shift = torch.tensor([1.0, 1.0, 0.5, 0.5]), torch.tensor([0.0, 0.0, -1.0, -1.0])
    previous = Model(before.net, CorrectedRule(scale, shift), before.kept)
    ctx, phases, session = begun("bic", (2, 2, 2), previous, options={"pairs": pairs})
    terms, batch = terms_of(ctx, phases, 0, session)
    student, teacher = logits_of(ctx.net, batch), logits_of(ctx.teachers["previous"], batch)
    if pairs == "all":
        student[:, :4] = student[:, :4] * scale + shift
    target = teacher[:, :4] * scale + shift
    assert terms["classification"].weight == near(1 - 4 / 6)
    assert terms["distillation"].weight == near(4 / 6)
    assert value_of(terms["classification"]) == near(entropy_of(student, batch.labels))
    assert value_of(terms["distillation"]) == near(softened(target, student[:, :4]))


@pytest.mark.parametrize(
    ("groups", "share"), [((4, 1), 4 / 5), ((4, 2), 4 / 6), ((2, 2, 4), 4 / 8), ((4, 12), 4 / 16)]
)
def test_bics_lambda_is_the_share_of_old_classes(groups, share, base):
    """lambda = n / (n + m), n old and m new classes (section 3)."""
    before = base("bic", budget=Budget(per_class=10), count=20)
    ctx, phases, session = begun("bic", groups, before)
    terms, _ = terms_of(ctx, phases, 0, session)
    assert terms["distillation"].weight == near(share)
    assert terms["classification"].weight == near(1 - share)


@pytest.mark.parametrize("method", ["lwf-coreset", "lwf", "finetune", "bic+mnemonics"])
def test_what_follows_bic_continues_the_corrected_classifier(method, base):
    """Others know no correction of logits: they get a head that makes the same scores."""
    before = base("bic", budget=Budget(per_class=10), count=20)
    rule = CorrectedRule(torch.tensor([1.0, 1.0, 0.5, 0.5]), torch.tensor([0.0, 0.0, -1.0, -1.0]))
    ctx, _, _ = begun(method, (2, 2, 2), Model(before.net, rule, before.kept))
    with torch.no_grad():
        images = torch.randn(4, 3, 32, 32)
        old, new = before.net(images), ctx.net.eval()(images)
        teachers = [teacher(images).logits for teacher in ctx.teachers.values()]
    wanted = old.logits if method == "bic+mnemonics" else rule(old.features, old.logits)
    for logits in (new.logits[:, :4], *teachers):
        torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)
    assert ctx.previous_rule.kind == ("argmax", "bias-corrected")[method == "bic+mnemonics"]


def test_the_bias_goes(base):
    """New logits that are far too large are brought down to where the old ones are."""
    before = base("bic", budget=Budget(per_class=10), count=20)
    ctx, phases, session = begun("bic", (4, 2), before, budget=Budget(per_class=10))
    PhaseRun(ctx, phases[0], 0, session).run()
    ctx.net.eval()
    with torch.no_grad():
        ctx.net.head.bias[4:] += 5
    rule = bic.rule(bic.Options(), ctx)
    assert rule.scale[:4].tolist() == [1] * 4 and rule.shift[:4].tolist() == [0] * 4
    assert rule.scale[4] == rule.scale[5] != 1 and rule.shift[4] == rule.shift[5] < 0
    with torch.no_grad():
        outputs = [ctx.net(batch) for batch in ctx.loader(toys.image_set(range(6), 10, seed=5))]
    scores = [o.logits for o in outputs], [rule(o.features, o.logits) for o in outputs]
    plain, fixed = (float(torch.softmax(torch.cat(s), 1)[:, 4:].sum(1).mean()) for s in scores)
    # A third of the images are of new classes: so much is given to these.
    assert plain > 0.9 and abs(fixed - 1 / 3) < abs(plain - 1 / 3) / 2


@pytest.mark.parametrize("heads", ["sum", "share"])
def test_eeil_distils_every_old_head_apart(heads, base):
    options = {"heads": heads}
    ctx, phases, session = begun("eeil", (2, 2, 2), base("eeil"), options=options)
    old, new = (slice(0, 2), slice(2, 4)), slice(4, 6)
    for number in (0, 1):
        terms, batch = terms_of(ctx, phases, number, session)
        student = logits_of(ctx.net, batch)
        share = 1.0 if heads == "sum" else 2 / (4, 6)[number]
        assert value_of(terms["classification"]) == near(entropy_of(student, batch.labels))
        teacher = logits_of(ctx.teachers["previous"], batch)
        wanted = sum(share * softened(teacher[:, s], student[:, s]) for s in old)
        assert value_of(terms["distillation, previous"]) == near(wanted)
        assert ("distillation, trained" in terms) == (number == 1)
        if number == 1:
            teacher = logits_of(ctx.teachers["trained"], batch)
            wanted = share * softened(teacher[:, new], student[:, new])
            assert value_of(terms["distillation, trained"]) == near(wanted)


def test_eeils_balanced_stage_can_train_the_head_alone(base):
    options = {"finetuned": "head", "finetuning_lr": 0.01, "ranking": "nearest", "finetuning": 1.0}
    ctx, phases, session = begun("eeil", (2, 2, 2), base("eeil"), options=options)
    assert phases[1].training.optim.lr == near(0.01 * phases[0].training.optim.lr)
    phases[1].prepare(ctx)
    before = copy.deepcopy(ctx.net.state_dict())
    run = PhaseRun(ctx, phases[1], 1, session)
    run.step(0)
    moved = {n for n, v in ctx.net.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {n for n in before if n.startswith("head.")}


def test_eeils_base_has_epochs_of_its_own():
    ctx, phases, session = begun("eeil", (2,), None, options={"base": 2.5})
    run = PhaseRun(ctx, phases[0], 0, session)
    assert run.steps == 2.5 * toys.TRAINING.epochs * run.per_epoch


def test_eeil_says_which_increments_it_does_not_distil(base):
    for groups, silent in (((2, 2, 2), True), ((3, 1, 2), False)):
        ctx, phases, session = begun("eeil", groups, base("eeil"))
        said = []
        ctx.note = said.append
        terms_of(ctx, phases, 0, session)
        assert (said == []) == silent
        assert all("increment of one class is not distilled" in text for text in said)


@pytest.mark.parametrize("step", [0, 1000])
def test_eeils_noise_has_the_published_variance(step, base):
    ctx, phases, session = begun("eeil", (2, 2, 2), base("eeil"), options={"noise": 0.3})
    PhaseRun(ctx, phases[0], 0, session)
    ctx.step = step
    weights = list(ctx.net.parameters())
    torch.manual_seed(0)
    found = torch.cat([g.flatten() for g in torch.autograd.grad(eeil.noise(ctx, 0.3), weights)])
    assert float(found.double().var()) == pytest.approx(0.3 / (1 + step) ** 0.55, rel=0.03)
    assert abs(float(found.mean())) < 0.02


def test_lucir_weighs_less_forget_by_the_classes(base):
    """lambda = lambda_base sqrt(K_o / K_n), lambda_base = 5."""
    ctx, phases, session = begun("lucir", (2, 2, 1), base("lucir"))
    terms, batch = terms_of(ctx, phases, 0, session)
    with torch.no_grad():
        student = ctx.net(batch.images).features.double()
        teacher = ctx.teachers["previous"](batch.images).features.double()
    cosine = nn.functional.cosine_similarity(student, teacher, dim=1)
    assert terms["less-forget"].weight == near(5 * math.sqrt(4 / 1))
    assert value_of(terms["less-forget"]) == near(float((1 - cosine).mean()))


@pytest.mark.parametrize(
    ("method", "measure", "shares"),
    [("ewc", fisher, (4 / 6, 2 / 6)), ("mas", sensitivity, (1.0, 1.0))],
)
def test_importance_is_kept_in_the_shares_of_its_method(method, measure, shares, base):
    """EWC averages over classes, MAS adds up over increments."""
    before = base(method)
    ctx, _, _ = begun(method, (4, 2), before)
    with torch.no_grad():
        for parameter in ctx.net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    fresh = measure(ctx, ctx.sets["new"])
    toys.built(method).end(ctx)
    kept, was = ctx.keeps.read(measure.__name__), before.kept.read(measure.__name__)
    for name, value in fresh.items():
        name = f"backbone.{name}"
        wanted = shares[0] * was[name].astype("float64") + shares[1] * value.double().numpy()
        assert kept[name] == pytest.approx(wanted, rel=1e-4, abs=1e-9 * wanted.max()), name
    assert max(v.max() for v in fresh.values()) > 0 and max(v.max() for v in was.values()) > 0


def test_icarls_weight_decay_is_that_of_its_penalty():
    """Theano's l2 is 1e-5 times the sum of squares, without 1/2."""
    weight = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(1e-5 * weight**2, weight)
    preset = icarl.PRESETS["icarl"]
    assert preset.training.optim.weight_decay * 3.0 == near(float(slope))
    assert toys.built("icarl", preset.options).selection.rank is herding_dot
