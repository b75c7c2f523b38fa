"""What the Python functions are given, made ready for the analyses: a model or its name, images, videos, settings as keywords."""

import inspect
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

from mask_impact.analyses import settings
from mask_impact.analyses.observer import Observer
from mask_impact.errors import need
from mask_impact.models import loading
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.images import Picture
from mask_impact.prompts.videos import Clip, read_visuals


def takes_settings(command: str, **defaults: Any) -> Callable:
    """Gives a function of **settings the signature and the help of those that the command takes."""

    def complete(function: Callable) -> Callable:
        taken = settings.of_command(command)
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        keyword = inspect.Parameter.KEYWORD_ONLY
        named = [inspect.Parameter(one.name, keyword, default=defaults.get(one.name, one.default)) for one in taken]
        function.__signature__ = signature.replace(parameters=[*own, *named])
        lines = [f"    {one.name} ({defaults.get(one.name, one.default)!r}): {one.help}" for one in taken]
        function.__doc__ = inspect.cleandoc(function.__doc__) + "\n\nSettings (default):\n\n" + "\n".join(lines) + "\n"
        return function

    return complete


def model_of(model: LoadedModel | str | PathLike) -> LoadedModel:
    """A model's name is as good as the model; load it yourself where you use it more than once."""
    need(
        "the model",
        model,
        (LoadedModel, str, PathLike),
        "one of mask_impact.load or mask_impact.wrap, or the name of one",
    )
    return model if isinstance(model, LoadedModel) else loading.load(str(model))


def several(images: Any) -> tuple[Any, ...]:
    """A single image where several may stand: a path, or what has pixels."""
    single = isinstance(images, str | PathLike) or hasattr(images, "__array__") or hasattr(images, "getpixel")
    return (images,) if single or not isinstance(images, Iterable) else tuple(images)


def observer_of(observer: Observer | None) -> Observer | None:
    """An observer that is none is told at once."""
    need("`observer`", observer, (Observer, type(None)), "an Observer, or None")
    return observer


def several_videos(videos: Any) -> tuple[Any, ...]:
    """A single video where several may stand: a path, an array of frames, or a list of frames that are no paths."""
    if isinstance(videos, str | PathLike) or hasattr(videos, "__array__") or not isinstance(videos, Iterable):
        return (videos,)
    videos = tuple(videos)
    frames = all(hasattr(one, "getpixel") or getattr(one, "ndim", 4) < 4 for one in videos)
    return (list(videos),) if videos and frames else videos


def pictures_of(images: Any, chosen: settings.RunSettings, videos: Any = ()) -> tuple[Picture | Clip, ...]:
    """The images and, behind them, the videos."""
    return read_visuals(several(images), several_videos(videos), chosen)
