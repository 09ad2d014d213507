#!/usr/bin/env python3
"""Build dist/storage_manager.pyz: one executable file, byte for byte the same from the same sources.

Entries are sorted, stored without compression (they are read fastest that way, and need no zlib), and carry
a fixed time and mode. In front of them stands a line with the digest of the sources, by which the wrapper sees whether
the archive fits them. With --precompile the archive holds byte code for the running Python as well, which saves
compiling at each start; other Pythons use the sources beside it.
"""

import argparse
import hashlib
import importlib.util
import os
import re
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "storage_manager"
SHEBANG = b"#!/usr/bin/env python3\n"

# The zip format's calendar, 1980 to 2107.
EARLIEST = 315532800
LATEST = 4354819199

# The archive's own door: it must parse on any Python, and it hands the exit code on.
MAIN = b"""\
import sys

from storage_manager.__main__ import _run

if __name__ == "__main__":
    sys.exit(_run())
"""


def main():
    parser = argparse.ArgumentParser(description="Build the storage_manager archive.")
    parser.add_argument("--output", metavar="FILE", default=str(ROOT / "dist" / "storage_manager.pyz"))
    parser.add_argument("--precompile", action="store_true", help="add byte code for this Python")
    args = parser.parse_args()
    output = Path(args.output)
    try:
        moment = source_date(os.environ.get("SOURCE_DATE_EPOCH", ""))
    except ValueError:
        sys.stderr.write(
            f"build_zipapp: SOURCE_DATE_EPOCH is {os.environ['SOURCE_DATE_EPOCH'][:40]!r}: give seconds since 1970, "
            f"at most {LATEST} (the year 2107), or unset it\n"
        )
        return 1
    try:
        build(output, args.precompile, moment)
    except OSError as error:
        sys.stderr.write(f"build_zipapp: cannot write {output}: {error.strerror}\n")
        return 1
    print(f"{output} ({output.stat().st_size:,} bytes, version {version()})")
    return 0


def build(output, precompile, moment):
    """Write the archive beside its final place, then rename: whoever runs it meanwhile sees a whole one."""
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(SHEBANG + b"# sources %s\n" % digest().encode())
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for path, data in sorted(entries(precompile).items()):
                    info = zipfile.ZipInfo(path, moment)
                    info.create_system = 3  # Unix, so that the mode below counts, wherever this runs
                    info.external_attr = 0o100644 << 16
                    archive.writestr(info, data)
        os.chmod(name, 0o755)
        os.replace(name, output)
    except BaseException:
        os.unlink(name)
        raise


def digest():
    """Of the sources, as `sha256sum` and `sort` make it of their names and contents: the wrapper compares it."""
    paths = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "build_zipapp.py", *PACKAGE.rglob("*.py")])
    lines = (f"{hashlib.sha256((ROOT / path).read_bytes()).hexdigest()}  {path}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def entries(precompile):
    found = {"__main__.py": MAIN}
    for source in PACKAGE.rglob("*.py"):
        path = source.relative_to(ROOT).as_posix()
        found[path] = source.read_bytes()
        if precompile:
            found[path + "c"] = byte_code(found[path], path)
    return found


def byte_code(source, path):
    """An unchecked-hash .pyc: valid by the magic number alone, which zipimport compares."""
    import _imp
    import marshal

    code = compile(source, path, "exec", dont_inherit=True)
    source_hash = _imp.source_hash(importlib.util._RAW_MAGIC_NUMBER, source)
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + source_hash + marshal.dumps(code)


def source_date(text):
    """The time of every entry; the earliest there is when none is given. Raises ValueError."""
    seconds = int(text or EARLIEST)
    if seconds > LATEST:
        raise ValueError(text)
    return time.gmtime(max(EARLIEST, seconds))[:6]


def version():
    return re.search(r'__version__ = "([^"]+)"', (PACKAGE / "__init__.py").read_text()).group(1)


if __name__ == "__main__":
    sys.exit(main())
