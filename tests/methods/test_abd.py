"""ABD, DeepInversion and LwF on synthetic images: losses, exact savings, ablations, collapse."""

import copy
import dataclasses
import importlib
import math
from functools import partial

import pytest
import torch
import toys
from naive_abd import naive_dream, naive_step, solver_of
from torch import nn
from torch.nn import functional as F

from edgecil import registry
from edgecil.context import Classes
from edgecil.engine import increment, state
from edgecil.engine.events import Note, PhaseStarted, Progress
from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun
from edgecil.engine.selection import dimensions
from edgecil.errors import AdoptError, Interrupted, TrainingError, UsageError
from edgecil.losses.replay import output_distance, padded_distillation, weighted_cross_entropy
from edgecil.memory.plan import plan
from edgecil.nets.net import NetSpec
from edgecil.options import make_options
from edgecil.parts.dreaming import SOURCE, draw
from edgecil.settings import CIFAR, Augment, Optim, Preprocess, Schedule, Training
from edgecil.synthesis.objective import Inversion

METHODS = ("abd", "deepinversion", "lwf-synthetic")


def rows(tensor):
    return tensor.double().tolist()


def log_softmax(row):
    total = math.log(sum(math.exp(v) for v in row))
    return [v - total for v in row]


class TestLosses:
    def test_padded_distillation_gives_new_classes_probability_zero(self):
        torch.manual_seed(0)
        teacher, student, heat = torch.randn(4, 3), torch.randn(4, 5), 2.0
        expected = 0.0
        for t, s in zip(rows(teacher / heat), rows(student / heat), strict=True):
            soft = [math.exp(v) for v in log_softmax(t)] + [0.0, 0.0]
            expected -= sum(p * q for p, q in zip(soft, log_softmax(s), strict=True)) / 4
        assert padded_distillation(teacher, student, heat).item() == pytest.approx(expected, 1e-6)

    def test_it_pushes_the_new_units_down(self):
        student = torch.zeros(1, 3, requires_grad=True)
        padded_distillation(torch.zeros(1, 2), student).backward()
        assert student.grad[0, 2] > 0 and (student.grad[0, :2] < 0).all()

    def test_output_distance_is_that_of_weighted_features_and_knows_no_bias(self):
        torch.manual_seed(0)
        weight, f, g = torch.randn(3, 6).double(), torch.randn(4, 6).double(), torch.randn(4, 6)
        norms = [sum(v * v for v in (weight @ d).tolist()) for d in f - g.double()]
        given = (F.linear(f, weight, torch.ones(3).double()),
                 F.linear(g.double(), weight, torch.ones(3).double()))  # fmt: skip
        assert output_distance(*given, mean=False).item() == pytest.approx(sum(norms) / 4, 1e-5)
        assert output_distance(*given).item() == pytest.approx(sum(norms) / 12, 1e-5)

    def test_weighted_cross_entropy_averages_over_images_not_weights(self):
        torch.manual_seed(0)
        logits, labels, weights = torch.randn(4, 3), torch.tensor([0, 2, 2, 1]), [0.2, 0.3, 0.5]
        expected = -sum(
            weights[y] * log_softmax(row)[y]
            for row, y in zip(rows(logits), labels.tolist(), strict=True)
        )
        found = weighted_cross_entropy(logits, labels, torch.tensor(weights))
        assert found.item() == pytest.approx(expected / 4, 1e-6)

    def test_more_classes_than_images_have_weights_of_their_own(self):
        weights = torch.arange(50.0)
        one = weighted_cross_entropy(torch.zeros(1, 50), torch.tensor([49]), weights)
        assert one.item() == pytest.approx(49 * math.log(50), 1e-6)


