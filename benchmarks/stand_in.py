"""Lets a CUDA build of torch start where NVIDIA's libraries are not installed, as in a rehearsal of a GPU machine.

    PYTHON -m benchmarks.stand_in

writes, beside the libraries of the torch that PYTHON has, one for each NVIDIA library they want; each of their
functions reports an error, so that torch sees no device and computes on the CPU. CONTRIBUTING.md says what else PYTHON
needs.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

_SYSTEM = (
    "ld-linux",
    "libc.so",
    "libdl.so",
    "libgcc_s.so",
    "libgomp.so",
    "libm.so",
    "libpthread.so",
    "librt.so",
    "libstdc++.so",
)
# the interpreter's own, which every extension module leaves open
_PYTHON = re.compile(r"_?Py[A-Z_]")


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def needed(library: Path) -> set[str]:
    """Names of the libraries that `library` is linked to."""
    return {
        found[1] for line in _lines("readelf", "-dW", str(library)) if (found := re.search(r"NEEDED.*\[(.+)]", line))
    }


def versions(library: Path) -> dict[str, str]:
    """Library by name of a symbol version that is asked of it."""
    found, file = {}, ""
    for line in _lines("readelf", "-VW", str(library)):
        if match := re.search(r"File: (\S+)", line):
            file = match[1]
        elif (match := re.search(r"Name: (\S+)", line)) and file:
            found[match[1]] = file
    return found


def symbols(library: Path) -> Iterator[tuple[str, str, bool]]:
    """(name, version or "", whether it is defined) of the symbols; weak ones that are open may stay so."""
    for line in _lines("readelf", "--dyn-syms", "-W", str(library)):
        parts = line.split()
        if len(parts) < 8 or not parts[0].rstrip(":").isdigit():
            continue
        name, _, version = parts[7].replace("@@", "@").partition("@")
        defined = parts[6] != "UND"
        if defined or parts[4] != "WEAK":
            yield name, version, defined


def wanted(folder: Path) -> dict[str, dict[str, set[str]]]:
    """Library -> version ("" for none) -> functions that the libraries of `folder` want of it."""
    libraries = [path for path in sorted(folder.glob("*.so*")) if path.is_file()]
    missing = {name for path in libraries for name in needed(path)} - {path.name for path in libraries}
    missing = {name for name in missing if not name.startswith(_SYSTEM)}
    found: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in sorted(missing)}
    defined: set[str] = set()
    free: set[str] = set()
    for path in libraries:
        files = versions(path)
        for name, version, here in symbols(path):
            if here:
                defined.add(name)
            elif files.get(version) in found:
                found[files[version]][version].add(name)
            elif not version and not _PYTHON.match(name):
                free.add(name)
    # without a version any library may have it
    if found:
        found[min(found)][""] |= free - defined
    return found


def write(name: str, functions: dict[str, set[str]], folder: Path) -> None:
    text = ""
    for function in sorted(set().union(*functions.values())):
        value = 'const char* {}(void) {{ return "stand-in"; }}\n' if "String" in function or "Name" in function else ""
        text += (value or "long {}(void) {{ return 999; }}\n").format(function)
    held = {version: names for version, names in functions.items() if version}
    script = "".join(
        f"{version} {{ {' '.join(f'{n};' for n in sorted(names))} }};\n" for version, names in held.items()
    )
    with tempfile.TemporaryDirectory() as temporary:
        source, exported = Path(temporary) / "stand_in.c", Path(temporary) / "versions"
        source.write_text(text)
        exported.write_text(script)
        options = [f"-Wl,-soname,{name}", *([f"-Wl,--version-script={exported}"] if held else [])]
        command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", *options, "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True)


def main() -> None:
    folder = Path(sysconfig.get_path("purelib")) / "torch/lib"
    if not folder.is_dir():
        raise SystemExit(f"stand-in: no torch in {folder.parent.parent}")
    for name, functions in wanted(folder).items():
        write(name, functions, folder)
        print(f"{name}: {sum(map(len, functions.values()))} functions")


if __name__ == "__main__":
    main()
