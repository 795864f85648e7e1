# Sourced by ./demo and ./test: a virtual environment of the project's own, and Debian packages where that is allowed.
# Needs bash and python3 (3.10 or newer), nothing else.

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# The distribution's own Python comes first: python3-gi and JetPack's OpenCV and TensorRT exist only for that one.
find_python() {
  local candidate
  for candidate in /usr/bin/python3 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "Python 3.10 or newer is needed; found $(python3 --version 2>&1 || true). On Debian and Ubuntu: apt-get install python3"
}

# apt_install PACKAGE...: installs what is not there yet. Without root or sudo it says what is missing and returns 1.
apt_install() {
  local package missing=() sudo=()
  command -v dpkg-query >/dev/null || { say "not a Debian system, so not installed here: $*"; return 1; }
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      sudo=(sudo -n)
    else
      say "missing Debian packages: ${missing[*]}"
      say "  to install them: sudo apt-get install --no-install-recommends ${missing[*]}"
      return 1
    fi
  fi
  say "installing Debian packages: ${missing[*]}"
  local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0)
  "${apt[@]}" update >/dev/null 2>&1 || say "apt-get update failed; trying with the package lists that are there"
  "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null || {
    say "apt-get could not install: ${missing[*]}"
    return 1
  }
}

# Shows what pip downloads, with sizes; small packages are left out.
show_progress() {
  sed -un -E -e 's/^ *(Downloading|Using cached) ([^-]+)-([^-]+)-.*\(([0-9.]+ MB)\).*/  \2 \3, \4/p' \
    -e 's/^Installing collected packages.*/  unpacking/p' >&2
}

# make_venv FOLDER EXTRA...: the environment with the project in it; quick when nothing has changed.
make_venv() {
  local venv=$1 python stamp extras=() extra module began=$SECONDS
  shift
  python=$(find_python)
  # The packages of the system stay visible, for python3-gi and for JetPack's builds of OpenCV and TensorRT.
  if [ ! -x "$venv/bin/pip" ]; then
    "$python" -c 'import ensurepip' 2>/dev/null || apt_install python3-venv ||
      die "Python's venv module is not complete: install the package python3-venv and try again"
    say "making a virtual environment in $venv"
    "$python" -m venv --system-site-packages "$venv"
  fi
  stamp=$("$venv/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(open("pyproject.toml", "rb").read() + " ".join(sys.argv[1:]).encode()).hexdigest())' "$PWD" "$@")
  [ "$(cat "$venv/.vision-installed" 2>/dev/null)" != "$stamp" ] || return 0
  for extra in "$@"; do
    case $extra in opencv) module=cv2 ;; onnx) module=onnxruntime ;; *) module= ;; esac
    # A wheel must not shadow a build that the system brings (docs/jetson.md).
    if [ -n "$module" ] && "$venv/bin/python" -c "import $module" 2>/dev/null; then continue; fi
    extras+=("$extra")
  done
  say "installing Python packages into $venv"
  # Without bytecode the packages are smaller; Python compiles what it imports.
  PYTHONUNBUFFERED=1 "$venv/bin/python" -m pip install --no-compile --progress-bar off --disable-pip-version-check \
    -e ".$(IFS=,; [ ${#extras[@]} -eq 0 ] || printf '[%s]' "${extras[*]}")" | show_progress ||
    die "pip could not install the packages; is a package index reachable from here?"
  say "installed: $(du -sm "$venv" | cut -f1) MB in $((SECONDS - began)) s"
  printf '%s' "$stamp" >"$venv/.vision-installed"
}