def second(method, options=None, groups=(3, 2), count=12, preprocess=CIFAR, **changes):
    """Return context, phases and session at the start of the second increment."""
    base = changes.pop("base")
    given = toys.task(method, groups, base, options=options, **changes)
    new = toys.image_set(range(groups[0], sum(groups)), count)
    session = dataclasses.replace(toys.session(), preprocess=preprocess)
    return *begin(given, toys.sets_of(given, new), session), session


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a model of three classes."""
    training = dataclasses.replace(toys.TRAINING, epochs=8)
    (outcome,) = toys.learn("finetune", (3,), tmp_path_factory.mktemp("base"), training=training)
    return outcome.model


class TestExactSavings:
    @pytest.mark.parametrize("passes", [1, 2])
    def test_a_step_equals_the_naive_one_in_gradients_and_statistics(self, base, passes):
        """Over several steps, in which the naive form makes twelve passes' work of eight."""
        choice = {"bn_passes": passes}
        ctx, phases, session = second("abd", choice, base=base)
        other, phases_too, session_too = second("abd", choice, base=base)
        options = phases[1].step.args[0]
        fast = PhaseRun(ctx, phases[1], 1, session)
        slow = PhaseRun(other, phases_too[1], 1, session_too)

        step = partial(naive_step, options, solver_of(other))
        slow.phase = dataclasses.replace(slow.phase, step=step)
        for step in range(3):
            fast.step(step)
            slow.step(step)
            ours, theirs = ctx.net.state_dict(), other.net.state_dict()
            for name, value in ours.items():
                if name.endswith("num_batches_tracked"):
                    continue
                close = torch.allclose(value, theirs[name], rtol=1e-5, atol=1e-6)
                statistic = "running" in name
                if passes == 2 or not statistic:
                    assert close, (step, name)
        statistics = [n for n in ours if "running_mean" in n]
        same = all(torch.allclose(ours[n], theirs[n], atol=1e-6) for n in statistics)
        assert same == (passes == 2), "one pass moves statistics less than two"

    def test_synthesis_without_gradients_of_the_solver_equals_the_naive_one(self, base):
        ctx, phases, session = second("abd", base=base)
        other, phases_too, session_too = second("abd", base=base)
        fast = PhaseRun(ctx, phases[0], 0, session)
        slow = PhaseRun(other, phases_too[0], 0, session_too)
        step = partial(naive_dream, phases[0].step.args[0], solver_of(other))
        slow.phase = dataclasses.replace(slow.phase, step=step)
        for number in range(3):
            fast.step(number)
            slow.step(number)
        for name, value in ctx.modules[SOURCE].state_dict().items():
            assert torch.allclose(value, other.modules[SOURCE].state_dict()[name], atol=1e-6), name

    @pytest.mark.parametrize("method", METHODS)
    def test_one_pass_of_either_network_and_no_gradient_for_the_solver(self, method, base):
        ctx, phases, session = second(method, base=base)
        for number, phase in enumerate(phases):
            run = PhaseRun(ctx, phase, number, session)
            seen = {"student": 0, "teacher": 0}

            def count(name, seen=seen):
                return lambda module, args: seen.update({name: seen[name] + len(args[0])})

            hooks = [
                ctx.net.register_forward_pre_hook(count("student")),
                ctx.teachers["previous"].register_forward_pre_hook(count("teacher")),
            ]
            run.step(0)
            for hook in hooks:
                hook.remove()
            batch = 16
            dreaming = phase.name == "synthesis"
            assert seen == {"student": 0 if dreaming else 2 * batch,
                            "teacher": batch if dreaming else 2 * batch}  # fmt: skip
            teacher = ctx.teachers["previous"]
            assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
            assert not any(m._forward_pre_hooks for m in teacher.modules())

    def test_momentum_is_put_back_even_after_an_exception(self, base):
        ctx, phases, session = second("abd", {"bn_passes": 2}, base=base)
        run = PhaseRun(ctx, phases[1], 1, session)
        norms = [m for m in ctx.net.modules() if isinstance(m, nn.BatchNorm2d)]
        batch = run._batch(0)
        broken = dataclasses.replace(batch, images=batch.images[:, :1])
        with pytest.raises(RuntimeError):
            run.phase.step(ctx, broken)
        assert {norm.momentum for norm in norms} == {0.1}


