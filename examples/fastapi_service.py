"""A service around one bundle: post a picture, get its classes.

    pip install 'accel-engines[ort,images]' fastapi uvicorn
    python examples/fastapi_service.py engines/mobilenetv3_small.accel
    curl --data-binary @cat.png http://127.0.0.1:8000/classify

The engine is called on one thread of its own, so that `/health` is answered meanwhile; more processes use more cores or GPUs.
"""

import asyncio
import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastapi
import numpy as np

import accel
from accel.engines import Bundle
from accel.errors import AccelError

LARGEST = 10_000_000  # bytes of a picture


def create_app(bundle: Path, top: int = 3) -> fastapi.FastAPI:
    labels = Bundle.open(bundle).labels
    thread = ThreadPoolExecutor(max_workers=1)

    @contextlib.asynccontextmanager
    async def lifespan(app: fastapi.FastAPI):
        with accel.load(bundle) as app.state.engine:
            yield

    app = fastapi.FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"engine": str(app.state.engine.variant), "device": app.state.engine.device}

    @app.post("/classify")
    async def classify(request: fastapi.Request) -> list[dict[str, str | float]]:
        if int(request.headers.get("content-length", LARGEST + 1)) > LARGEST:
            raise fastapi.HTTPException(413, f"send the size of the picture, at most {LARGEST} bytes")
        picture = await request.body()
        try:
            (logits,) = await asyncio.get_running_loop().run_in_executor(thread, app.state.engine.predict, picture)
        except AccelError as error:
            raise fastapi.HTTPException(400, str(error)) from error
        odds = np.exp(logits - logits.max())
        best = np.argsort(-odds)[:top]
        return [{"label": labels[index], "probability": float(odds[index] / odds.sum())} for index in best]

    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(create_app(Path(sys.argv[1])), host="127.0.0.1", port=8000)
