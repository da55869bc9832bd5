"""When a provider's call is tried again."""

from collections.abc import Iterator

import pytest

from services.common.providers.errors import (
    ProviderAuthFailed,
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from services.common.providers.retries import Retries
from services.kit.errors import Kind

FAST = Retries(first_wait_seconds=0.001)


class Provider:
    """Fails with each of these, then answers."""

    def __init__(self, *failures: ProviderError) -> None:
        self._failures: Iterator[ProviderError] = iter(failures)
        self.calls = 0

    async def call(self) -> str:
        self.calls += 1
        for failure in self._failures:
            raise failure
        return "answer"


async def test_a_passing_failure_is_tried_again() -> None:
    provider = Provider(ProviderUnavailable(), ProviderRateLimited(retry_after_seconds=0.01))
    assert await FAST.run(provider.call) == "answer"


async def test_the_third_failure_is_the_last() -> None:
    provider = Provider(*(ProviderUnavailable() for _ in range(9)))
    with pytest.raises(ProviderUnavailable):
        await FAST.run(provider.call)
    assert provider.calls == 3


@pytest.mark.parametrize(
    "failure", [ProviderAuthFailed(), ProviderTimeout(), ProviderRateLimited(retry_after_seconds=60)]
)
async def test_a_failure_that_lasts_is_not_tried_again(failure: ProviderError) -> None:
    provider = Provider(failure)
    with pytest.raises(ProviderError):
        await FAST.run(provider.call)
    assert provider.calls == 1


def test_every_failure_of_a_provider_is_a_gateway_error_but_a_text_that_is_too_long() -> None:
    kinds = {kind.kind for kind in ProviderError.__subclasses__()}
    assert kinds == {Kind.UPSTREAM, Kind.TIMEOUT, Kind.UNAVAILABLE, Kind.INVALID}
