"""The layout of the package, held by reading the source: who imports whom, and what no module does."""

import ast
import importlib
import operator
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gengap

ROOT = Path(__file__).parents[1]
MODULES = {path.stem: path for path in sorted((ROOT / "gengap").glob("*.py")) if path.stem != "__init__"}
EXPERIMENTS = {path.stem: path for path in sorted((ROOT / "experiments").glob("*.py")) if path.stem != "__init__"}
LIB = {path.stem: path for path in sorted((ROOT / "experiments/lib").glob("*.py")) if path.stem != "__init__"}
SOURCES = [ROOT / "gengap" / "__init__.py", *MODULES.values()]

# What each module may import from gengap.
MAY_IMPORT: dict[str, set[str]] = {
    "__main__": {"comparison"},
    "ascent": {"words"},
    "checkpoints": {"hosts", "records"},
    "checks": {"program"},
    "chunks": {"placement", "program"},
    "cluster": {"processes", "progress"},
    "compared": {"flat", "landscape", "plots", "records", "report", "stats", "words"},
    "comparison": {
        "ascent",
        "checks",
        "compared",
        "flat",
        "hessian",
        "measures",
        "notes",
        "origins",
        "program",
        "progress",
        "sharpness",
        "words",
    },
    "data": {"tfds_sets"},
    "flat": {"checks", "placement", "program"},
    "hessian": {"checks", "flat", "lanczos", "program", "progress", "words"},
    "hosts": set(),
    "kernels": set(),
    "lanczos": {"checks", "flat", "program"},
    "landscape": {"checks", "flat", "kernels", "placement", "program", "progress", "words"},
    "measures": {"ascent", "checks", "flat", "hessian", "kernels", "objective", "program", "progress", "words"},
    "memory": {"progress"},
    "metric": {"ascent", "checks", "flat", "program", "subspace", "words"},
    "methods": {"checks", "flat", "train"},
    "minima": {
        "checkpoints",
        "checks",
        "data",
        "flat",
        "methods",
        "models",
        "objective",
        "origins",
        "program",
        "train",
    },
    "models": {"checks", "flat", "objective", "program"},
    "notes": {"words"},
    "objective": {"checks", "chunks", "hosts", "placement", "program"},
    "origins": {"hosts"},
    "paper": set(),
    "placement": {"program"},
    "plots": {"paper", "sheet"},
    "processes": {"progress"},
    "program": {"hosts"},
    "progress": {"program"},
    "records": {"cluster", "hosts", "origins", "processes", "progress"},
    "report": {"paper", "plots", "records", "stats"},
    "sheet": set(),
    "sharpness": {
        "ascent",
        "checks",
        "flat",
        "memory",
        "metric",
        "placement",
        "program",
        "progress",
        "starts",
        "subspace",
        "words",
    },
    "starts": {"subspace"},
    "stats": set(),
    "subspace": {"checks", "flat", "placement", "program"},
    "symmetry": {"checks", "flat", "program"},
    "tfds_sets": set(),
    "theories": {"checks", "flat", "hessian", "lanczos", "program", "progress", "words"},
    "train": {"checks", "flat", "objective", "placement", "program", "progress", "words"},
    "words": set(),
}
LEFT_OF_MINIMUM = {"data", "methods", "minima", "models", "tfds_sets", "train"}
RIGHT_OF_MINIMUM = {
    "ascent", "compared", "comparison", "hessian", "kernels", "lanczos", "landscape", "measures", "metric",
    "plots", "records", "report", "sharpness", "sheet", "starts", "stats", "subspace", "symmetry", "theories",
}  # fmt: skip
# What each experiment may import from experiments/, besides its lib.
MAY_IMPORT_EXPERIMENTS = {"mnist": {"digits"}, "cifar": {"digits"}, "timit": {"digits"}, "paper": set(EXPERIMENTS)}
MAY_IMPORT_LIB = {
    "settings": set(),
    "command": set(),
    "rows": set(),
    "curves": {"rows"},
    "claims": {"rows"},
    "maps": set(),
    "tables": {"claims", "rows"},
    "published": {"claims"},
}
MOST_LINES = 400


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imported(path: Path) -> set[str]:
    """The dotted names that a file imports anywhere in it, relative ones resolved; `from a import b` is a.b."""
    package = path.parent.name
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module]))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def imported_below(path: Path, package: str) -> set[str]:
    """The modules of `package` that a file imports; `*` stands for one that imports the package itself."""
    parts = [name.split(".") for name in imported(path)]
    return {(*name, "*")[1] for name in parts if name[0] == package}


def importers(library: str) -> set[str]:
    return {name for name, path in MODULES.items() if imported_below(path, library)}


def calls(path: Path, name: str) -> list[int]:
    return [n.lineno for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and ast.unparse(n.func) == name]


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import(child)


def public_functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in tree(path).body:
        for inner in [node, *node.body] if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                yield inner


