#!/usr/bin/env bash
# Fetches the Python package transformers, which tests read (they run no Python), into target/transformers-VERSION.
# The tests run this when the folder is missing; with HOST_TEST_TRANSFORMERS=FOLDER they use another package folder.
# Needs python3 with pip, or with venv, and a package index that pip can reach.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VERSION=5.23.0
WHEEL=transformers-$VERSION-py3-none-any.whl
SHA256=018e82fd07490ad5bb58414f65e31576033dc7f36bed10c574843f69b90991bf
PLACE=target/transformers-$VERSION

fail() {
    echo "tests/fetch-transformers.sh: $*" >&2
    exit 1
}

[[ ! -f $PLACE/transformers/__init__.py ]] || exit 0
command -v python3 >/dev/null || fail "python3 is missing: install it (Debian: apt-get install python3 python3-pip)," \
    "or set HOST_TEST_TRANSFORMERS to the folder of an installed package transformers $VERSION"

mkdir -p target
work=$(mktemp -d target/new-transformers.XXXXXX)
trap 'rm -rf "$work"' EXIT

# A Python without pip, such as Debian's, can make a virtualenv that has it.
python=python3
if ! python3 -m pip --version >/dev/null 2>&1; then
    python3 -m venv "$work/venv" >/dev/null 2>&1 || fail "python3 has neither pip nor a working venv: install one" \
        "(Debian: apt-get install python3-pip, or python3-venv)"
    python=$work/venv/bin/python
fi
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$work" \
    "transformers==$VERSION" || fail "pip cannot download transformers $VERSION: check the network, or pip's index settings"
echo "$SHA256  $work/$WHEEL" | sha256sum --check --quiet || fail "$WHEEL is not the file that the tests were made for"
python3 -m zipfile -e "$work/$WHEEL" "$work/unpacked"

# Renamed into place: another run may have been first.
mv -T "$work/unpacked" "$PLACE" 2>/dev/null || [[ -f $PLACE/transformers/__init__.py ]] || fail "$PLACE cannot be written"
