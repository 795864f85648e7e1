# Functions for ./demo and ./test: create the virtual environment of the project, and install Debian packages if allowed.
# Requires only bash and python3 (3.10 or later).

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# find_python: prints the path of a suitable Python. The Python of the distribution is preferred, because python3-gi and
# JetPack's OpenCV and TensorRT exist only for it.
find_python() {
  local candidate
  for candidate in /usr/bin/python3 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "expected Python 3.10 or later, found $(python3 --version 2>&1 || true). On Debian and Ubuntu: apt-get install python3"
}

# apt_install PACKAGE...: installs the packages that are missing. Returns 1 if some remain missing, and lists them.
apt_install() {
  local package candidate missing=() available=() absent=() sudo=()
  command -v dpkg-query >/dev/null || { say "this is not a Debian system, so these packages are not installed: $*"; return 1; }
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      sudo=(sudo -n)
    else
      say "missing Debian packages: ${missing[*]}"
      say "  to install them, run: sudo apt-get install --no-install-recommends ${missing[*]}"
      return 1
    fi
  fi
  local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0)
  "${apt[@]}" update >/dev/null 2>&1 || say "apt-get update failed, so the existing package lists are used"
  # One package that this distribution lacks must not keep apt-get from installing the others: Ubuntu has no `chromium`.
  for package in "${missing[@]}"; do
    # sed reads to the end: `grep -q` would end apt-cache by SIGPIPE, which counts as a failure with `set -o pipefail`.
    candidate=$(LC_ALL=C apt-cache policy "$package" | sed -n 's/^ *Candidate: //p')
    case $candidate in '' | '('*) absent+=("$package") ;; *) available+=("$package") ;; esac
  done
  if [ ${#available[@]} -gt 0 ]; then
    say "installing Debian packages: ${available[*]}"
    "${apt[@]}" install -y --no-install-recommends "${available[@]}" >/dev/null || {
      say "apt-get could not install: ${available[*]}"
      return 1
    }
  fi
  [ ${#absent[@]} -eq 0 ] || { say "the package lists of this system do not contain: ${absent[*]}"; return 1; }
}

# show_progress: reads the output of pip, and prints the name and size of each download of at least 1 MB.
show_progress() {
  sed -un -E -e 's/^ *(Downloading|Using cached) ([^-]+)-([^-]+)-.*\(([0-9.]+ MB)\).*/  \2 \3, \4/p' \
    -e 's/^Installing collected packages.*/  unpacking/p' >&2
}

# make_venv FOLDER EXTRA...: installs the project with the extras in a virtual environment, unless it is up to date.
make_venv() {
  local venv=$1 python stamp extras=() extra module began=$SECONDS
  shift
  python=$(find_python)
  # System packages stay visible, because python3-gi and JetPack's builds of OpenCV and TensorRT are system packages.
  if [ ! -x "$venv/bin/pip" ]; then
    "$python" -c 'import ensurepip' 2>/dev/null || apt_install python3-venv ||
      die "Python's venv module is incomplete; install the package python3-venv, and run this command again"
    say "creating a virtual environment in $venv"
    "$python" -m venv --system-site-packages "$venv"
  fi
  stamp=$("$venv/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(open("pyproject.toml", "rb").read() + " ".join(sys.argv[1:]).encode()).hexdigest())' "$PWD" "$@")
  [ "$(cat "$venv/.vision-installed" 2>/dev/null)" != "$stamp" ] || return 0
  for extra in "$@"; do
    case $extra in opencv) module=cv2 ;; onnx) module=onnxruntime ;; *) module= ;; esac
    # A wheel must not shadow a build that the system provides (docs/jetson.md).
    if [ -n "$module" ] && "$venv/bin/python" -c "import $module" 2>/dev/null; then continue; fi
    extras+=("$extra")
  done
  say "installing Python packages into $venv"
  # Without bytecode, the packages are smaller. Python compiles the modules that it imports.
  PYTHONUNBUFFERED=1 "$venv/bin/python" -m pip install --no-compile --progress-bar off --disable-pip-version-check \
    -e ".$(IFS=,; [ ${#extras[@]} -eq 0 ] || printf '[%s]' "${extras[*]}")" | show_progress ||
    die "pip could not install the packages; check that this machine can reach a package index"
  say "installed: $(du -sm "$venv" | cut -f1) MB in $((SECONDS - began)) s"
  printf '%s' "$stamp" >"$venv/.vision-installed"
}
