"""Side classifiers: what they learn, teach and keep, and where the other images come from."""

import itertools
import math
import shutil

import numpy as np
import pytest
import small_runs
import torch
import toys
from small_runs import learn

from edgecil import registry
from edgecil.context import Classes, Setup
from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun
from edgecil.errors import AdoptError, DataError, Interrupted, UsageError, WorkspaceError
from edgecil.parts import sides
from edgecil.parts.importance import sensitivity
from edgecil.workspace import Workspace


def context(method, sizes, folder, **changes):
    """Return the context at the start of the last of several increments."""
    *before, _ = sizes
    previous = toys.learn(method, tuple(before), folder, **changes)[-1].model if before else None
    given = toys.task(method, sizes, previous, **changes)
    new = toys.image_set(range(sum(before), sum(sizes)))
    session = toys.session()
    ctx, phases = begin(given, toys.sets_of(given, new), session)
    return ctx, phases, session


def test_disagreement_equals_a_loop_over_pairs():
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (3, 7, 4))
    shares = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    pairs = itertools.combinations(range(3), 2)
    wanted = sum(
        np.mean([np.abs(shares[i, n] - shares[j, n]).mean() for n in range(7)]) for i, j in pairs
    )
    assert float(sides.disagreement(torch.tensor(logits))) == pytest.approx(wanted, rel=1e-6)
    assert float(sides.disagreement(torch.zeros(3, 2, 4))) == 0


def test_side_classifiers_learn_and_disagree_elsewhere_and_the_network_stays(tmp_path):
    found = {}
    for weight in (0.0, 1.0):
        training = toys.TRAINING.updated(epochs=20)
        ctx, phases, session = context(
            "lwf+muc", (3,), tmp_path, training=training,
            options={"disagreement": weight, "side_epochs": 1.0},
        )  # fmt: skip
        assert [p.name for p in phases] == ["train", "side classifiers"]
        PhaseRun(ctx, phases[0], 0, session).run()
        before = {k: v.clone() for k, v in ctx.net.state_dict().items()}
        PhaseRun(ctx, phases[1], 1, session).run()
        assert all(torch.equal(v, before[k]) for k, v in ctx.net.state_dict().items())
        own = ctx.modules[sides.NEW]
        with torch.no_grad():
            said = own(ctx.features(ctx.sets["new"]))
            apart = sides.disagreement(own(ctx.features(ctx.sets["ood"])))
        right = (said.argmax(2) == ctx.sets["new"].labels).float().mean(1)
        assert right.min() > 0.8
        found[weight] = float(apart)
    assert found[1.0] > 5 * found[0.0]


def test_what_the_old_side_classifiers_said_is_distilled_with_the_hosts_weight(tmp_path):
    options = {"kd_weight": 3.0, "side_weight": 0.5, "temperature": 5.0}
    ctx, phases, session = context("lwf+muc", (3, 2), tmp_path, options=options)
    with torch.no_grad():
        for parameter in ctx.net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = PhaseRun(ctx, phases[0], 0, session)._batch(0)
    terms = phases[0].step(ctx, batch)
    term = terms["side distillation"]
    assert term.weight == 1.5
    weight, bias = (torch.from_numpy(ctx.kept.read(f"sides.{p}")) for p in ("weight", "bias"))
    assert weight.shape == (3, 3, 64)
    with torch.no_grad():
        features = [net(batch.images).features for net in (ctx.teachers["previous"], ctx.net)]
        total = 0.0
        for rows, constant in zip(weight, bias, strict=True):
            old, new = (f.double() @ rows.double().T + constant.double() for f in features)
            total += -(torch.softmax(old / 5, 1) * torch.log_softmax(new / 5, 1)).sum(1).mean()
    assert float(term.value.detach()) == pytest.approx(float(total) / 3, rel=1e-4)


def test_the_preset_weighs_by_classes_and_trains_as_the_published_code():
    assert "muc" not in registry.presets("lwf")
    assert {p for p in registry.presets("lwf+muc") if p.startswith("muc")} == {"muc"}
    assert {p for p in registry.presets("mas+muc") if p.startswith("muc")} == {"muc-mas"}
    preset = registry.presets("lwf+muc")["muc"]
    recipe = registry.build("lwf+muc", preset.options)
    main, side = recipe.phases(Setup(Classes((20, 20)), preset.training, {"new": 1, "kept": 0}))
    assert main.step.args[0].args[0].balance
    schedule = main.training.optim.schedule
    assert [round(200 * m) for m in schedule.milestones] == [120, 160, 180]
    assert (main.training.optim.lr, main.training.optim.weight_decay) == (0.1, 5e-4)
    epochs = side.training.epochs_for(10_000, side.part)
    milestones = side.training.optim.schedule.milestones
    assert [epochs, *(round(epochs * m) for m in milestones)] == [80, 40, 60, 70]


