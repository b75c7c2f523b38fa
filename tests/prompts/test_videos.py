"""From files, folders, lists and arrays to frames: taken by the time they are seen at, upright, or refused in one line."""

import math
import struct

import numpy as np
import pytest
from PIL import Image

from mask_impact.errors import InputError, UsageError
from mask_impact.prompts import films, videos
from mask_impact.prompts.sampling import Timeline, spread, take
from mask_impact.prompts.videos import read_video


def shade(number, size=(24, 16)):
    """A frame that tells its number."""
    return Image.new("RGB", size, (20 * number, 20 * number, 20 * number))


def numbers_of(clip):
    return [round(float(np.asarray(frame).mean()) / 20) for frame in clip.frames]


def animation(path, n=8, lengths=250, **how):
    frames = [shade(number) for number in range(n)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=lengths, **how)
    return str(path)


# --- when -------------------------------------------------------------------------------------------------------------------


def library_rule(n_frames, rate, fps, least=4, most=768):
    """Which frames Qwen3-VL's own processor takes of a video of one rate, as its documentation says."""
    n = min(max(int(n_frames / rate * fps), least), most, n_frames)
    return [round(number * (n_frames - 1) / (n - 1)) if n > 1 else 0 for number in range(n)]


@pytest.mark.parametrize("n", [1, 2, 3, 30, 47, 100])
@pytest.mark.parametrize(("rate", "fps"), [(25, 2), (30, 1), (8, 8), (4, 0.5)])
def test_a_video_of_one_rate_gives_the_frames_that_the_model_s_own_processor_takes(n, rate, fps):
    taken = take(Timeline(np.arange(n) / rate, n / rate), fps, 768)
    assert list(taken.numbers) == library_rule(n, rate, fps)
    assert taken.seconds == pytest.approx([number / rate for number in taken.numbers])


def test_where_frames_last_for_different_times_each_moment_gives_the_frame_seen_then():
    """The same as of the video in which each frame stands as often as it lasts ticks."""
    lengths = np.array([1, 4, 1, 2, 8])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * 0.1
    taken = take(Timeline(starts, 1.6), 5, 768)
    every = np.repeat(np.arange(5), lengths)
    assert list(taken.numbers) == [every[tick] for tick in library_rule(16, 10, 5)]
    by_number = np.linspace(0, 4, len(taken.numbers)).round().astype(int)  # which a count of frames would give
    assert list(taken.numbers) != by_number.tolist()


def test_a_budget_of_frames_is_spread_over_all_of_the_time():
    taken = take(Timeline(np.arange(3000) / 30, 100.0), 2, 8)
    assert (len(taken.numbers), taken.wanted) == (8, 200)
    assert (taken.numbers[0], taken.numbers[-1]) == (0, 2999)
    assert np.ptp(np.diff(taken.seconds)) < 0.1
    assert spread(10, 2.0, 4).numbers == (0, 3, 6, 9)
    assert spread(3, 2.0, 4).seconds == (0, 0.5, 1)


# --- what -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animations_are_read_by_pillow(tmp_path, name):
    how = {"lossless": True} if name == "a.webp" else {}
    clip = read_video(animation(tmp_path / name, **how), fps=2)
    assert numbers_of(clip) == [0, 2, 5, 7]
    assert clip.seconds == (0, 0.5, 1.25, 1.75)
    assert clip.note == f"Of the 8 frames of video '{tmp_path / name}' in 2.0 s 4 are taken, evenly by time"
    assert read_video(str(tmp_path / name), fps=4).note == ""


def test_equal_frames_that_pillow_joins_keep_their_time(tmp_path):
    frames = [shade(number) for number in (0, 0, 0, 0, 0, 5, 5, 5)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=250)
    with Image.open(tmp_path / "a.gif") as file:
        assert file.n_frames < 8
    clip = read_video(tmp_path / "a.gif", fps=4)
    assert numbers_of(clip) == [0, 0, 0, 0, 0, 5, 5, 5]
    assert clip.seconds == (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75)


