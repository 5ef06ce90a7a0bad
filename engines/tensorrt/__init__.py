"""TensorRT: plans are built on the device, kept in a cache, proven by the gate, and run with pycuda.

::

    library   finds tensorrt or tensorrt_rtx; the only module that knows how their versions differ
    builder   graph -> plan
    cache     plan <-> disk, and nothing that was not built here
    gate      is the plan as good as its precision promises?
    runtime   plan -> scores, on one GPU thread
    backend   the engine that wires these together; what the rest of the program imports
"""
