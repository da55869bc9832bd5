"""A process's certificate: read from a folder, and again when it changes."""

from pathlib import Path

import pytest

from deploy.local import certs
from services.kit.tls import Tls


def test_without_a_folder_there_is_no_tls() -> None:
    assert Tls.of(None) is None


def test_a_folder_without_certificates_ends_the_process_with_what_it_must_hold(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"GRPC_TLS_DIR: .* must hold tls\.crt, tls\.key and ca\.crt"):
        Tls.of(tmp_path)


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


def test_only_its_owner_may_read_a_key(tmp_path: Path) -> None:
    certs.write_all(tmp_path, ["chat"])
    assert (tmp_path / "chat" / "tls.key").stat().st_mode & 0o077 == 0
