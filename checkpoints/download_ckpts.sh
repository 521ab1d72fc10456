#!/usr/bin/env bash
# Fetches official weights into this folder. Goes on with a part that is there already, and checks what it got.
#
#   checkpoints/download_ckpts.sh              all four of SAM 2.1 (Apache License 2.0)
#   checkpoints/download_ckpts.sh tiny large   some of them
#   checkpoints/download_ckpts.sh sam3         SAM 3, into the folder sam3 (SAM License; access is granted on the hub)
#
# SAM2_CHECKPOINT_URL names another place that holds SAM 2.1's files (a mirror, or file:///some/folder).
# HF_ENDPOINT names another hub. The token is HF_TOKEN, or the one that hf auth login has stored.
set -euo pipefail
cd "$(dirname "$0")"

url=${SAM2_CHECKPOINT_URL:-https://dl.fbaipublicfiles.com/segment_anything_2/092824}
hub=${HF_ENDPOINT:-https://huggingface.co}
hub=${hub%/}
status=0

# fetch ADDRESS FILE OPTION…: into FILE.part, going on where it ends; sets http to the answer's number, 000 for none
fetch() {
  local address=$1 file=$2
  shift 2
  http=$(curl --fail --location --retry 3 --continue-at - --output "$file.part" --write-out '%{http_code}' "$@" "$address")
}

damaged() {
  mv "$1" "$1.part"
  echo "error: $1 is damaged; it was moved to $1.part. Delete that and run this again." >&2
  status=1
}

sam2() {
  local file=$1
  if [ ! -e "$file" ]; then
    echo "fetching $file (Apache License 2.0)"
    if ! fetch "$url/$file" "$file" --progress-bar; then
      echo "error: $file could not be fetched from $url. Without a network, copy the file here by hand from a machine" \
        "that has one (the addresses are in the README of github.com/facebookresearch/sam2), or run this again to go on." >&2
      status=1
      return
    fi
    mv "$file.part" "$file"
  fi
  # the official files are zip archives with their table of contents at the end: a cut or altered one fails the check
  if python3 -c 'import sys, zipfile; sys.exit(zipfile.ZipFile(sys.argv[1]).testzip() is not None)' "$file" 2>/dev/null; then
    echo "$file is whole"
  else
    damaged "$file"
  fi
}

token() {
  local stored=${HF_TOKEN_PATH:-${HF_HOME:-$HOME/.cache/huggingface}/token}
  echo "${HF_TOKEN:-$(cat "$stored" 2>/dev/null || true)}"
}

# The header is read from a file, so that other users of the machine do not see it among the processes.
from_hub() {
  local secret
  secret=$(token)
  if [ -n "$secret" ]; then
    fetch "$hub/$1" "$2" --header @<(echo "Authorization: Bearer $secret") "${@:3}"
  else
    fetch "$hub/$1" "$2" "${@:3}"
  fi
}

not_from_hub() {
  case $http in
    401) echo "error: the hub asks who you are. Log in with 'hf auth login' (pip install huggingface_hub), or set HF_TOKEN to" \
      "a token that may read gated repositories, and run this again." ;;
    403) echo "error: your account has no access to facebook/sam3 yet. Ask for it on https://huggingface.co/facebook/sam3," \
      "wait until it is granted, and run this again." ;;
    *) echo "error: $1 could not be fetched from $hub. Without a network, copy the folder of facebook/sam3 to" \
      "$PWD/sam3 by hand from a machine that has one, or run this again to go on." ;;
  esac >&2
  status=1
}

# Of the hub's list: name, kind of checksum, checksum. Large files have SHA-256, small ones git's. sam3.pt holds the same
# weights again, and README.md is the hub's own page.
hub_files() {
  python3 -c '
import json, re, sys
for file in json.load(open(sys.argv[1])):
    name = file["path"]
    if file["type"] == "file" and re.fullmatch(r"\w[\w.-]*", name) and not name.endswith((".pt", "README.md")):
        print(name, *(("sha256", file["lfs"]["oid"]) if "lfs" in file else ("git", file["oid"])))
' "$1"
}

matches() {
  python3 -c '
import hashlib, os, sys
name, kind, expected = sys.argv[1:]
found = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % os.path.getsize(name))
with open(name, "rb") as file:
    while part := file.read(1 << 20):
        found.update(part)
sys.exit(found.hexdigest() != expected)
' "$@"
}

sam3() {
  echo "SAM 3's weights are under the SAM License: https://github.com/facebookresearch/sam3/blob/main/LICENSE"
  echo "Adapters trained on them and weights merged with them are derivative works under the same licence."
  mkdir -p sam3
  rm -f sam3/.files.part
  if ! from_hub api/models/facebook/sam3/tree/main sam3/.files --silent; then
    not_from_hub "the list of facebook/sam3's files"
    return
  fi
  local name kind checksum files
  if ! files=$(hub_files sam3/.files.part 2>/dev/null) || [[ $files != *config.json* ]]; then
    echo "error: $hub gave no list of facebook/sam3's files" >&2
    status=1
    return
  fi
  rm sam3/.files.part
  while read -r name kind checksum; do
    if [ ! -e "sam3/$name" ]; then
      echo "fetching sam3/$name"
      if ! from_hub "facebook/sam3/resolve/main/$name" "sam3/$name" --progress-bar; then
        not_from_hub "sam3/$name"
        return
      fi
      mv "sam3/$name.part" "sam3/$name"
    fi
    if matches "sam3/$name" "$kind" "$checksum"; then
      echo "sam3/$name is whole"
    else
      damaged "sam3/$name"
    fi
  done <<<"$files"
}

models=${*:-tiny small base_plus large}
for model in $models; do
  case $model in
    tiny | small | base_plus | large | sam3) ;;
    *) echo "error: '$model' is none of tiny, small, base_plus, large, sam3" >&2; exit 2 ;;
  esac
done
for model in $models; do
  if [ "$model" = sam3 ]; then sam3; else sam2 "sam2.1_hiera_$model.pt"; fi
done
exit $status
