"""The HTTP service: what a client sends goes to the predictor, what it says goes back.

`api` takes a project folder or a predictor with settings, and gives the FastAPI application. The
files beside it each hold one concern: errors, guards, metrics, and the OpenAPI document.
"""
