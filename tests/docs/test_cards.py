"""The cards of the methods: complete, and made from what the sources say today."""

from pathlib import Path

import pytest

from edgecil import registry
from edgecil.cards import card
from edgecil.reporting import cards

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def document():
    return cards.document(ROOT / "docs" / "results")


def test_the_committed_document_is_up_to_date(document):
    committed = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    if committed != document:
        pytest.fail("docs/methods.md is not what the sources say: run `make docs` and commit it")


def test_every_method_has_a_section_with_its_options_and_presets(document):
    sections = {part.partition("`")[0]: part for part in document.split("\n## `")[1:]}
    ours = {n: i for n, i in registry.methods().items() if i.module.startswith("edgecil.")}
    assert set(sections) == set(ours)
    for name, info in ours.items():
        assert info.summary in sections[name]
        if info.kind == "method":
            found = card(name)
            for row in (*(o["name"] for o in found.options), *found.presets):
                assert f"\n| `{row}` |" in sections[name], f"{name}: {row}"


def test_what_is_planned_and_measured_is_shown(document):
    sections = {part.partition("`")[0]: part for part in document.split("\n## `")[1:]}
    assert "| keeps between increments | nothing |" in sections["lwm"]
    assert "`fisher`, 1.85 MB" in sections["ewc"]
    assert "| outputs | sigmoid or softmax |" in sections["lwm"]
    assert "(results/quick-mirrored) | `m2kd:pruning=0` |" in sections["m2kd"]
    assert "Learning without Memorizing, CVPR 2019" in sections["lwm"]
    assert "`lwf-mc+mmd`" in sections["mmd"]


def test_a_plug_in_shows_its_own_options_alone(document):
    section = document.partition("\n## `mmd`")[2].partition("\n## `")[0]
    assert "| `skip` |" in section and "| `reduction` |" not in section
    muc = document.partition("\n## `muc`")[2].partition("\n## `")[0]
    assert "| `muc` | 200 epochs" in muc and "| `abd` |" not in muc
    assert "Multi-model distillation: old classes" in section and "LwF-MC: one" not in section
