#!/bin/sh
# A story of a picture, and a picture of the story, in one answer: ./fantasy.sh IN.png
set -eu
picture=${1:?usage: ./fantasy.sh IN.png}
{ printf '{"image_base64": "'; base64 < "$picture" | tr -d '\n'; printf '"}'; } |
  curl -sS --fail-with-body "${GPUGATE_URL:-http://127.0.0.1:11434}/api/v1/fantasy/generate" \
    -H "Authorization: Bearer $GPUGATE_TOKEN" -H "Content-Type: application/json" -d @-