class TestAblations:
    """Each row of Table 3 is one option; what it leaves out, it does not compute either."""

    def terms(self, base, **options):
        ctx, phases, session = second("abd", options, base=base)
        run = PhaseRun(ctx, phases[1], 1, session)
        torch.manual_seed(0)
        return run.phase.step(ctx, run._batch(0))

    def test_rows_of_table_3(self, base):
        full = self.terms(base)
        assert set(full) == {"classification", "distillation", "fine-tuning"}
        assert "fine-tuning" not in self.terms(base, finetuning=0.0)
        changed = {"balance": "fine-tuning", "local_ce": "classification",
                   "kd_real": "distillation", "kd_synthetic": "distillation"}  # fmt: skip
        for name, term in changed.items():
            found = self.terms(base, **{name: False})
            for other, value in full.items():
                equal = torch.allclose(found[other].value, value.value)
                assert equal == (other != term), (name, other)
        assert "distillation" not in self.terms(base, kd_real=False, kd_synthetic=False)

    def test_both_distillations_average_to_the_whole(self, base):
        torch.manual_seed(0)
        parts = [self.terms(base, **{name: False}) for name in ("kd_real", "kd_synthetic")]
        with torch.no_grad():
            mean = sum(float(part["distillation"].value) for part in parts) / 2
        assert mean == pytest.approx(self.terms(base)["distillation"].value.item(), rel=1e-4)

    def test_the_teacher_sees_no_image_that_no_loss_asks_about(self, base):
        none = {"finetuning": 0.0}
        for options, images in (
            ({}, [32]), ({"kd_real": False}, [16]), ({"mu": 0.0}, [16]), (none, [32]),
            ({**none, "kd_synthetic": False}, [16]), ({**none, "kd_real": False}, [16]),
            ({**none, "mu": 0.0}, []), ({**none, "kd_synthetic": False, "kd_real": False}, []),
        ):  # fmt: skip
            ctx, phases, session = second("abd", options, base=base)
            run, seen = PhaseRun(ctx, phases[1], 1, session), []
            ctx.teachers["previous"].register_forward_pre_hook(
                lambda module, args, seen=seen: seen.append(len(args[0]))
            )
            run.step(0)
            assert seen == images, options

    def test_the_released_form(self, base):
        full = self.terms(base)
        share = self.terms(base, ce_share=True)["classification"]
        assert share.weight == pytest.approx(2 / 5)
        assert torch.allclose(share.value, full["classification"].value)
        total = self.terms(base, kd_reduction="sum")["distillation"].value
        assert torch.allclose(total, 3 * full["distillation"].value, rtol=1e-5)

    @pytest.mark.parametrize("method", METHODS)
    def test_every_preset_is_one_of_valid_options(self, method):
        for preset in registry.presets(method).values():
            recipe = registry.build(method, preset.options)
            warm = bool(preset.options.get("warm_start"))
            assert bool(recipe.fields) == warm


OWN = {"temperature": 2.0, "kd_weight": 1.0}
PAPER = {
    "source": "generator", "synthesis_steps": 5000, "synthesis_lr": 0.0, "synthesis_batch": 0,
    "content": 1.0, "diversity": 1.0, "statistics": 50.0, "prior": 1e-3,
    "content_temperature": 1000.0, "entropy": "nats", "warm_start": False, "collapse": "retry",
}  # fmt: skip
CODE = PAPER | {"synthesis_steps": 10_000, "entropy": "share", "warm_start": True}
ABD = {
    "balance": True, "local_ce": True, "kd_real": True, "kd_synthetic": True, "finetuning": 1.0,
    "mu": 0.1, "kd_reduction": "mean", "units": "seen", "ce_share": False, "bn_passes": 1,
}  # fmt: skip
DGR = {
    "mu": 1.0, "temperature": 2.0, "vae_width": 64, "vae_latent": 1024, "vae_optimiser": "sgd",
    "vae_lr": 0.0,
}  # fmt: skip
PUBLISHED = {
    ("abd", "abd"): PAPER | ABD,
    ("abd", "abd-released"): CODE | ABD | {"units": "all", "ce_share": True, "bn_passes": 2},
    ("deepinversion", "abd"): PAPER | OWN | {"real_units": "seen"},
    ("deepinversion", "abd-released"): CODE | OWN | {"real_units": "old"},
    ("lwf-synthetic", "abd"): PAPER | OWN | {"ce_scope": "seen"},
    ("lwf-synthetic", "abd-released"): CODE | OWN | {"ce_scope": "seen", "kd_weight": 0.1},
    ("dgr", "abd"): DGR,
    ("dgr", "abd-released"): DGR,
}