def source(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_source = pytest.mark.parametrize("path", SOURCES, ids=source)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_the_table_lets_it(name: str) -> None:
    assert name in MAY_IMPORT, f"gengap/{name}.py is not in MAY_IMPORT of tests/test_layout.py: add a row for it"
    extra = imported_below(MODULES[name], "gengap") - MAY_IMPORT[name]
    assert not extra, f"gengap/{name}.py may not import {sorted(extra)} from gengap"


def test_the_table_has_no_circle_and_no_unknown_name() -> None:
    unknown = set().union(*MAY_IMPORT.values()) - MAY_IMPORT.keys()
    assert not unknown, f"MAY_IMPORT names {sorted(unknown)}, which have no row"
    left = {name: set(may) for name, may in MAY_IMPORT.items()}
    while free := {name for name, may in left.items() if not may & left.keys()}:
        left = {name: may for name, may in left.items() if name not in free}
    assert not left, f"MAY_IMPORT goes round in a circle: {sorted(left)}"


def test_nothing_left_of_a_minimum_is_imported_right_of_it() -> None:
    for name in RIGHT_OF_MINIMUM:
        assert not MAY_IMPORT[name] & LEFT_OF_MINIMUM, name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_imports_no_other_experiment(name: str) -> None:
    others = imported_below(EXPERIMENTS[name], "experiments") & EXPERIMENTS.keys()
    extra = others - MAY_IMPORT_EXPERIMENTS.get(name, set())
    assert not extra, f"experiments/{name}.py imports {sorted(extra)}: an experiment is one file"


@pytest.mark.parametrize("name", LIB)
def test_what_experiments_share_knows_none_of_them(name: str) -> None:
    parts = [dotted.split(".") for dotted in imported(LIB[name]) if dotted.startswith("experiments.")]
    shared = {part[2] for part in parts if part[1] == "lib"}
    assert shared <= MAY_IMPORT_LIB[name], f"experiments/lib/{name}.py imports {sorted(shared)}"
    others = {part[1] for part in parts} - {"lib"} - ({"paper"} if name == "published" else set())
    assert not others, f"experiments/lib/{name}.py imports {sorted(others)}"


@each_source
def test_a_module_says_what_is_public(path: Path) -> None:
    module = importlib.import_module("gengap" if path.stem == "__init__" else f"gengap.{path.stem}")
    missing = [name for name in module.__all__ if path.stem != "__init__" and not hasattr(module, name)]
    assert not missing, f"{source(path)}: __all__ names {missing}"


def test_only_the_drawing_modules_import_matplotlib() -> None:
    drawing = importers("matplotlib")
    assert drawing <= {"compared", "plots", "report", "sheet"}, f"matplotlib is imported by {sorted(drawing)}"


@pytest.mark.parametrize("library", ["equinox", "flax", "haiku", "keras", "torch"])
def test_only_models_imports_a_network_library(library: str) -> None:
    assert importers(library) <= {"models"}, f"{library} is imported by {sorted(importers(library))}"


@each_source
def test_a_source_file_stays_small_and_quiet(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "misc", "common"}, f"{path.name} does not say what it is"
    lines = len(path.read_text().splitlines())
    assert lines <= MOST_LINES, f"{source(path)} has {lines} lines, over {MOST_LINES}: it is two modules"
    assert not calls(path, "print"), f"{source(path)} prints in lines {calls(path, 'print')}"


@each_source
def test_a_source_file_uses_no_pickle(path: Path) -> None:
    found = {name.split(".")[0] for name in imported(path)} & {"cloudpickle", "dill", "joblib", "pickle", "shelve"}
    assert not found, f"{source(path)} imports {sorted(found)}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False", f"{source(path)}:{node.value.lineno} allows pickle"


@each_source
def test_public_functions_name_their_arguments(path: Path) -> None:
    loose = [function.name for function in public_functions(path) if function.args.kwarg]
    assert not loose, f"{source(path)}: {loose} take **{{...}}; name the arguments"


@pytest.mark.parametrize("path", [*SOURCES, *EXPERIMENTS.values(), *LIB.values()], ids=source)
def test_importing_changes_no_setting_of_jax(path: Path) -> None:
    for node in at_import(tree(path)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert not name.endswith("config.update"), f"{source(path)}:{node.lineno} calls {name} at import"


def test_dir_lists_the_modules_that_are_loaded_on_use() -> None:
    assert set(gengap.__all__) <= set(dir(gengap))
    missing = set(gengap.__all__) - MODULES.keys() - {"compare"}
    assert not missing, f"gengap.__all__ names {sorted(missing)}, which do not exist"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = gengap.nonsense


def test_what_the_documents_call_by_its_full_name_exists() -> None:
    texts = [path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    names = {name for text in texts for name in re.findall(r"(?<!from )\bgengap\.(\w+(?:\.\w+)?)", text)}
    assert {"compare", "theories.description_length"} <= names
    for name in names:
        operator.attrgetter(name)(gengap)


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_gengap_loads_nothing_else() -> None:
    code = """
import sys, time
begin = time.perf_counter()
import gengap
assert time.perf_counter() - begin < 2
print(sorted({name.split(".")[0] for name in sys.modules} & {"flax", "jax", "matplotlib", "numpy"}))
"""
    assert in_a_new_process(code).strip() == "[]"


def test_importing_every_module_touches_no_device_and_reads_no_data() -> None:
    # An audit hook cannot be taken back, hence the process of its own.
    code = f"""
import importlib, sys
opened = []
def watch(event, args):
    if event == "open" and str(args[0]).endswith((".npz", ".npy", ".gz", ".csv", ".tfrecord", ".array_record")):
        opened.append(args[0])
    if event in {{"socket.connect", "socket.getaddrinfo"}}:
        opened.append(event)
sys.addaudithook(watch)
for name in {[f"gengap.{name}" for name in MODULES]}:
    importlib.import_module(name)
assert not opened, opened
if "jax" in sys.modules:
    from jax._src import xla_bridge
    assert not xla_bridge._backends, xla_bridge._backends
"""
    in_a_new_process(code)
