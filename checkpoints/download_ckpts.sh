#!/usr/bin/env bash
# Fetches official SAM 2.1 checkpoints into this folder. Goes on with a part that is there already, and checks what it got.
#
#   checkpoints/download_ckpts.sh              all four
#   checkpoints/download_ckpts.sh tiny large   some of them
#
# SAM2_CHECKPOINT_URL names another place that holds the same files (a mirror, or file:///some/folder).
set -euo pipefail
cd "$(dirname "$0")"

url=${SAM2_CHECKPOINT_URL:-https://dl.fbaipublicfiles.com/segment_anything_2/092824}
for size in "${@:-tiny small base_plus large}"; do sizes+=($size); done

status=0
for size in "${sizes[@]}"; do
  case $size in
    tiny | small | base_plus | large) file=sam2.1_hiera_$size.pt ;;
    *) echo "error: '$size' is none of tiny, small, base_plus, large" >&2; exit 2 ;;
  esac
  if [ ! -e "$file" ]; then
    echo "fetching $file"
    if ! curl --fail --location --retry 3 --continue-at - --progress-bar --output "$file.part" "$url/$file"; then
      echo "error: $file could not be fetched from $url. Without a network, copy the file here by hand from a machine" \
        "that has one (the addresses are in the README of github.com/facebookresearch/sam2), or run this again to go on." >&2
      status=1
      continue
    fi
    mv "$file.part" "$file"
  fi
  # the official files are zip archives with their table of contents at the end: a cut or altered one fails the check
  if python3 -c 'import sys, zipfile; sys.exit(zipfile.ZipFile(sys.argv[1]).testzip() is not None)' "$file" 2>/dev/null; then
    echo "$file is whole"
  else
    mv "$file" "$file.part"
    echo "error: $file is damaged; it was moved to $file.part. Delete that and run this again." >&2
    status=1
  fi
done
exit $status
