"""The HTTP service: Open Inference Protocol V2, pictures and metrics on Starlette and uvicorn. Neither is imported before it is used."""
