"""What is appended to a response whose pod is lost."""

from __future__ import annotations

import json

import pytest
from aiohttp.test_utils import make_mocked_request

from gpugate.proxy.forwarder import stream_error_tail
from gpugate.proxy.request_context import RequestContext
from gpugate.relay.response_policy import Truncation


@pytest.mark.parametrize(
    ("filler", "tail", "completes"), [(4, b"", True), (0, b"", False), (4, b'{"a"', False), (4, b"}", False)]
)
def test_json(filler, tail, completes):
    """Becomes whole with the error only if nothing but filler has left."""
    context = RequestContext(make_mocked_request("POST", "/api/chat"), "id", "/api/chat", "", "")
    context.bytes_sent = filler
    found = stream_error_tail(context, Truncation(200, "application/json; charset=utf-8", tail))
    assert completes is (found is not None)
    if found is not None:
        assert found.clean_end
        assert "lost" in json.loads(found.payload)["error"]
