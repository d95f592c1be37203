#!/bin/sh
# Print the newest working Python of 3.13, 3.12 and 3.11, from the PATH or from pyenv.
for version in 3.13 3.12 3.11; do
    for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
        if "$python" -c "import ensurepip, ssl, sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
            echo "$python"
            exit
        fi
    done
done
echo "No working Python 3.11, 3.12 or 3.13 found: install one, or name it with 'make PYTHON=/path/to/python'." >&2
exit 1
