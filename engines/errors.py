"""Everything that can go wrong with a bundle or an engine.

::

    EngineError                 catch this one to catch them all
    ├── BundleError             the bundle itself: missing, tampered, truncated, of a newer schema
    ├── BackendError            the back end: not installed, cannot run this graph, failed while running
    └── SelfTestError           the engine does not reproduce the outputs stored with the bundle

``ImageError`` (an image file that cannot be read) stands alone: it is about data, not about engines.
"""


class EngineError(Exception):
    """Base of all errors about bundles and engines."""


class BundleError(EngineError):
    """The bundle is missing, incomplete, altered or of a schema this version does not know."""


class BackendError(EngineError):
    """The inference back end is not installed, refuses the graph or failed while running it."""


class SelfTestError(EngineError):
    """The engine's outputs differ from those stored in the bundle by more than its precision allows."""


class ImageError(Exception):
    """An image file cannot be read, or its size is absurd."""