@pytest.mark.parametrize(("method", "name"), PUBLISHED)
def test_presets_are_of_the_paper_and_of_its_code(method, name):
    preset = registry.presets(method)[name]
    module = importlib.import_module(registry.methods()[method].module)
    assert vars(make_options(module.Options, preset.options)) == PUBLISHED[method, name]
    decay = 0.0 if method == "dgr" else 2e-4
    schedule = Schedule("step", (0.4, 0.6, 0.8))
    assert preset.training == Training(250, 128, Optim(0.1, 0.9, decay, schedule))
    assert preset.arch == "resnet32"
    if method != "dgr":
        setup = increment.Setup(Classes((3, 2)), preset.training, {"new": 12, "kept": 0})
        synthesis = registry.build(method, preset.options).phases(setup)[0]
        of_name = {"abd": Inversion(), "abd-released": Inversion(entropy="share")}
        assert synthesis.step.args == (of_name[name], 128)
        assert synthesis.steps == PUBLISHED[method, name]["synthesis_steps"]
    wide = (method, name) == ("abd", "abd-released")
    assert preset.head_width == (100 if wide else None)
    released = name.endswith("released")
    assert preset.augment == (
        Augment("pad", brightness=63 / 255, contrast=0.8) if released else None
    )


@pytest.fixture
def few_looks(monkeypatch):
    """Let two batches tell whether a source has collapsed."""
    monkeypatch.setattr("edgecil.synthesis.training.LOOKED_AT", 32)


@pytest.mark.usefixtures("few_looks")
class TestCollapse:
    def test_a_teacher_that_sees_one_class_in_everything_is_tried_again_and_refused(self, base):
        stubborn = dataclasses.replace(base, net=copy.deepcopy(base.net))
        with torch.no_grad():
            stubborn.net.head.bias[1] += 1e6
        given = toys.task("abd", (3, 2), stubborn, options={"collapse": "retry"})
        new = toys.image_set(range(3, 5))
        said = []
        session = dataclasses.replace(toys.session(), listener=said.append)
        with pytest.raises(TrainingError, match="collapsed in 3 of 3 attempts") as error:
            increment.train(given, toys.sets_of(given, new), session)
        assert "--set diversity" in error.value.hint
        texts = [event.text for event in said if hasattr(event, "text")]
        assert sum("taken for class 1: once more" in text for text in texts) == 2

    def test_a_second_seed_begins_anew_and_is_said(self, base, monkeypatch):
        ctx, phases, _ = second("abd", {"collapse": "retry"}, base=base)
        before = ctx.modules[SOURCE].linear.weight.clone()
        monkeypatch.setattr("edgecil.synthesis.training.shown", lambda *a: torch.tensor([9, 0, 0]))
        said = []
        ctx.note = said.append
        assert phases[0].again(ctx, 1)
        assert len(said) == 1
        assert not torch.equal(before, ctx.modules[SOURCE].linear.weight)

    def test_images_of_several_classes_are_left_as_they_are(self, base, monkeypatch):
        ctx, phases, _ = second("abd", {"collapse": "retry"}, base=base)
        before = ctx.modules[SOURCE].linear.weight.clone()
        monkeypatch.setattr("edgecil.synthesis.training.shown", lambda *a: torch.tensor([1, 8, 0]))
        assert not phases[0].again(ctx, 1)
        assert torch.equal(before, ctx.modules[SOURCE].linear.weight)

    def test_a_stop_in_another_attempt_saves_it_and_the_run_goes_on(
        self, base, monkeypatch, tmp_path
    ):
        """The first attempt collapses; steps of the second are seen, saved and not repeated."""

        def looks(source, net, classes, batch):
            said = [e.text for e in seen if hasattr(e, "text")]
            return torch.tensor([4, 3, 2] if any("once more" in t for t in said) else [9, 0, 0])

        monkeypatch.setattr("edgecil.synthesis.training.shown", looks)
        given = toys.task("abd", (3, 2), base, options={"collapse": "retry"})
        sets = toys.sets_of(given, toys.image_set(range(3, 5)))

        def run(stop_at=math.inf, saved=None):
            polls = iter(range(1000))
            session = toys.session(
                folder=tmp_path, listener=seen.append, poll_seconds=0.0,
                should_stop=lambda: next(polls) + 1 >= stop_at,
            )  # fmt: skip
            return increment.train(given, sets, session, saved=saved)

        seen = []
        whole = run()
        names = {PhaseStarted: "name", Progress: "phase"}
        events = [(getattr(e, names[type(e)]), e.step) for e in seen if type(e) in names]
        dreamed = [step for name, step in events if name == "synthesis"]
        assert dreamed == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
        seen = []
        with pytest.raises(Interrupted):
            run(stop_at=5)  # four steps are polled three times
        saved = state.load(tmp_path)
        assert (saved.phase, saved.attempt, saved.step) == (0, 2, 2)
        seen.clear()
        seen.append(Note("once more"))
        resumed = run(saved=saved)
        assert toys.equal(resumed.model.net, whole.model.net)
        first = next(e for e in seen if isinstance(e, PhaseStarted))
        assert (first.name, first.step) == ("synthesis", 2)


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({}, 1e-3), ({"source": "pixels"}, 0.05), ({"source": "pixels", "synthesis_lr": 0.2}, 0.2),
        ({"synthesis_lr": 0.01}, 0.01),
    ],
)  # fmt: skip
def test_the_learning_rate_is_that_of_the_source_unless_it_is_given(options, rate):
    setup = increment.Setup(Classes((3, 2)), toys.TRAINING, {"new": 12, "kept": 0})
    for method in METHODS:
        assert registry.build(method, options).phases(setup)[0].training.optim.lr == rate
    recorded = registry.build("mfgr", options).phases(setup)[0].training.optim.lr
    assert recorded == options.get("synthesis_lr", 0.01), "MFGR has its own"


