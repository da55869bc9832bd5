"""Copies this machine's Python into an empty root: `python interpreter.py ROOT`, while an image is built.

What an image then has of its base is the interpreter, the libraries it loads, certificates and an account: no shell,
no package manager, nothing to run but Python. Needs the standard library alone.
"""

import compileall
import os
import py_compile
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ACCOUNT, NUMBER = "backendai", 10_001
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# Of the standard library: what builds, tests, installs, or wants a terminal or a screen.
LEFT_OUT = (
    *("config-*", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter", "turtledemo"),
    *("dist-packages", "site-packages", "__pycache__", "EXTERNALLY-MANAGED", "sitecustomize.py", "*.a"),
    *("_ctypes_test*", "_curses*", "_dbm*", "_gdbm*", "_test*", "_tkinter*", "nis.*", "readline*", "xx*", "_xx*"),
)
# What a wheel may lean on wherever it was built, by the manylinux policy, as far as this machine has it.
FOR_WHEELS = (
    *("libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libmvec.so.1", "libpthread.so.0", "libresolv.so.2"),
    *("librt.so.1", "libstdc++.so.6", "libutil.so.1"),
)


def copy_interpreter(root: Path) -> None:
    """The program, its standard library and every shared library these load."""
    for link in _chain(Path(shutil.which("python") or sys.executable)):
        _copy(link, root)
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(library, _inside(root, library), ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    programs = [Path(sys.executable).resolve(), *_inside(root, library).rglob("*.so")]
    libraries = {*_libraries(*programs), *_known_libraries(*FOR_WHEELS)}
    for file in sorted({*libraries, *_libraries(*libraries)}):
        _copy(file, root)
    _tell_scanners(libraries, root)
    compileall.compile_dir(
        _inside(root, library),
        quiet=1,
        workers=0,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def copy_surroundings(root: Path) -> None:
    """Certificates where OpenSSL looks for them, an account without a shell, a place for temporary files."""
    _write(root, CERTIFICATES, CERTIFICATES.read_text())
    default = Path(ssl.get_default_verify_paths().openssl_cafile)
    if default != CERTIFICATES:
        _inside(root, default).parent.mkdir(parents=True, exist_ok=True)
        _inside(root, default).symlink_to(CERTIFICATES)
    _write(root, Path("/etc/os-release"), Path("/etc/os-release").read_text())
    _write(root, Path("/etc/nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")
    _write(root, Path("/etc/passwd"), f"{ACCOUNT}:x:{NUMBER}:{NUMBER}::/tmp:/nonexistent\n")
    _write(root, Path("/etc/group"), f"{ACCOUNT}:x:{NUMBER}:\n")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)


def _chain(program: Path) -> Iterator[Path]:
    """A program and all that it links to, one by one."""
    yield program
    while program.is_symlink():
        program = Path(os.path.normpath(program.parent / program.readlink()))
        yield program


def _libraries(*programs: Path) -> set[Path]:
    """What the dynamic loader finds for them."""
    said = subprocess.run(("ldd", *map(str, programs)), capture_output=True, text=True, check=False).stdout
    if missing := re.findall(r"^\s*(\S+) => not found", said, re.MULTILINE):
        raise SystemExit(f"These libraries are missing: {', '.join(sorted(set(missing)))}.")
    return {Path(os.path.normpath(found)) for found in re.findall(r"(/\S+) \(0x", said)}


def _known_libraries(*names: str) -> set[Path]:
    """Libraries by name, of those that the loader knows for this machine."""
    known = subprocess.run(("ldconfig", "-p"), capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"^\s*(\S+) \(.*=> (\S+)$", known, re.MULTILINE)[::-1])  # its first line of a name counts
    return {Path(found[name]) for name in names if name in found}


def _tell_scanners(files: set[Path], root: Path) -> None:
    """The packages that the libraries are of, where scanners of images without a package manager look."""
    for file in files:
        for name in {file, file.resolve(), Path("/usr") / file.relative_to("/")}:
            owner = subprocess.run(("dpkg-query", "-S", name), capture_output=True, text=True, check=False).stdout
            if package := owner.partition(": ")[0]:
                told = subprocess.run(("dpkg-query", "-s", package), capture_output=True, text=True, check=True).stdout
                _write(root, Path("/var/lib/dpkg/status.d", package.partition(":")[0]), told)
                break


def _copy(file: Path, root: Path) -> None:
    place = _inside(root, file)
    place.parent.mkdir(parents=True, exist_ok=True)
    if file.is_symlink() and ".so" not in file.name:
        place.symlink_to(file.readlink())
    else:
        shutil.copy2(file, place)


def _write(root: Path, path: Path, text: str) -> None:
    _inside(root, path).parent.mkdir(parents=True, exist_ok=True)
    _inside(root, path).write_text(text)


def _inside(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    copy_interpreter(target)
    copy_surroundings(target)