def test_folders_lists_and_arrays_are_frames_one_after_the_other(tmp_path):
    for number in (0, 2, 10, 9):
        shade(number).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    clip = read_video(tmp_path)
    assert numbers_of(clip) == [0, 2, 9, 10]
    assert clip.seconds == (0, 0.5, 1, 1.5)
    frames = [shade(number) for number in range(5)]
    assert numbers_of(read_video(frames)) == [0, 1, 2, 3, 4]
    assert numbers_of(read_video(np.stack([np.asarray(one) for one in frames]), most=3)) == [0, 2, 4]


def test_frames_are_flat_upright_and_shrunk_as_images_are():
    clear = Image.new("RGBA", (24, 16), (0, 0, 0, 0))
    turned = shade(3)
    turned.getexif()[0x0112] = 6  # a quarter turn
    clip = read_video([clear, clear], max_resolution=12)
    assert np.asarray(clip.frames[0]).min() == 255
    assert (clip.frames[0].size, clip.size) == ((12, 8), (24, 16))
    assert read_video([turned]).size == (16, 24)


def test_what_is_no_video_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "text.mp4").write_text("this is no film at all")
    (tmp_path / "empty.mp4").write_bytes(b"")
    good = animation(tmp_path / "a.gif")
    (tmp_path / "cut.gif").write_bytes((tmp_path / "a.gif").read_bytes()[:200])
    (tmp_path / "nothing").mkdir()
    for source, said in (
        (tmp_path / "gone.mp4", "does not exist; an MP4"),
        (tmp_path / "text.mp4", "is in no format that can be read, or damaged"),
        (tmp_path / "empty.mp4", "is in no format that can be read, or damaged"),
        (tmp_path / "cut.gif", "cannot be read"),
        (tmp_path / "nothing", "is a folder without frames"),
        ("https://example.org/a.mp4", "is an address, and videos are not fetched"),
        ("/dev/zero", "it is a device, and only regular files are read"),
        ([], "has 0 frames"),
        (np.zeros((4, 4, 3), np.uint8), r"an array of uint8 \[4, 4, 3\] is no video"),
        ([shade(0), shade(1, (16, 16))], "frames of different sizes, 16 x 16 and 24 x 16 pixels"),
        (7, "a video is a path, a list of frames or a numpy array, not int"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            read_video(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="`video_fps` must be above 0"):
        read_video(good, fps=0)
    for name, value, said in (
        ("MOST_PIXELS", 100, "has frames of 24 x 16 pixels; 100 pixels at most"),
        ("MOST_SECONDS", 1.0, "lasts 2 s, and 1 s at most are read"),
        ("MOST_FRAMES", 4, "has 8 frames"),
        ("MOST_HELD", 1000, r"take 0 MiB, and 0 are allowed: take fewer \(`video_frames`\)"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(videos, name, value)
            with pytest.raises(InputError, match=said):
                read_video(good)


def test_a_film_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    import builtins

    (tmp_path / "a.mp4").write_bytes(struct.pack(">I", 32) + b"ftypisom" + bytes(24))
    real = builtins.__import__

    def without_av(name, *rest, **more):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(InputError, match=r"needs the package av \(PyAV\): pip install 'mask-impact\[video\]'; GIF"):
        read_video(tmp_path / "a.mp4")


# --- films ------------------------------------------------------------------------------------------------------------------


def film(path, n=40, rate=8, codec="mpeg4", size=(48, 32), times=None, every_key=10):
    """Frames of 6 levels of grey each; times: of presentation, in 1/1000 s."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", every_key
        if times is not None:
            from fractions import Fraction

            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(n):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 6 * number, np.uint8), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], stream.codec_context.time_base
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def numbers_in(clip):
    return [float(np.asarray(frame).mean()) / 6 for frame in clip.frames]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mpeg4"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
def test_films_give_the_frames_of_their_times(tmp_path, name, codec):
    pytest.importorskip("av")
    clip = read_video(film(tmp_path / name, codec=codec), fps=2)
    wanted = library_rule(40, 8, 2)
    assert clip.seconds == pytest.approx([number / 8 for number in wanted], abs=0.01)
    assert numbers_in(clip) == pytest.approx(wanted, abs=0.8)
    assert "Of the 40 frames" in clip.note
    assert "in 5.0 s 10 are taken" in clip.note


@pytest.mark.slow
def test_a_film_of_a_variable_rate_is_taken_by_its_times(tmp_path):
    pytest.importorskip("av")
    times = [0, 100, 200, 300, 2300, 2400, 2500, 4500]  # milliseconds
    clip = read_video(film(tmp_path / "a.mp4", n=8, times=times), fps=2)
    expected = [max(at for at, time in enumerate(times) if time <= 1000 * seconds + 20) for seconds in clip.seconds]
    assert numbers_in(clip) == pytest.approx(expected, abs=0.8)
    assert expected.count(3) > 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec", "pixels"), [("a.webm", "libvpx-vp9", "yuva420p"), ("a.mov", "png", "rgba")])
def test_what_is_transparent_in_a_film_becomes_white(tmp_path, name, codec, pixels):
    """The left half; the right one is black. From the begin, and from a key frame on."""
    av = pytest.importorskip("av")
    seen = np.zeros((32, 48, 4), np.uint8)
    seen[:, 24:, 3] = 255
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 48, 32, pixels, 4
        for _ in range(40):
            frame = av.VideoFrame.from_ndarray(seen, format="rgba").reformat(format=pixels)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = read_video(tmp_path / name, most=4)
    assert len(clip.frames) == 4
    for frame in clip.frames:
        shown = np.asarray(frame)
        assert shown[:, :20].min() > 250
        assert shown[:, 28:].max() < 5


def turned(path):
    """The film with a quarter turn in the header of its track."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    content[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(content))
    return path


@pytest.mark.slow
def test_a_film_s_rotation_is_honoured(tmp_path):
    """A quarter turn clockwise, as telephones write it: what was at the left comes to the top."""
    av = pytest.importorskip("av")
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24] = 255
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    clip = read_video(turned(tmp_path / "a.mp4"))
    assert clip.size == (32, 48)
    seen = np.asarray(clip.frames[0]).mean(axis=(1, 2))
    assert seen[:20].min() > 200
    assert seen[-20:].max() < 50


@pytest.mark.slow
def test_films_that_are_cut_or_have_no_pictures_are_refused_in_one_line(tmp_path):
    av = pytest.importorskip("av")
    content = film(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    for name in ("sound", "none"):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("aac", rate=16000)
            if name == "none":  # a track of pictures without one
                pictures = container.add_stream("mpeg4", rate=4)
                pictures.width, pictures.height, pictures.pix_fmt = 48, 32, "yuv420p"
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    for name, said in (
        ("cut", "cannot be read"),
        ("sound", "has no pictures, only sound"),
        ("none", "has no "),
    ):
        with pytest.raises(InputError, match=said) as caught:
            read_video(tmp_path / f"{name}.mp4")
        assert "\n" not in str(caught.value)
    big = film(tmp_path / "big.mp4", n=1, size=(7680, 4320))
    with pytest.raises(InputError, match="has frames of 7680 x 4320 pixels; 16,777,216 pixels at most"):
        read_video(big)


def test_only_containers_that_are_known_are_opened():
    heads = {b"\0\0\0 ftypisom": "mov", b"\x1aE\xdf\xa3": "matroska", b"RIFF\0\0\0\0AVI ": "avi"}
    heads |= {b"#EXTM3U\n": None, b"ffconcat version 1.0": None}
    for head, container in heads.items():
        assert films._container(head) == container
    assert math.log2(videos.MOST_PIXELS) == 24