@pytest.mark.parametrize("method", [*METHODS, "mfgr"])
def test_pixels_are_all_optimised_and_learned_from(method, base):
    options = {"source": "pixels", "synthesis_steps": 3, "collapse": "accept"}
    ctx, phases, session = second(method, options, base=base)
    before = [part.detach().clone() for part in ctx.modules[SOURCE].parts]
    assert len(before) == 8 and phases[0].steps == 8 * 3
    PhaseRun(ctx, phases[0], 0, session).run()
    for old, new in zip(before, ctx.modules[SOURCE].parts, strict=True):
        assert (new != old).any(dim=(1, 2, 3)).all()
    head = ctx.net.head.weight.detach().clone()
    PhaseRun(ctx, phases[1], 1, session).step(0)
    assert (ctx.net.head.weight[:5] != head[:5]).all(dim=1).all()


class TestTerms:
    """The baselines' losses, written out in float64."""

    def compared(self, method, base, options, reference):
        """Compare the terms of a step, on images and outputs of the step itself."""
        ctx, phases, session = second(method, options, base=base)
        run, seen, taught = PhaseRun(ctx, phases[1], 1, session), [], []
        batch = run._batch(0)
        ctx.net.register_forward_hook(lambda m, a, outputs: seen.append(outputs.logits))
        ctx.teachers["previous"].register_forward_hook(
            lambda m, images, outputs: taught.append((images[0], outputs.logits))
        )
        with torch.no_grad():  # student and teacher must differ, or a swap would not show
            ctx.net.head.weight.add_(0.3 * torch.randn_like(ctx.net.head.weight))
        terms = phases[1].step(ctx, batch)
        n = len(batch.labels)
        assert torch.equal(taught[0][0][:n], batch.images) and len(seen) == len(taught) == 1
        wanted = reference(seen[0].detach().double(), taught[0][1].double()[:, :3], batch.labels)
        assert terms.keys() == wanted.keys()
        for name, (weight, value) in wanted.items():
            assert terms[name].weight == weight, name
            assert terms[name].value.item() == pytest.approx(float(value), rel=1e-5), name

    @staticmethod
    def kd(teacher, student, heat):
        """Return the mean over images of -sum p log q."""
        total = 0.0
        for t, s in zip(rows(teacher / heat), rows(student / heat), strict=True):
            padded = [math.exp(v) for v in log_softmax(t)] + [0.0] * (len(s) - len(t))
            total -= sum(p * q for p, q in zip(padded, log_softmax(s), strict=True))
        return total / len(teacher)

    @staticmethod
    def ce(logits, labels):
        chosen = [log_softmax(r)[y] for r, y in zip(rows(logits), labels.tolist(), strict=True)]
        return -sum(chosen) / len(chosen)

    @pytest.mark.parametrize("units", ["seen", "old"])
    def test_deepinversion(self, base, units):
        """ABD eqs. (8) and (9): a teacher that is padded by zeros; the code's on real images."""

        def reference(z, taught, labels):
            n, real = len(labels), slice(0, 5 if units == "seen" else 3)
            return {
                "classification": (1.0, self.ce(z[:n, :5], labels)),
                "distillation, real": (0.7, self.kd(taught[:n], z[:n, real], 3.0)),
                "distillation, synthetic": (0.7, self.kd(taught[n:], z[n:, :5], 3.0)),
            }

        options = {"real_units": units, "temperature": 3.0, "kd_weight": 0.7}
        self.compared("deepinversion", base, options, reference)

    @pytest.mark.parametrize("units", ["seen", "all"])
    def test_the_softmax_of_abd_over_seen_units_or_all_of_a_wide_head(self, units, tmp_path):
        """Eq. (14) and the base increment; the released code has 100 units from the start."""
        training = dataclasses.replace(toys.TRAINING, epochs=8)
        (wide,) = toys.learn("finetune", (3,), tmp_path, width=10, training=training)
        options, first = {"units": units}, toys.image_set(range(3))
        given = toys.task("abd", (3,), options=options, width=10)
        session = toys.session()
        ctx, phases = begin(given, toys.sets_of(given, first), session)
        batch = PhaseRun(ctx, phases[0], 0, session)._batch(0)
        found = phases[0].step(ctx, batch)["classification"].value.item()
        ctx.net.train()
        logits = ctx.net(batch.images).logits
        width = 10 if units == "all" else 3
        assert found == pytest.approx(self.ce(logits[:, :width], batch.labels), rel=1e-5)

        ctx, phases, session = second("abd", options, base=wide.model, width=10)
        run, seen, taught = PhaseRun(ctx, phases[1], 1, session), [], []
        with torch.no_grad():  # units that no class has yet must count
            ctx.net.head.bias[5:] += 1.0
        batch, n = run._batch(0), 16
        ctx.net.register_forward_hook(lambda m, a, outputs: seen.append(outputs.logits))
        ctx.teachers["previous"].register_forward_hook(
            lambda m, a, outputs: taught.append(outputs.logits)
        )
        terms = phases[1].step(ctx, batch)
        labels = [*batch.labels.tolist(), *taught[0][n:, :3].argmax(dim=1).tolist()]
        width = 10 if units == "all" else 5
        losses = [
            -log_softmax(row[:width])[y] * (3 / 5 if y < 3 else 2 / 5)
            for row, y in zip(rows(seen[0]), labels, strict=True)
        ]
        assert len(losses) == 32
        assert terms["fine-tuning"].value.item() == pytest.approx(sum(losses) / 32, rel=1e-5)
        local = self.ce(seen[0][:n, 3:5], batch.labels - 3)
        assert terms["classification"].value.item() == pytest.approx(local, rel=1e-5)

    @pytest.mark.parametrize("scope", ["new", "seen"])
    def test_lwf_synthetic(self, base, scope):
        """LwF's KD_T over the old units, on new and synthetic images alike."""

        def reference(z, taught, labels):
            n, first = len(labels), 3 if scope == "new" else 0
            return {
                "classification": (1.0, self.ce(z[:n, first:5], labels - first)),
                "distillation": (0.7, self.kd(taught, z[:, :3], 3.0)),
            }

        options = {"ce_scope": scope, "temperature": 3.0, "kd_weight": 0.7}
        self.compared("lwf-synthetic", base, options, reference)


