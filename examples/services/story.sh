#!/bin/sh
# A story, as Server-Sent Events: `story` with each piece, then `done`.
set -eu
curl -sS --fail-with-body --no-buffer "${GPUGATE_URL:-http://127.0.0.1:11434}/api/v1/story/generate" \
  -H "Authorization: Bearer $GPUGATE_TOKEN" -H "Content-Type: application/json" \
  -d '{"prompt": "a lighthouse keeper who collects echoes"}'
