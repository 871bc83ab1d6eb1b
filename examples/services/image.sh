#!/bin/sh
# A picture: ./image.sh OUT.png
set -eu
out=${1:?usage: ./image.sh OUT.png}
answer=$(curl -sS --fail-with-body "${GPUGATE_URL:-http://127.0.0.1:11434}/api/v1/image/generate" \
  -H "Authorization: Bearer $GPUGATE_TOKEN" -H "Content-Type: application/json" \
  -d '{"prompt": "a castle in the clouds", "width": 512, "height": 512}') || {
  printf '%s\n' "$answer" >&2
  exit 1
}
printf '%s' "$answer" | sed 's/.*"image_base64":"\([^"]*\)".*/\1/' | base64 -d > "$out"
