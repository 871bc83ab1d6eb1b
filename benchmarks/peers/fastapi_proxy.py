"""The plain FastAPI proxy: httpx on uvicorn[standard], a token checked for each request.

Runs in an environment of its own, so it imports nothing of the benchmark.
"""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import jwt
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

NOT_FORWARDED = {"host", "authorization", "connection", "content-length", "transfer-encoding"}
NOT_RETURNED = {"connection", "content-length", "transfer-encoding"}


def build(upstream: str, secret: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=upstream, timeout=None, limits=limits) as client:
            app.state.client = client
            yield

    async def authorize(request: Request) -> None:
        try:
            token = request.headers.get("Authorization", "").removeprefix("Bearer ")
            jwt.decode(token, secret, algorithms=["HS256"])
        except jwt.PyJWTError:
            raise HTTPException(401, "unauthorized") from None

    app = FastAPI(lifespan=lifespan)

    @app.api_route(
        "/{path:path}", methods=["GET", "HEAD", "POST", "DELETE"], dependencies=[Depends(authorize)]
    )
    async def proxy(path: str, request: Request) -> StreamingResponse:
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in NOT_FORWARDED
        }
        client: httpx.AsyncClient = request.app.state.client
        asked = client.build_request(
            request.method,
            "/" + path,
            params=request.query_params,
            headers=headers,
            content=await request.body(),
        )
        answer = await client.send(asked, stream=True)
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in NOT_RETURNED}
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, kept, background=BackgroundTask(answer.aclose)
        )

    return app


def main(port: str, upstream: str) -> None:
    uvicorn.run(
        build(upstream, os.environ["BENCH_SECRET"]),
        host="127.0.0.1",
        port=int(port),
        access_log=False,
        log_level="warning",
        backlog=4096,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
