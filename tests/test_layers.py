"""The layers of the package, and its public surface."""

import ast
import inspect
from pathlib import Path

import workbench

PACKAGE = Path(workbench.__file__).parent
ORDER = (
    "errors files resources sites graph results statistics models tasks stores backends engine methods discovery sweeps render outputs study studied studied_pages tables judging probing run_pages sweep_pages course cli_options cli_store cli_runs cli_sweep cli_course cli"
).split()
INSIDE = {
    "tasks": (
        "grammar ioi induction greater_than agreement pronoun capitals binding pairs planted metrics continuations "
        "speakers registry measure corpus concepts"
    ).split(),
    "models": "zoo load planted_blueprint planted_recipes planted".split(),
    "engine": (
        "reference edits continued run build capture mixing given decoder families cohorts unedited staircase readout reference_sweep "
        "sweep nodes hops path_sweep hooked_paths plan parts circuit_run circuit_walk circuits slopes edge_gradients "
        "gradient_runs atp_star"
    ).split(),
    "methods": (
        "read_out lens tuned_lens direct_attribution summaries gradients effects paths explain labels probe_solver probe_data probe_fits probe_selectors probe_metrics "
        "probe_baselines probe_controls probe_tables probes neuron_maps probe_causes"
    ).split(),
    "discovery": (
        "components circuit compare formats reference contexts scores ground_truth random_circuits search masks acdc methods checks "
        "evaluation curves hypothesis_tests bench behaviours"
    ).split(),
    "course": "lessons exercises bench first_look residual_stream attribution ablations heads patching paths discovery reality probes training capstone running".split(),
    "sweeps": "spec log by_site places jobs execute pool rows contrasts table runner".split(),
    "stores": "format index store plan disk".split(),
    "render": "view svg export html panel_svg panel panels canvas grids line_plots circuit_plots probe_plots sweep_plots plots report".split(),
}


def imports(path: Path, *, top_level: bool = False) -> list[str]:
    """The modules of this package that a file imports, lazily or not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else ast.walk(tree)
    names = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "workbench":
            names += [node.module] if node.module != "workbench" else [f"workbench.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.split(".")[0] == "workbench"]
    return names


def modules() -> list[tuple[str, Path]]:
    return [
        (".".join(path.relative_to(PACKAGE).with_suffix("").parts), path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py" and "_data" not in path.parts and "_circuits" not in path.parts
    ]


def test_every_module_imports_only_from_layers_above_it():
    wrong = []
    for name, path in modules():
        layer = name.split(".")[0]
        assert layer in ORDER, f"{name} is in no layer"
        for imported in imports(path):
            parts = imported.split(".")[1:]
            if not parts or name.startswith("cli"):
                continue
            if name in ("discovery.circuit", "render.view") and imported == "workbench.render.circuit.html":
                continue  # they draw themselves in a notebook
            above = ORDER.index(parts[0]) <= ORDER.index(layer)
            if above and parts[0] == layer and len(parts) > 1 and layer in INSIDE:
                inner = name.split(".")[1]
                within = parts[1] == inner and name.count(".") > 1  # one module of a folder uses another
                above = within or INSIDE[layer].index(parts[1]) < INSIDE[layer].index(inner)
            if not above:
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_only_models_load_imports_transformer_lens():
    users = [
        name for name, path in modules() if "transformer_lens" in path.read_text(encoding="utf-8").replace("transformer-lens", "")
    ]
    assert [name for name in users if "import" in name or name == "models.load"] == ["models.load"]
    for name, path in modules():
        if name != "models.load":
            assert "from transformer_lens" not in path.read_text(encoding="utf-8"), name


def test_only_the_reference_engine_installs_hooks():
    users = [name for name, path in modules() if "run_with_hooks" in path.read_text(encoding="utf-8")]
    assert users == ["engine.reference"]


def test_no_file_is_too_long_to_read_and_none_is_a_drawer():
    for name, path in modules():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, name
        assert name.split(".")[-1] not in ("utils", "misc", "common", "helpers"), name


def test_the_public_names_are_sorted_exported_and_documented():
    assert workbench.__all__ == sorted(workbench.__all__)
    for name in workbench.__all__:
        thing = getattr(workbench, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert inspect.getdoc(thing), name
