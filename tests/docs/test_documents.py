"""What the documents say is true: commands exist, code runs, links lead somewhere."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import toys
import typer

from edgecil import registry
from edgecil.bench import paired, results
from edgecil.engine import increment
from edgecil_cli.app import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def code(path, language=""):
    """Return the code blocks of a document in a language."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def commands():
    """Yield every ``edgecil`` command line in the documents."""
    for path in DOCUMENTS:
        text = path.read_text()
        blocks = [line for block in code(path) for line in block.splitlines()]
        inline = re.findall(r"`(edgecil [^`]+)`", text)
        for line in [*blocks, *inline]:
            if line.startswith("edgecil "):
                yield pytest.param(line.partition("#")[0].strip(), id=f"{path.name}: {line[:60]}")


@pytest.mark.parametrize("line", list(commands()))
def test_every_command_and_option_exists(line):
    known = typer.main.get_command(app).commands
    words = shlex.split(line)[1:]
    if words[0].startswith("-"):
        return
    assert words[0] in known
    options = {name for p in known[words[0]].params for name in (*p.opts, *p.secondary_opts)}
    used = {w.partition("=")[0] for w in words[1:] if w.startswith("--")}
    assert used <= options


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_inside_the_repository_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_methods_of_the_readme_are_the_methods_there_are():
    text = (ROOT / "README.md").read_text()
    text = text[text.index("## Methods") : text.index("## What is kept")]
    named = re.findall(r"^\| `([a-z0-9-]+)` \|", text, flags=re.MULTILINE)
    assert sorted(named) == sorted(registry.methods())


@pytest.mark.parametrize("folder", ["quick", "quick-mirrored"])
def test_the_tables_of_the_readme_are_made_from_the_results(folder):
    found = results.load(ROOT / "docs" / "results" / folder)
    assert results.markdown(found) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("folder", ["quick-codecs", "quick-exemplars", "quick-short"])
def test_the_tables_of_exemplars_are_made_from_the_results(folder):
    found = results.load(ROOT / "docs" / "results" / folder)
    assert results.markdown(found) in (ROOT / "docs" / "exemplars.md").read_text()


def test_omega_of_the_readme_is_relative_to_the_row_that_it_names():
    name = results.oracle(results.load(ROOT / "docs" / "results" / "quick"))
    assert f"Ω is relative to `{name}`, which" in (ROOT / "README.md").read_text()


def test_the_paired_differences_of_the_readme_are_those_of_the_command():
    found = results.load(ROOT / "docs" / "results" / "quick-mirrored")
    (pruned,) = paired.differences(found, "m2kd:pruning=0")
    text = " ".join((ROOT / "README.md").read_text().split())
    words = (("classes by", pruned.final, "points"), ("average by", pruned.average, "(95 %"))
    for before, of, after in words:
        assert f"{before} {100 * of.mean:.1f} ± {100 * of.margin:.1f} {after}" in text


@pytest.mark.parametrize(("above", "below"), [("lwm", "lwf-mc"), ("lwf-mc", "lwf")])
def test_the_margins_of_lwm_in_the_readme_are_those_of_the_command(above, below):
    found = results.load(ROOT / "docs" / "results" / "quick")
    (margin,) = (d for d in paired.differences(found, below) if d.name == above)
    final, average = (
        f"{100 * of.mean:.1f} ± {100 * of.margin:.1f}" for of in (margin.final, margin.average)
    )
    text = " ".join((ROOT / "README.md").read_text().split())
    assert re.search(f"`{above}` (is )?{final} and {average} (points )?above `{below}`", text)


def test_the_method_of_the_guide_learns(tmp_path, monkeypatch):
    (text,) = code(ROOT / "docs" / "adding-a-method.md", "python")
    (tmp_path / "sketch.py").write_text(text)
    spec = importlib.util.spec_from_file_location("sketch", tmp_path / "sketch.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sketch", module)
    spec.loader.exec_module(module)
    given = toys.task("finetune", (3,))
    given = given.__class__(**{**vars(given), "recipe": module.recipe(module.Options())})
    new = toys.image_set(range(3))
    outcome = increment.train(given, toys.sets_of(given, new), toys.session())
    assert outcome.model.net.classes == 3
