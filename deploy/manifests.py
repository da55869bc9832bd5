"""Every rendering of deploy/k8s, and what the Kubernetes schemas have against it: `make manifests`.

A component only means something on top of the base, so each is rendered there alone, and all of them together.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kubernetes_validate
import yaml

K8S = Path(__file__).parent / "k8s"
COMPONENTS = sorted(folder.name for folder in (K8S / "components").iterdir())
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
# The oldest Kubernetes that has all we use, and the newest that there are schemas of.
OLDEST = "1.31"
NEWEST = ".".join(kubernetes_validate.latest_version().split(".")[:2])
NO_KUBECTL = (
    "The manifests are rendered by kubectl, and there is none: install version 1.31 or newer, one program without "
    "dependencies (https://kubernetes.io/docs/tasks/tools/)."
)
# Kinds that operators bring. Their schemas come with them, so here only the names are known.
CUSTOM = {
    "cert-manager.io/v1": {"Certificate", "Issuer"},
    "keda.sh/v1alpha1": {"ScaledObject"},
    "monitoring.coreos.com/v1": {"PodMonitor", "PrometheusRule", "ServiceMonitor"},
    "postgresql.cnpg.io/v1": {"Cluster", "Pooler", "ScheduledBackup"},
    "traefik.io/v1alpha1": {"IngressRoute", "Middleware", "ServersTransport", "TLSOption"},
}

Manifest = dict[str, Any]


def has_kubectl() -> bool:
    """Whether anything can be rendered here."""
    return shutil.which("kubectl") is not None


def render(folder: Path) -> list[Manifest]:
    """What kustomize makes of a folder; a ValueError with its words if it can't."""
    ended = subprocess.run(["kubectl", "kustomize", str(folder)], check=False, capture_output=True, text=True)
    if ended.returncode:
        raise ValueError(f"{folder.name} can't be rendered: {ended.stderr.strip()}")
    return [manifest for manifest in yaml.load_all(ended.stdout, yaml.CSafeLoader) if manifest]


def render_all() -> dict[str, list[Manifest]]:
    """By name: the base, each component alone on it, all components on it, each overlay."""
    with TemporaryDirectory() as scratch:
        folders = {"base": K8S / "base"}
        for name, chosen in {**{name: [name] for name in COMPONENTS}, "all components": COMPONENTS}.items():
            folders[name] = _combination(Path(scratch) / name.replace(" ", "-"), chosen)
        folders |= {f"overlay {name}": K8S / "overlays" / name for name in OVERLAYS}
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return dict(zip(folders, threads.map(render, folders.values()), strict=True))


def _combination(folder: Path, components: Iterable[str]) -> Path:
    """A kustomization of the base and these. Kustomize takes no absolute paths."""
    folder.mkdir()
    k8s = Path(os.path.relpath(K8S.resolve(), folder.resolve()))
    kustomization = {
        "resources": [str(k8s / "base")],
        "components": [str(k8s / "components" / name) for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def problems(renderings: Mapping[str, Iterable[Manifest]]) -> Iterator[str]:
    """A line for each fault and rendering. What is the same in many renderings is looked at once."""
    known: dict[str, list[str]] = {}
    for rendering, manifests in renderings.items():
        for manifest in manifests:
            text = yaml.dump(manifest, Dumper=yaml.CSafeDumper)
            if text not in known:
                known[text] = list(_faults(manifest))
            yield from (f"{rendering}: {fault}" for fault in known[text])


def _faults(manifest: Manifest) -> Iterator[str]:
    version, kind = manifest.get("apiVersion", ""), manifest.get("kind", "")
    name = f"{kind} {manifest.get('metadata', {}).get('name')}"
    group = version.partition("/")[0]
    if "." in group and not group.endswith(".k8s.io"):
        if kind not in CUSTOM.get(version, set()):
            yield f"{name}: no operator that we know has {kind} in {version}"
        return
    for kubernetes in (OLDEST, NEWEST):
        try:
            kubernetes_validate.validate(manifest, kubernetes, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{name}: Kubernetes {kubernetes}: {'.'.join(map(str, error.path))}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield f"{name}: {error.message}"


def main() -> None:
    """Render, check, and say how it went."""
    if not has_kubectl():
        sys.exit(NO_KUBECTL)
    started_at = time.monotonic()
    try:
        renderings = render_all()
    except ValueError as error:
        sys.exit(str(error))
    found = list(problems(renderings))
    for problem in found:
        print(problem)
    print(
        f"{len(renderings)} renderings, {sum(map(len, renderings.values()))} manifests, {len(found)} problems "
        f"(Kubernetes {OLDEST} and {NEWEST}, {time.monotonic() - started_at:.1f} s)"
    )
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main()
