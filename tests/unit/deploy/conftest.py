"""What the tests of the manifests share: every rendering, made once."""

import pytest

from deploy import manifests
from deploy.manifests import COMPONENTS, OVERLAYS
from tests.unit.deploy.rendering import Rendering

RENDERINGS = ("base", *COMPONENTS, "all components", *(f"overlay {name}" for name in OVERLAYS))


@pytest.fixture(scope="session")
def renderings() -> dict[str, Rendering]:
    """All of them by name, or a skip that says what is missing."""
    if not manifests.has_kubectl():
        pytest.skip(manifests.NO_KUBECTL)
    return {name: Rendering(made) for name, made in manifests.render_all().items()}


@pytest.fixture(params=RENDERINGS)
def rendering(request: pytest.FixtureRequest, renderings: dict[str, Rendering]) -> Rendering:
    """Each of them in turn."""
    return renderings[request.param]
