"""Keep the module path that model folders saved by version 0.1 name."""

from embedding.encoders.starter import Centre, ConseTower

__all__ = ["Centre", "ConseTower"]