def test_the_preset_over_mas_penalises_as_the_published_code(tmp_path):
    """alpha times the change of the mean squared logit, where here it is their sum."""
    preset = registry.presets("mas+muc")["muc-mas"]
    ctx, _, _ = context("mas+muc", (20,), tmp_path)

    def published(outputs):
        return outputs.logits[:, :20] / math.sqrt(20)

    theirs, ours = (sensitivity(ctx, toys.image_set(range(2), 3), f) for f in (published, None))
    for name, value in theirs.items():
        mine = preset.options["strength"] * ours[name]
        assert torch.allclose(0.01 * value, mine, rtol=1e-3, atol=1e-9), name


def test_ranks_draw_other_images_as_one_process_does(tmp_path):
    ctx, _, _ = context("lwf+muc", (3,), tmp_path)
    whole = sides.elsewhere(ctx, 7)
    ctx.offset = 4
    assert torch.equal(sides.elsewhere(ctx, 3), whole[4:])


def test_kept_is_one_row_per_side_class_and_feature_of_the_last_increment(tmp_path):
    for outcome, count in zip(toys.learn("lwf+muc", (3, 2), tmp_path), (3, 2), strict=True):
        rows = {f["name"]: f["bytes"] for f in outcome.model.kept.report().fields()}
        assert rows["sides.weight"] + rows["sides.bias"] == 4 * 3 * count * (64 + 1)
        assert outcome.model.rule.kind == "argmax"


def test_over_mas_the_side_classifiers_add_their_mean_sensitivity(tmp_path):
    """Against the sum of both importances, measured anew with the network that was learned."""
    ctx, phases, session = context("mas+muc", (3,), tmp_path)
    for number, phase in enumerate(phases):
        PhaseRun(ctx, phase, number, session).run()
    ctx.net.eval().requires_grad_(False)
    registry.build("mas+muc").end(ctx)
    kept = ctx.keeps.read("sensitivity")
    mine = sensitivity(ctx, ctx.sets["new"])
    own = ctx.modules[sides.NEW]
    each = [
        sensitivity(ctx, ctx.sets["new"], lambda out, n=n: own(out.features)[n])
        for n in range(3)
    ]  # fmt: skip
    assert sum(float(v.sum()) for v in each[0].values()) > 0
    for name, value in mine.items():
        wanted = value + 1.4 * (each[0][name] + each[1][name] + each[2][name]) / 3
        assert np.allclose(kept[f"backbone.{name}"], wanted, rtol=1e-4, atol=1e-7), name


def test_an_increment_of_one_class_has_no_side_classifiers(tmp_path):
    names = [p.name for p in context("lwf+muc", (3, 1), tmp_path / "a")[1]]
    assert names == ["train"]
    _, phases, _ = context("lwf+muc", (3, 1, 2), tmp_path / "b")
    assert [p.name for p in phases] == ["train", "side classifiers"]
    assert phases[0].trains == ("backbone", "head")  # the last increment left nothing to teach


@pytest.mark.parametrize("host", ["icarl", "ewc", "lwf-mc", "finetune"])
def test_other_hosts_are_refused(host):
    with pytest.raises(UsageError, match=f"cannot be laid over {host}") as caught:
        registry.build(f"{host}+muc")
    assert "lwf+muc" in caught.value.hint


