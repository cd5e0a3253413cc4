"""The structure of the code: no import cycles, no imports from the framework upwards, no data set by name.

Imports inside functions and behind ``TYPE_CHECKING`` count. A command in ``reasonbrain/cli`` may import from any
folder.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("reasonbrain", "modules", "train", "eval")  # the last three are installed as reasonbrain.modules, ...
UPPER = tuple(f"reasonbrain.{folder}" for folder in FOLDERS[1:])


def module_name(path, root=ROOT):
    parts = path.relative_to(root).with_suffix("").parts
    parts = parts if parts[0] == "reasonbrain" else ("reasonbrain", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(root=ROOT):
    """Module name -> syntax tree of every source file."""
    paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    return {module_name(path, root): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def imported(tree, modules):
    """The modules of this package that a file imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import in line {node.lineno}"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else str(node.module) for name in names}
    return found & set(modules)


def graph(trees):
    return {name: imported(tree, trees) - {name} for name, tree in trees.items()}


def without_lazy_public_name(edges):
    """``from reasonbrain import ReasonBrainPipeline`` is resolved lazily; the package itself imports nothing."""
    return {name: set() if name == "reasonbrain" else targets for name, targets in edges.items()}


def circle(edges):
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as e:
        return " -> ".join(e.args[1])
    return None


def upward(edges):
    return [
        f"{name} -> {target}"
        for name, targets in edges.items()
        for target in targets
        if not name.startswith((*UPPER, "reasonbrain.cli")) and target.startswith(UPPER)
    ]


def names_a_data_set(trees):
    """Strings in the framework, train or eval that are the name of a data set."""
    return [
        f"{name}:{node.lineno}"
        for name, tree in trees.items()
        if not name.startswith(("reasonbrain.modules", "reasonbrain.train.tiny", "reasonbrain.cli"))
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in ("mini", "reasonmini")
    ]


def imports_a_data_set(edges):
    return [
        f"{name} -> {target}"
        for name, targets in edges.items()
        for target in targets
        if not name.startswith(("reasonbrain.modules", "reasonbrain.train.tiny", "reasonbrain.cli"))
        and target.startswith("reasonbrain.modules.data")
    ]


def test_no_import_cycle():
    assert circle(without_lazy_public_name(graph(sources()))) is None


def test_the_framework_imports_nothing_above_it():
    assert upward(graph(sources())) == []


def test_no_data_set_by_name_outside_its_folder():
    trees = sources()
    assert names_a_data_set(trees) == []
    assert imports_a_data_set(graph(trees)) == []


@pytest.mark.parametrize(
    ("file", "planted", "check"),
    [
        ("reasonbrain/errors.py", "from reasonbrain.model import ReasonBrain", lambda trees: circle(graph(trees))),
        (
            "reasonbrain/errors.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from reasonbrain.registry import plugin",
            lambda trees: circle(graph(trees)),
        ),
        ("reasonbrain/model.py", "from reasonbrain.train.loop import Loop", lambda trees: upward(graph(trees))),
        ("train/loop.py", "if name == 'mini':\n    pass", names_a_data_set),
        (
            "train/loop.py",
            "from reasonbrain.modules.data.reasonmini import make",
            lambda trees: imports_a_data_set(graph(trees)),
        ),
    ],
)
def test_a_planted_fault_is_detected(file, planted, check):
    trees = sources()
    name = module_name(ROOT / file)
    trees[name] = ast.parse((ROOT / file).read_text(encoding="utf-8") + "\n" + planted)
    assert check(trees)
