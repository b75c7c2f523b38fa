"""How the page is served, as data: addresses and bounds with their defaults. Light: no gradio, no models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Serving:
    """host: an address of this machine; port: None takes the first free one from 7860; share: whether a public link is made, too;
    open_browser: whether the page is opened; max_upload_mb: most MB of a picture's file."""

    host: str = "127.0.0.1"
    port: int | None = None
    share: bool = False
    open_browser: bool = False
    max_upload_mb: float = 20.0