class TestFolder:
    """The folder of other images, from the command's arguments to the resumed run."""

    @pytest.fixture
    def folder(self, tmp_path):
        return toys.write_folder(tmp_path / "new", range(2), count=6)

    @pytest.fixture
    def other(self, tmp_path):
        return toys.write_folder(tmp_path / "other", range(8, 10), count=3)

    @pytest.fixture
    def root(self, tmp_path):
        return tmp_path / ".edgecil"

    def refused(self, root, folder, monkeypatch, ood=None):
        monkeypatch.setattr("edgecil.engine.increment.train", lambda *a, **b: pytest.fail())
        options = {} if ood is None else {"ood": str(ood)}
        with pytest.raises((UsageError, DataError)) as caught:
            learn(folder, root, method="lwf+muc", options=options)
        assert not Workspace(root).exists()
        return f"{caught.value.message} {caught.value.hint}"

    def test_none_given(self, root, folder, monkeypatch):
        said = self.refused(root, folder, monkeypatch)
        assert "lwf+muc needs a folder" in said and "--set ood=DIR" in said

    def test_not_there_or_empty(self, root, folder, tmp_path, monkeypatch):
        assert "no such folder" in self.refused(root, folder, monkeypatch, tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        assert "no image" in self.refused(root, folder, monkeypatch, tmp_path / "empty")

    def test_a_class_in_it_by_name(self, root, folder, other, monkeypatch):
        (other / "class-8").rename(other / "Class-1")
        assert "Class-1/ is one of the classes" in self.refused(root, folder, monkeypatch, other)

    def test_a_class_itself(self, root, folder, other, monkeypatch):
        (other / "class-8").rename(other / "CLASS-0")
        said = self.refused(root, folder, monkeypatch, other / "CLASS-0")
        assert "CLASS-0/ is one of the classes" in said
        monkeypatch.chdir(other / "CLASS-0")
        assert "CLASS-0/ is one" in self.refused(root, folder, monkeypatch, ".")

    def test_the_new_images_themselves(self, root, folder, other, monkeypatch):
        shutil.copy(folder / "class-0" / "003.png", other / "class-9" / "picture.png")
        said = self.refused(root, folder, monkeypatch, other)
        assert "picture.png is the same file" in said and "003.png" in said

    def test_a_damaged_image(self, root, folder, other, monkeypatch):
        (other / "class-9" / "000.png").write_bytes(b"")
        assert "000.png" in self.refused(root, folder, monkeypatch, other)

    @pytest.mark.parametrize("method", ["lwf+muc", "mas+muc"])
    def test_it_is_found_from_elsewhere_and_inherited(
        self, method, root, folder, other, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        (other / "loose.png").write_bytes((other / "class-8" / "000.png").read_bytes())
        learn(folder, root, method=method, options={"ood": "other"})
        monkeypatch.chdir("/")
        more = toys.write_folder(tmp_path / "more", range(2, 4), count=6)
        result = learn(more, root)
        assert result.manifest.options["ood"] == str(other)
        assert result.manifest.groups == (2, 2)

    def test_a_class_that_was_learned_before(self, root, folder, other, tmp_path):
        learn(folder, root, method="lwf+muc", options={"ood": str(other)})
        (other / "class-8").rename(other / "class-1")
        more = toys.write_folder(tmp_path / "more", range(2, 4), count=6)
        with pytest.raises(DataError, match="class-1/ is one of the classes"):
            learn(more, root)

    def test_without_side_classifiers_of_the_old_classes_it_cannot_continue(
        self, root, folder, other, tmp_path
    ):
        learn(folder, root, method="lwf")
        more = toys.write_folder(tmp_path / "more", range(2, 4), count=6)
        with pytest.raises(AdoptError, match=r"sides\.weight"):
            learn(more, root, method="lwf+muc", options={"ood": str(other)})

    def test_a_resumed_run_wants_the_same_images(self, root, folder, other, tmp_path):
        calls = itertools.count()
        settings = {"method": "lwf+muc", "options": {"ood": str(other)}, "epochs": 3}
        whole = small_runs.copied(root, tmp_path / "whole") if root.exists() else tmp_path / "whole"
        learn(folder, whole, **settings)
        with pytest.MonkeyPatch.context() as patch:
            start = small_runs.loop.Session.__init__
            patch.setattr(small_runs.loop.Session, "__init__", small_runs.looking_often(start))
            with pytest.raises(Interrupted):
                learn(folder, root, should_stop=lambda: next(calls) > 0, **settings)
        extra = other / "class-9" / "extra.png"
        shutil.copy(other / "class-8" / "001.png", extra)
        with pytest.raises(WorkspaceError, match="images of ood changed"):
            small_runs.api.learn(workspace=root, resume=True)
        extra.unlink()
        small_runs.api.learn(workspace=root, resume=True)
        assert small_runs.equal(small_runs.weights(root), small_runs.weights(whole))
