"""A process's certificate: read from a folder, and again when it changes."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.local import certs
from deploy.local.server import free_port
from services.kit import grpc_client
from services.kit.grpc_client import dial
from services.kit.grpc_server import Server
from services.kit.tls import Tls


def test_without_a_folder_there_is_no_tls() -> None:
    assert Tls.of(None) is None


def test_a_folder_without_certificates_ends_the_process_with_what_it_must_hold(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"GRPC_TLS_DIR: .* must hold tls\.crt, tls\.key and ca\.crt"):
        Tls.of(tmp_path)


def test_a_key_of_another_certificate_ends_the_process_with_a_sentence(tmp_path: Path) -> None:
    certs.write_all(tmp_path, ["chat", "agent"])
    (tmp_path / "chat" / "tls.key").write_bytes((tmp_path / "agent" / "tls.key").read_bytes())
    with pytest.raises(SystemExit, match="do not fit each other: KEY_VALUES_MISMATCH"):
        Tls.of(tmp_path / "chat")


def test_a_change_of_the_files_is_a_new_generation_and_no_change_is_none(tmp_path: Path) -> None:
    certs.write_all(tmp_path, ["chat"])
    tls = Tls(tmp_path / "chat")
    assert tls.generation() == tls.generation()
    before = tls.generation()
    certs.write_all(tmp_path, ["chat"])
    assert tls.generation() == before + 1


def test_files_that_can_not_be_read_for_a_moment_leave_the_old_ones_in_use(tmp_path: Path) -> None:
    certs.write_all(tmp_path, ["chat"])
    tls = Tls(tmp_path / "chat")
    before = tls.generation()
    (tmp_path / "chat" / "tls.key").unlink()
    assert tls.generation() == before
    tls.channel_credentials()


def test_files_that_do_not_fit_leave_the_old_ones_in_use(tmp_path: Path) -> None:
    certs.write_all(tmp_path, ["chat"])
    tls = Tls(tmp_path / "chat")
    before = tls.generation()
    (tmp_path / "chat" / "tls.crt").write_text("no certificate")
    assert tls.generation() == before


def test_only_its_owner_may_read_a_key(tmp_path: Path) -> None:
    certs.write_all(tmp_path, ["chat"])
    assert (tmp_path / "chat" / "tls.key").stat().st_mode & 0o077 == 0


async def tell_certificate(_request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    """The caller's, as the server sees it."""
    (certificate,) = context.auth_context()["x509_pem_cert"]
    return certificate


async def test_server_and_client_take_up_renewed_files_of_another_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_client, "RENEWAL_SECONDS", 0)
    services = ["chat", "gateway"]
    certs.write_all(tmp_path, services)
    server = Server(f"127.0.0.1:{free_port()}", tls=Tls(tmp_path / "chat"))
    handler = grpc.method_handlers_generic_handler(
        "test.Mirror", {"Show": grpc.unary_unary_rpc_method_handler(tell_certificate)}
    )
    server.grpc.add_generic_rpc_handlers((handler,))
    await server.start()
    channel = dial(server.listen, "chat", Tls(tmp_path / "gateway"))
    show: Any = channel.unary_unary("/test.Mirror/Show")
    shown = [await show(b"", wait_for_ready=True)]
    certs.write_all(tmp_path, services)
    shown.append(await show(b"", wait_for_ready=True))
    assert shown[0] != shown[1]
    assert shown[1].decode().strip() == (tmp_path / "gateway" / "tls.crt").read_text().strip()
    await channel.close()
    await server.drain(0)
