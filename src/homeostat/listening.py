"""The sections of the settings about what listens: the server, its keys, and the page.

It takes what `homeostat.toml` and variables say. It gives frozen values; `settings` holds them with
the other sections.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from homeostat.fields import Duration, Section, lifted


class Key(Section):
    """One API key; only its hash is stored."""

    name: str = Field(description="Who holds it; shown in logs.")
    role: Literal["viewer", "predict", "feedback", "admin"] = Field(
        description="What it may do: a viewer reads, and the others may do what they are called "
        "as well, an admin all."
    )
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the key, in hex.")


class Serving(Section):
    """The HTTP service."""

    host: str = Field("127.0.0.1", description="Address that `homeostat serve` listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port that `homeostat serve` listens on.")
    workers: int = Field(1, ge=1, description="Server processes.")
    max_body: int = Field(
        10_000_000, ge=1, description="Largest request body, bytes; larger ones get 413."
    )
    max_rows: int = Field(10_000, ge=1, description="Most rows in one request; more get 413.")
    max_waiting: int = Field(
        20_000,
        ge=1,
        description="Rows that may wait for their answers, and labels beside them; more get 429.",
    )
    max_reception: int = Field(
        100_000_000,
        ge=1,
        description="Bytes of bodies that come in parts, from the first part until the answer, of "
        "all requests together; what finds no room gets 429.",
    )
    timeout: Duration = Field(
        timedelta(seconds=30),
        description="Longest time for a body to arrive, and for its answer; then 503.",
    )
    max_skew: Annotated[Duration | None, BeforeValidator(lifted)] = Field(
        timedelta(hours=1),
        description="How far occurred_at may lie from the server's clock; 'none' lifts the bound.",
    )
    watch: Duration = Field(
        timedelta(seconds=0.5), description="How often the server looks for a new release."
    )
    log: Literal["none", "requests", "values"] = Field(
        "none",
        description="Requests that went well in the log: none, a line each, or with the features' "
        "values. What was refused or failed has a line always.",
    )
    insecure: bool = Field(
        False, description="Answer without keys on addresses and names that are not loopback."
    )
    keys: tuple[Key, ...] = Field((), description="API keys; `homeostat key` makes one.")


class Run(Section):
    """The loop on its schedule."""

    every: Duration = Field(timedelta(days=1), description="How often `homeostat run` steps.")
    page: bool = Field(True, description="Whether `homeostat run` serves the page.")
    host: str = Field("127.0.0.1", description="Address that the page listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port that the page listens on.")
    servers: tuple[str, ...] = Field(
        (),
        description="Servers, as http://HOST:PORT, whose /metrics the page shows; none named: the "
        "one of the section serving.",
    )
    key: str = Field(
        "",
        description="Key with which their /metrics is read, where they have keys; better given as "
        "the variable HOMEOSTAT_RUN__KEY.",
    )
