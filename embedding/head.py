"""Keep the module path that model folders saved by version 0.1 name."""

from embedding.encoders.head import PictureHead

__all__ = ["PictureHead"]
