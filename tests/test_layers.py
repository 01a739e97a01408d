"""A file imports only downwards, components know nothing of the config, and a mistake is found before torch loads."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dltrain"
FILES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}

LAYERS = [
    ["__init__", "errors", "signals", "names"],
    ["launch"],
    ["config.schema.base"],
    ["config.durations"],
    ["config.schema"],
    ["config.reader", "config.words"],
    ["config.validate", "console"],
    ["config.manual", "build"],
    ["data.transfer", "data.columns"],
    [
        "models",
        "losses",
        "metrics",
        "optimizers",
        "parameter_groups",
        "schedules",
        "regularization",
        "data.transforms",
        "data.spectrogram",
    ],
    ["data.split", "seeds", "extras", "machine", "diagnosis", "memory", "budget", "waiting"],
    ["data.storage", "data.progress"],
    ["data.order"],
    ["data.batches", "data.tokenizer", "text_scores", "data.cache", "data.cache_entries"],
    ["data.sources", "generation"],
    ["tasks"],
    ["data.division"],
    ["data.prepare"],
    ["device", "run", "meeting"],
    ["checkpoint"],
    ["ranks"],
    ["network"],
    ["sharding"],
    ["optimization", "state", "curves", "listing"],
    ["plan"],
    ["evaluation", "prediction", "inspection", "records", "profiling", "compilation"],
    ["graphs"],
    ["train"],
    ["difference"],
    ["comparison", "sweep", "verification"],
    ["cli"],
    ["__main__"],
]
"""From the ground up: files and packages. One may import what stands in a line above, and within its own package."""

COMPONENTS = LAYERS[9]
WITHOUT_TORCH = {name for layer in LAYERS[:8] for name in layer} | {"cli", "__main__"}
HEAVY = {
    *("torch", "numpy", "sklearn", "pyarrow", "PIL", "matplotlib", "safetensors"),
    *("soundfile", "soxr", "tokenizers", "sacrebleu", "optuna", "scipy"),
}


def imports_of(path: Path) -> set[str]:
    """Return what a file imports anywhere but for type checkers; files of dltrain by their names in FILES."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            module = node.module or ""
            found |= {name if name in FILES else module for name in _names(module, node)}
        nodes.extend(ast.iter_child_nodes(node))
    return {"__init__" if name == "dltrain" else name.removeprefix("dltrain.") for name in found}


def _names(module: str, node: ast.ImportFrom) -> list[str]:
    return [f"{module}.{alias.name}".removeprefix("dltrain.") for alias in node.names]


def layer_of(name: str) -> int:
    """Return the line of LAYERS that holds a file, or the nearest package around it."""
    by_name = {entry: number for number, layer in enumerate(LAYERS) for entry in layer}
    parts = name.removesuffix(".__init__").split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in by_name:
            return by_name[".".join(parts[:length])]
    raise AssertionError(f"dltrain/{name.replace('.', '/')}.py stands in no layer")


IMPORTS = {name: imports_of(path) for name, path in FILES.items()}


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("config.__init__", "data.__init__")])
def test_a_file_imports_only_downwards(name: str) -> None:
    package = name.rpartition(".")[0]
    upwards = [
        other
        for other in IMPORTS[name]
        if other in FILES
        and layer_of(other) >= layer_of(name)
        and not (package and layer_of(other) == layer_of(name) and other.startswith(f"{package}."))
    ]
    assert upwards == []


def test_no_two_files_import_each_other() -> None:
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in IMPORTS[name] & FILES.keys():
                visit(other, (*above, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


def test_components_import_only_torch_numpy_the_padding_and_what_messages_need() -> None:
    for name, imports in IMPORTS.items():
        if name.startswith(tuple(COMPONENTS)):
            top = {other if other in FILES else other.split(".")[0] for other in imports}
            own = {other for other in top if other in FILES and other.startswith("models.")}
            assert top - own <= {"torch", "numpy", "errors", "names", "data.columns"} | sys.stdlib_module_names, name


def test_the_way_to_a_config_error_names_no_heavy_package() -> None:
    for name, imports in IMPORTS.items():
        if any(name == entry or name.startswith(f"{entry}.") for entry in WITHOUT_TORCH):
            assert not {other.split(".")[0] for other in imports} & HEAVY, name


# ---- what a process really loads -------------------------------------------------------------------------------------


def run_dltrain(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-m", "dltrain", *arguments], capture_output=True, text=True, check=False
    )


def loaded_by(*arguments: str) -> tuple[set[str], int]:
    """Return the top-level packages that a command loads, and its exit code."""
    result = run_dltrain(*arguments, options=("-X", "importtime"))
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 50
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}, result.returncode


@pytest.fixture
def bad_config(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text("data: {type: sklearn, name: digit}\nmodel: {type: mlp, hiden: [3]}\noptimzer: {}\n")
    return path


def test_help_loads_no_heavy_package() -> None:
    packages, code = loaded_by("--help")
    assert code == 0
    assert "typer" in packages
    assert not packages & (HEAVY | {"pydantic", "yaml"})


def test_a_config_error_loads_no_heavy_package(bad_config: Path) -> None:
    packages, code = loaded_by("fit", str(bad_config))
    assert code == 2
    assert "pydantic" in packages
    assert not packages & (HEAVY | {"rich"})


def test_a_config_error_comes_at_once(bad_config: Path) -> None:
    """The aim is half a second from the command to its end; what counts here is its own work, on a busy machine too."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run_dltrain("fit", str(bad_config)).returncode == 2
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    work_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"a config error takes {work_s:.2f} s of work")
    assert work_s < 1.5  # with torch it would be 2
