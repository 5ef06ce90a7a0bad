"""OpenVINO: graphs are compiled for this CPU, kept in the cache, proven by the gate, and run in one of two modes.

::

    library   finds OpenVINO, and tells what this CPU computes in
    models    graph -> compiled model, from the cache or new
    backend   the engine: compiled model -> scores; what the rest of the program imports
"""
