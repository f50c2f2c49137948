"""`Unpack`, for annotations. The real module is the base of image and audio processors."""

from typing_extensions import Unpack


class ProcessorMixin:
    pass


class ProcessingKwargs(dict):
    pass


ImagesKwargs = VideosKwargs = AudioKwargs = TextKwargs = ProcessingKwargs