class TestBadInput:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_base_without_statistics_is_refused_before_training(self, method, base):
        bare = dataclasses.replace(base, net=copy.deepcopy(base.net))
        for module in bare.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        with pytest.raises(AdoptError, match="untrained"):
            second(method, base=bare)

    def test_images_of_which_nothing_is_asked_are_refused(self):
        with pytest.raises(UsageError, match="nothing is asked"):
            registry.build("abd", {"content": 0, "statistics": 0, "prior": 0})

    def test_a_warm_start_of_pixels_is_refused(self):
        with pytest.raises(UsageError, match="source=pixels"):
            registry.build("abd", {"warm_start": True, "source": "pixels"})

    def test_a_loss_that_is_not_a_number_ends_the_phase(self, base):
        ctx, phases, session = second("abd", base=base)
        nn.init.constant_(ctx.modules[SOURCE].linear.bias, float("nan"))
        with pytest.raises(TrainingError, match="phase 'synthesis'"):
            PhaseRun(ctx, phases[0], 0, session).run()


class TestSizes:
    def test_five_images_and_more_classes_than_a_batch(self, tmp_path):
        training = dataclasses.replace(toys.TRAINING, batch_size=5, epochs=1)
        for method in METHODS:
            outcome = toys.learn(method, (9, 2), tmp_path / method, count=2, training=training)
            assert outcome[-1].model.net.classes == 11

    def test_one_old_class_has_no_diversity_and_that_is_said(self, tmp_path):
        (outcome,) = toys.learn("finetune", (1,), tmp_path)
        ctx, phases, session = second("abd", groups=(1, 2), base=outcome.model)
        said = []
        ctx.note = said.append
        terms = phases[0].step(ctx, None)
        assert "diversity" not in terms and "one old class" in said[0]
        PhaseRun(ctx, phases[0], 0, session).run()
        assert not phases[0].again(ctx, 1)  # one class is no collapse

    @pytest.mark.parametrize("size", [64, 224])
    def test_larger_images(self, size, base):
        preprocess = Preprocess(size, size, CIFAR.mean, CIFAR.std)
        training = dataclasses.replace(toys.TRAINING, batch_size=2)
        ctx, phases, session = second("abd", base=base, preprocess=preprocess, training=training)
        PhaseRun(ctx, phases[0], 0, session).step(0)
        images = draw(ctx, 2)
        assert images.shape == (2, 3, size, size) and torch.isfinite(images).all()


