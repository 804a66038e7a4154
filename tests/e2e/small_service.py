"""An LLM service of a few lines, wrapped in one: ``python small_service.py tracerouter.yaml PORT``."""

import json
import sys

from aiohttp import web

import tracerouter
from tracerouter.web import setup


async def answer(request: web.Request) -> web.StreamResponse:
    """Answer a chat request, plain or streamed, as the service always did."""
    message = {"role": "assistant", "content": "from the service itself"}
    if not (await request.json()).get("stream"):
        return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    chunk = {"choices": [{"index": 0, "delta": message, "finish_reason": "stop"}]}
    await response.write(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode())
    return response


app = web.Application()
app.router.add_post("/v1/chat/completions", answer)
setup(app, tracerouter.load(sys.argv[1]), wrap=["/v1/chat/completions"])  # the one line
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), handler_cancellation=True)
