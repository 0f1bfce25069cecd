"""The order of the folders, and the public surface. The order is the one of docs/architecture.md's list, top to bottom."""

import ast
import functools
import inspect
from pathlib import Path

import networkx as nx

import workbench

PACKAGE = Path(workbench.__file__).parent
FOLDERS = (
    "errors names finite text arguments files documents checksums netcdf resources kinds nodes sites results "  # single modules
    "statistics backends cache progress "
    "models prompts metrics planted_models tasks stores circuit engine experiment "
    "interventions lenses probes discovery evaluation sweeps render workflows studies course cli"
).split()
# Circuits draw themselves in a notebook, and results by `result.wb`, by an import inside a method.
DRAWS_ITSELF = (
    ("circuit.circuit", "render.circuit.html"),
    ("results", "render.cards.card"),
    ("workflows.discovery_run", "workflows.verdict"),
)


def modules() -> dict[str, Path]:
    """Dotted name below `workbench` -> file, without what a wheel bundles."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if not {"_data", "_circuits"} & set(parts):
            found[".".join(part for part in parts if part != "__init__")] = path
    del found[""]
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, at its top or inside a function, below `workbench`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "workbench":
            for alias in node.names:
                full = f"{node.module}.{alias.name}".removeprefix("workbench.")
                names.add(full if full in MODULES else (node.module or "").removeprefix("workbench."))
        if isinstance(node, ast.Import):
            names |= {
                alias.name.removeprefix("workbench.")
                for alias in node.names
                if alias.name.startswith("workbench.")
            }
    return names & set(MODULES)


@functools.cache
def imports_of_all() -> dict[str, set[str]]:
    """Module -> what it imports."""
    return {name: imports(path) for name, path in MODULES.items()}


def test_every_folder_is_in_the_list():
    assert {name.split(".")[0] for name in MODULES} == set(FOLDERS)


def test_a_folder_imports_only_from_folders_above_it():
    wrong = [
        f"{name} imports {imported}"
        for name, used in imports_of_all().items()
        for imported in used
        if FOLDERS.index(imported.split(".")[0]) > FOLDERS.index(name.split(".")[0])
        and (name, imported) not in DRAWS_ITSELF
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    graph = nx.DiGraph()
    for name, used in imports_of_all().items():
        graph.add_edges_from((name, imported) for imported in used if (name, imported) not in DRAWS_ITSELF)
    assert [sorted(ring) for ring in nx.strongly_connected_components(graph) if len(ring) > 1] == []


def test_only_models_load_imports_transformer_lens():
    users = []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            users += [name for module in modules if module.split(".")[0] == "transformer_lens"]
    assert set(users) == {"models.load"}


def test_only_the_hooked_engine_installs_hooks():
    users = [name for name, path in MODULES.items() if "run_with_hooks" in path.read_text(encoding="utf-8")]
    # The protocol of a model declares the method; only the engine calls it.
    assert users == ["engine.hooked.forward", "models.model"]


def test_no_file_is_too_long_to_read_and_none_is_a_drawer():
    for name, path in MODULES.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, name
        assert name.split(".")[-1] not in ("utils", "misc", "common", "helpers"), name


def test_the_public_names_are_sorted_exported_and_documented():
    assert workbench.__all__ == sorted(workbench.__all__)
    for name in workbench.__all__:
        thing = getattr(workbench, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert inspect.getdoc(thing), name