class TestWarmStart:
    def test_by_default_nothing_is_kept(self, tmp_path):
        for method in METHODS:
            assert registry.build(method).fields == ()

    def test_a_kept_generator_counts_and_is_gone_on_from(self, tmp_path):
        outcomes = toys.learn("abd", (2, 1), tmp_path, options={"warm_start": True})
        for number, outcome in enumerate(outcomes, start=1):
            kept = outcome.model.kept
            assert kept.report().kept_bytes == len(kept.encode()) > 8_423_939 * 4
            sizes = dimensions(NetSpec("resnet8"), (2, 1)[:number], toys.SIDE)
            assert plan(kept.fields, sizes).kept_bytes == kept.report().kept_bytes
        stored = outcomes[-1].model.kept.read(SOURCE)
        options = {"warm_start": True}
        ctx, _, _ = second("abd", options, groups=(3, 1), base=outcomes[-1].model)
        for name, value in ctx.modules[SOURCE].state_dict().items():
            if name in stored:
                assert torch.equal(value, torch.from_numpy(stored[name])), name
        fresh, _, _ = second("abd", groups=(3, 1), base=outcomes[-1].model)
        name = "linear.weight"
        assert not torch.equal(
            fresh.modules[SOURCE].state_dict()[name], torch.from_numpy(stored[name])
        )
