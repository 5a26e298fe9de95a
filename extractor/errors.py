"""Everything that can go wrong in the extractor, told apart by type.

ExtractorError
 ├ SpecError               a recipe that cannot work: the user's mistake
 ├ WeightsError            weights missing, unreachable, of another network or with other tensors
 ├ DeviceError             a device or a precision that this machine does not have
 ├ Abandoned               nobody wants any more what was being computed
 └ ImageError              permanent, about one image; its text is the reason the user reads
    ├ EmptyImageFile       no bytes at all
    ├ NotAnImage           no format that is read
    ├ TruncatedImage       cut off or corrupt: the header was read, the pixels were not
    ├ ImageTooLarge        the header claims more pixels than allowed (a decompression bomb)
    ├ ImageChanged         not the content any more that is meant
    ├ ImageTooSmall        smaller than every patch under the edge policy 'drop'
    └ DegenerateFeatures   the network gave NaN, infinity or a zero vector

An `OSError` of the storage itself (no such file, no permission, a lost mount) is none of these: it
passes through, because trying again may help. `NoRoom` is one, of the disk for temporary files.
"""

from __future__ import annotations


class ExtractorError(Exception):
    """Root of the extractor's errors."""


class SpecError(ExtractorError):
    """A recipe that cannot work."""


class WeightsError(ExtractorError):
    """Weights that are missing, unreachable or not those of the recipe."""


class DeviceError(ExtractorError):
    """A device or a precision that this machine does not have."""


class Abandoned(ExtractorError):
    """What was being computed is not wanted any more."""


class ImageError(ExtractorError):
    """One image that can never be computed; `str` of it is the reason, without the path."""


class EmptyImageFile(ImageError):
    """A file of zero bytes."""


class NotAnImage(ImageError):
    """Bytes that no image format claims."""


class TruncatedImage(ImageError):
    """An image that is cut off or corrupt."""


class ImageTooLarge(ImageError):
    """More pixels than the limit."""


class ImageChanged(ImageError):
    """Another content than the one that is meant."""


class ImageTooSmall(ImageError):
    """Smaller than a patch where nothing may be padded."""


class DegenerateFeatures(ImageError):
    """Feature vectors that are not finite, too large for a half or of zero length."""


class NoRoom(OSError):
    """A large image's temporary file cannot be made just now."""


def one_line(error: BaseException, most: int = 200) -> str:
    """What an error of anybody's says, in one line of so many characters; its type if nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__
