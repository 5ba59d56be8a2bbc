"""How much GPU memory a vLLM server needs, before it is started and after it failed.

:func:`tools.memory.estimate.estimate` is the one call; everything else serves it. Sizes are bytes inside and GiB
(2**30 bytes) at the borders, per GPU unless a name says otherwise.
"""
