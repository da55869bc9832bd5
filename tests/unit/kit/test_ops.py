"""What the platform asks of a process."""

import asyncio
import time

import httpx
import pytest

from deploy.local.server import free_port
from services.kit import ops
from services.kit.ops import ANSWER_SECONDS


async def ready() -> bool:
    return True


async def not_ready() -> bool:
    return False


async def get(address: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=2 * ANSWER_SECONDS) as client:
        return await client.get(f"http://{address}{path}")


async def test_it_tells_metrics_liveness_and_readiness() -> None:
    address = f"127.0.0.1:{free_port()}"
    with ops.serve(address, ready):
        metrics = await get(address, "/metrics")
        assert "process_cpu_seconds_total" in metrics.text
        assert [(await get(address, path)).status_code for path in ("/healthz", "/readyz", "/x")] == [200, 200, 404]


async def test_a_process_that_is_not_ready_is_alive() -> None:
    address = f"127.0.0.1:{free_port()}"
    with ops.serve(address, not_ready):
        assert (await get(address, "/healthz")).status_code == 200
        assert (await get(address, "/readyz")).status_code == 503


async def test_a_stuck_event_loop_is_told_by_its_liveness() -> None:
    address = f"127.0.0.1:{free_port()}"
    with ops.serve(address, ready):
        asked = asyncio.create_task(asyncio.to_thread(httpx.get, f"http://{address}/healthz", timeout=10))
        await asyncio.sleep(0)
        time.sleep(1.2 * ANSWER_SECONDS)  # noqa: ASYNC251  # this is what being stuck is
        assert (await asked).status_code == 503


async def test_it_listens_on_ipv6() -> None:
    port = free_port()
    with ops.serve(f"[::1]:{port}", ready):
        assert (await get(f"[::1]:{port}", "/healthz")).status_code == 200


async def test_without_an_address_it_is_nowhere() -> None:
    with ops.serve(None, ready):
        pass


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:http", "127.0.0.1:99999", "192.0.2.1:9090"])
async def test_an_address_that_can_not_be_listened_on_ends_the_process_with_a_sentence(listen: str) -> None:
    with pytest.raises(SystemExit, match="OPS_LISTEN"), ops.serve(listen, ready):
        pass


async def test_a_port_in_use_ends_the_process_with_a_sentence() -> None:
    address = f"127.0.0.1:{free_port()}"
    with ops.serve(address, ready), pytest.raises(SystemExit, match="in use"), ops.serve(address, ready):
        pass
