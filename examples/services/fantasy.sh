#!/bin/sh
# A story of a picture, and a picture of the story, in one answer: ./fantasy.sh IN.png
set -eu
{ printf '{"image_base64": "'; base64 < "$1" | tr -d '\n'; printf '"}'; } |
  curl -sS "${GPUGATE_URL:-http://127.0.0.1:11434}/api/v1/fantasy/generate" \
    -H "Authorization: Bearer $GPUGATE_TOKEN" -H "Content-Type: application/json" -d @-
