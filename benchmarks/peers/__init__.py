"""Other programs that do the same, timed beside this one: ``python -m benchmarks.peers``.

::

    environment       where the peers are installed: an environment of their own
    export_models     runs there: writes the peers as OpenVINO models, and runs them in PyTorch when told to
    __main__          runs here: their models and ours in one process, in turns
    patch_by_patch    the authors' own way of scoring, re-created, beside ours
"""
