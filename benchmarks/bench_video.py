"""What a run with a video costs beside one with a text of as many tokens, with the demo model: forward passes and processor time.

    python benchmarks/bench_video.py                  64 frames
    python benchmarks/bench_video.py --frames 8 32

Frames are blocks of random colours. The text is one sentence again and again, cut to the video's number of tokens. Both are
default runs of one produced token: the map of all tokens in all layers, and what the answer used. The runs take turns, and the
medians of processor time are shown.
"""

import argparse
import statistics
import time

import numpy as np

import mask_impact
from mask_impact.prompts.encoding import encode

QUESTION = "What color is the star?"
SENTENCE = "the cat sat on the mat and the dog ran to the red house by the lake "
SIDE, BLOCKS = 128, 4  # pixels of a frame, and blocks on each side
TURNS = 3


def film(n_frames: int) -> np.ndarray:
    """uint8 [n, SIDE, SIDE, 3]"""
    colours = np.random.default_rng(0).integers(0, 256, (n_frames, BLOCKS, BLOCKS, 3), dtype=np.uint8)
    return colours.repeat(SIDE // BLOCKS, axis=1).repeat(SIDE // BLOCKS, axis=2)


def text_of(model, n_tokens: int) -> str:
    """Of so many tokens with its template, or some fewer."""
    text = SENTENCE * (1 + n_tokens // len(SENTENCE.split()))
    while (too_many := encode(model, text).n_tokens - n_tokens) > 0:
        text = text[: -max(1, too_many)]
    return text


def main() -> None:
    """Prints a line for each number of frames."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[64])
    model = mask_impact.load("demo", dtype="float32")
    for n_frames in parser.parse_args().frames:
        how = {"videos": film(n_frames), "video_fps": 2, "video_frames": n_frames}
        asks = {"video": lambda how=how: mask_impact.analyze(model, QUESTION, num_tokens=1, **how)}
        n_tokens = asks["video"]().n_prompt
        text = text_of(model, n_tokens)
        asks["text"] = lambda text=text: mask_impact.analyze(model, text, num_tokens=1)
        spent: dict[str, list[float]] = {name: [] for name in asks}
        found = {}
        for _ in range(TURNS):
            for name, ask in asks.items():
                begun = time.process_time()
                found[name] = ask()
                spent[name].append(time.process_time() - begun)
        seconds = {name: statistics.median(one) for name, one in spent.items()}
        forwards = {name: one.answer.targets[0].forwards for name, one in found.items()}
        print(
            f"{n_frames} frames, {n_tokens} tokens (text: {found['text'].n_prompt}): {forwards['video']:.1f} forward passes "
            f"(text: {forwards['text']:.1f}), {seconds['video']:.1f} s (text: {seconds['text']:.1f}), "
            f"{seconds['video'] / seconds['text']:.2f} times as long"
        )


if __name__ == "__main__":
    main()
