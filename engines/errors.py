"""Everything that can go wrong with a bundle or an engine.

::

    EngineError                 catch this one to catch them all
    ├── BundleError             the bundle itself: missing, tampered, truncated, of a newer schema
    ├── BackendError            the back end: not installed, cannot run this graph, failed while running
    │   └── PlanError           a TensorRT plan that must not be loaded, or cannot: build it again
    └── SelfTestError           the engine does not reproduce the outputs stored with the bundle

``ImageError`` (an image file that cannot be read) stands alone: it is about data, not about engines.
"""


class EngineError(Exception):
    """Base of all errors about bundles and engines."""


class BundleError(EngineError):
    """The bundle is missing, incomplete, altered or of a schema this version does not know."""


class BackendError(EngineError):
    """The inference back end is not installed, refuses the graph or failed while running it."""


class PlanError(BackendError):
    """A TensorRT plan was altered or built elsewhere, or TensorRT refuses it; building it again helps."""


class SelfTestError(EngineError):
    """The engine's outputs differ from those stored in the bundle by more than its precision allows."""


class ImageError(Exception):
    """An image file cannot be read, or its size is absurd."""
