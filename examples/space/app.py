"""The page of mask-impact as a Hugging Face Space. MODEL names another model than the demo, PORT another port than 7860."""

import os
from pathlib import Path

import mask_impact
from mask_impact.app.desk import Desk
from mask_impact.app.page import serve
from mask_impact.app.serving import Serving

EXAMPLE = ("What color is the star?", str(Path(__file__).parent / "shapes.png"))

if __name__ == "__main__":
    desk = Desk(mask_impact.load(os.environ.get("MODEL", "demo")))
    host = "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"
    page, address = serve(desk, Serving(host=host, port=int(os.environ.get("PORT", "7860"))), EXAMPLE)
    print(f"Serving at {address}", flush=True)
    page.block_thread()
