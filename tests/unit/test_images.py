"""What an image holds and what compose tells it, without building one."""

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
FOLDERS = {
    "gateway": "gateway",
    **{name: f"services/{name}" for name in ("agent", "billing", "chat", "speech", "translate")},
    "local-ai": "deploy/local",
}
PROCESSES = sorted(FOLDERS.keys() - {"local-ai"})
# What the local image runs, of all that is in its folder.
LOCAL_PROGRAMS = ("deploy.local.ai", "deploy.local.hearing", "deploy.local.tokens")
# Compose's network is one machine's own.
NOT_IN_COMPOSE = {"GRPC_TLS_DIR"}
# Several packages share these names.
NAMESPACES = ("google", "opentelemetry")
# What generated stubs import.
STUBS_NEED = {"grpcio", "protobuf"}


@pytest.mark.parametrize("image", FOLDERS)
def test_an_image_has_every_package_that_its_code_imports(image: str) -> None:
    pinned = set(re.findall(r"^([a-z0-9.-]+)==", (ROOT / "requirements" / f"{image}.txt").read_text(), re.MULTILINE))
    assert not {
        (module, name) for module, names in modules_of(image).items() for name in names if not brings(pinned, name)
    }


@pytest.mark.parametrize("image", PROCESSES)
def test_an_image_has_every_folder_that_its_code_imports(image: str) -> None:
    own = FOLDERS[image].replace("/", ".")
    homes = (own, "services.kit", "services.common", "services.__init__")
    assert all(module.startswith(homes) for module in modules_of(image))


@pytest.mark.parametrize("process", PROCESSES)
def test_compose_names_every_setting_of_a_process_and_no_other(process: str) -> None:
    told = compose()["services"][process]["environment"].keys()
    in_image = set(
        re.findall(r"\b([A-Z_]+)=", " ".join(re.findall(r"^ENV ((?:.*\\\n)*.*)", dockerfile(), re.MULTILINE)))
    )
    module = importlib.import_module(f"{FOLDERS[process]}/settings".replace("/", "."))
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, BaseSettings)]
    settings = {field.upper() for kind in kinds for field in kind.model_fields}
    assert told - settings == set()
    assert settings - told - in_image == NOT_IN_COMPOSE


def test_compose_runs_the_version_that_make_images_builds() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert set(re.findall(r"VERSION:-([^}]*)", (DOCKER / "compose.yaml").read_text())) == {version}


def test_every_container_is_read_only_and_without_rights() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_an_image_runs_as_a_numbered_user_and_starts_without_a_shell() -> None:
    assert re.findall(r"^USER (.*)$", dockerfile(), re.MULTILINE) == ["10001:10001"]
    assert len(re.findall(r'^CMD \["python", "-m", "[a-z.]+".*\]$', dockerfile(), re.MULTILINE)) == len(FOLDERS)
    assert "ENTRYPOINT" not in dockerfile()


@cache
def compose() -> Any:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


@cache
def dockerfile() -> str:
    return (DOCKER / "Dockerfile").read_text()


@cache
def modules_of(image: str) -> dict[str, set[str]]:
    """The project's own modules that an image may load, each with what it imports."""
    folder = ROOT / FOLDERS[image]
    waiting = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in folder.rglob("*.py")
        if image in PROCESSES or ".".join(file.relative_to(ROOT).with_suffix("").parts) in LOCAL_PROGRAMS
    ]
    found: dict[str, set[str]] = {}
    while waiting:
        if (module := waiting.pop()) not in found:
            found[module] = set(imports(source(module)))
            waiting += [name for name in found[module] if name.split(".")[0] in ("gateway", "services", "deploy")]
    return found


def source(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(file: Path) -> Iterator[str]:
    """The modules that a file imports, unless only for its types."""
    if not file.exists():
        return
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{name.name}" for name in node.names]
            yield from names if node.module in NAMESPACES else [node.module]
            yield from (name for name in names if source(name).exists())


def brings(pinned: set[str], module: str) -> bool:
    """Whether one of the pinned packages brings a module, or it needs none."""
    top, *rest = module.split(".")
    if top in sys.stdlib_module_names | {"gateway", "services", "deploy"}:
        return True
    if top == "backendai":
        return pinned >= STUBS_NEED
    return bool(pinned & providers()[f"{top}.{rest[0]}" if top in NAMESPACES else top])


@cache
def providers() -> dict[str, frozenset[str]]:
    """The packages that bring a module, by its first name and by its first two."""
    found: dict[str, set[str]] = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        for file in distribution.files or ():
            parts = file.with_suffix("").parts
            for depth in (1, 2):
                found.setdefault(".".join(part.split(".")[0] for part in parts[:depth]), set()).add(name)
    return {module: frozenset(names) for module, names in found.items()}
