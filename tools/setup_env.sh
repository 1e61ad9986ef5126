#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes the virtual environment that the Makefile's targets run in, and keeps it up to date.
#
#   bash tools/setup_env.sh VENV PYTHON STEP...
#
# VENV    where the environment is or shall be; set-up changes versions in it
# PYTHON  the Python that makes it; empty: python3
# STEP    base (torch, Detectron2, what the demo needs, this package), web (gradio), test,
#         minkowski, browser (for the web demo's test, which is skipped without), lint
#
# Every version comes from requirements/. A finished step leaves a stamp with the digest of what it
# was made from: a second run costs nothing, and a changed pin does the step again. A killed run
# leaves no stamp: the next one clears away what is half-installed and does the step again.
#
# By pip: it is there before anything is installed, and the user's index, certificate and proxy are
# in its configuration. uv reads none of that, and takes what a killed run left for installed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$1 python=$2 py=$1/bin/python stamps=$1/.setup
shift 2
# pip's own cache keeps a compiled wheel by its source alone; this one knows Python and torch too.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sparse_refine/wheels

say() { printf 'set-up: %s\n' "$*"; }
fail() { printf 'set-up: %s\n' "$*" >&2; exit 1; }
ask() { "$py" -c "import sys, sysconfig; print($1)"; }
has_header() { echo "#include <$1>" | g++ -E -x c++ - >/dev/null 2>&1; }

# system_packages PACKAGE...: installs them (root), or says what to install (everybody else).
system_packages() {
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    fail "missing system packages; install them and run again: sudo apt-get install $*"
  fi
  say "installing system packages: $*"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; } \
    </dev/null >/dev/null || fail "apt-get could not install: $*"
}

# lock FD: one set-up at a time; the kernel lets go of a killed one's lock.
lock() {
  command -v flock >/dev/null || return 0
  flock -n "$1" || { say "waiting for another set-up"; flock "$1"; }
}

