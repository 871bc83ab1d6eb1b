#!/bin/sh
# A question about code; the model's answer comes line by line, as from Ollama's /api/chat.
set -eu
curl -sS --fail-with-body --no-buffer "${GPUGATE_URL:-http://127.0.0.1:11434}/api/v1/code/assist" \
  -H "Authorization: Bearer $GPUGATE_TOKEN" -H "Content-Type: application/json" \
  -d '{"code": "def f(x): return x * 2", "question": "What does it do?", "language": "python"}'