# What a killed pip leaves: packages without INSTALLER, which pip writes when all their files are
# there, and old versions that it renamed to ~name.
clear_half_installed() {
  local site info
  site=$(ask 'sysconfig.get_path("purelib")')
  for info in "$site"/*.dist-info; do
    [ -e "$info/INSTALLER" ] || rm -rf "$info"
  done
  rm -rf "$site"/~*
}

make_venv() {
  python=${python:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "the pinned versions need Python 3.11 or newer, $python is $("$python" -V 2>&1):" \
      "give PYTHON= (or install the package beside a torch of your own, see docs/installation.md)"
  "$python" -c 'import venv, ensurepip' 2>/dev/null || system_packages \
    "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
  say "making $venv with $("$python" -V)"
  "$python" -m venv "$venv" ||
    fail "$python could not make $venv: remove it, or give another VENV="
}

# Without dependencies: requirements/ names every one of them.
pip_install() {
  "$py" -m pip install -q --no-input --no-compile --no-deps --no-build-isolation "$@"
}

install_base() {
  say "installing torch, Detectron2 and what they need into $venv (6 GB, takes minutes)"
  pip_install -r requirements/build.txt
  pip_install -r requirements/demo.txt
  # The wheel is tagged for Python 3.10: pip takes it for that version, into this one's folder.
  pip_install -r requirements/detectron2.txt --require-hashes --only-binary=:all: \
    --python-version 3.10 --upgrade --target "$(ask 'sysconfig.get_path("purelib")')"
}

install_package() { pip_install --editable .; }
install_test() {
  pip_install -r requirements/test.txt
  # No device, so that its setup.py compiles no operators: see there.
  FORCE_CUDA='' CUDA_VISIBLE_DEVICES='' pip_install -r requirements/mask2former.txt --require-hashes
}
install_web() { pip_install -r requirements/web.txt; }
install_lint() { pip_install -r requirements/build.txt -r requirements/lint.txt; }

# The only step that may fail: one test is skipped then. Tried once, see `step`.
install_browser() {
  command -v chromium >/dev/null && command -v chromedriver >/dev/null && return
  (system_packages chromium chromium-driver) ||
    say "no browser: the test of the web demo's page in one is skipped"
}

install_minkowski() {
  local pin wheel
  "$py" -c 'import ctypes; ctypes.CDLL("libopenblas.so.0")' 2>/dev/null ||
    system_packages libopenblas-dev
  pin=$(grep -o '^MinkowskiEngine==[^ ]*' requirements/minkowski.txt)
  wheel=$cache/${pin/==/-}-cpu-$(ask 'sysconfig.get_config_var("SOABI")')
  wheel+=-torch-$(ask '__import__("torch").__version__')
  mkdir -p "$cache"
  exec 8>"$cache/.lock"
  lock 8
  if ! (cd "$wheel" && sha256sum --check SHA256SUMS) >/dev/null 2>&1; then
    compile_minkowski "$wheel"
  fi
  exec 8>&-
  pip_install --force-reinstall "$wheel"/*.whl
  # MinkowskiEngine 0.5.4 asks collections for names that moved to collections.abc.
  "$py" -W ignore -c 'import collections, collections.abc
for name in collections.abc.__all__: setattr(collections, name, getattr(collections.abc, name))
import MinkowskiEngine' || fail "MinkowskiEngine does not import: remove $wheel and run again"
}

# compile_minkowski FOLDER: puts there the wheel and its digest, both or nothing.
compile_minkowski() {
  local tmp missing=()
  command -v g++ >/dev/null || missing+=(g++)
  [ -e "$(ask 'sysconfig.get_path("include")')/Python.h" ] ||
    missing+=("$(ask '"python%d.%d-dev" % sys.version_info[:2]')")
  has_header cblas.h || missing+=(libopenblas-dev)
  [ ${#missing[@]} = 0 ] || system_packages "${missing[@]}"
  say "compiling MinkowskiEngine (once, about 5 minutes on two cores; $stamps/minkowski.log)"
  rm -rf "$cache"/.building.*
  tmp=$(mktemp -d "$cache/.building.XXXXXX")
  # Its setup.py calls ninja and pip from PATH. No pip cache: see $cache above. -g0: Python's own
  # flags ask for debug symbols, which cost a quarter of the time.
  PATH=$(cd "$venv/bin" && pwd):$PATH CFLAGS="${CFLAGS-} -g0" \
    "$py" -m pip wheel --no-input --no-deps --no-build-isolation --no-cache-dir --require-hashes \
    --config-settings=--build-option=--cpu_only --config-settings=--build-option=--blas=openblas \
    --wheel-dir "$tmp" -r requirements/minkowski.txt </dev/null >"$stamps/minkowski.log" 2>&1 || {
    rm -rf "$tmp"
    tail -n 25 "$stamps/minkowski.log" >&2
    fail "MinkowskiEngine did not compile"
  }
  (cd "$tmp" && sha256sum ./*.whl >SHA256SUMS)
  rm -rf "$1"
  mv "$tmp" "$1"
}

# step NAME FILE...: runs install_NAME, unless its stamp says it was done from these very files.
step() {
  local name=$1 want start=$SECONDS
  shift
  want=$(cat tools/setup_env.sh "$@" | sha256sum)
  [ "$(cat "$stamps/$name" 2>/dev/null)" != "$want" ] || return 0
  rm -f "$stamps/$name"
  clear_half_installed
  "install_$name"
  echo "$want" >"$stamps/$name.new"
  mv "$stamps/$name.new" "$stamps/$name"
  say "$name: $((SECONDS - start)) s"
}

[ -z "$python" ] && [ -x "$py" ] || command -v "${python:-python3}" >/dev/null ||
  fail "no ${python:-python3} here: apt-get install python3 python3-venv, or give PYTHON="
mkdir -p "$stamps"
exec 9>"$stamps/lock"
lock 9
[ -x "$py" ] || make_venv
if ! "$py" -m pip --version >/dev/null 2>&1; then # killed while the environment was being made
  clear_half_installed
  "$py" -m ensurepip >/dev/null ||
    fail "the Python of $venv does not work: remove it, or give another VENV="
fi
if [ -n "$python" ]; then
  version='import sys; print("%d.%d" % sys.version_info[:2])'
  [ "$("$python" -c "$version")" = "$("$py" -c "$version")" ] ||
    fail "$venv holds $("$py" -V), not $("$python" -V): remove it, or give another VENV="
fi
for name in "$@"; do
  case $name in
    base)
      step base requirements/{build,demo,detectron2}.txt
      step package setup.py <(pwd) # an environment that two clones share follows the one in use
      ;;
    web) step web requirements/web.txt ;;
    test) step test requirements/{test,mask2former}.txt ;;
    browser) step browser ;;
    minkowski) step minkowski requirements/{build,demo,minkowski}.txt ;;
    lint) step lint requirements/{build,lint}.txt ;;
    *) fail "no such step: $name" ;;
  esac
done
