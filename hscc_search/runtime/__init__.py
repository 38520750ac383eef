"""Networks in the runtimes that users deploy them to.

``deployed`` puts a network and its normalisation into one module, ``onnx`` writes it as a file and ``rewrites`` saves
copies in that; ``int8`` writes it in 8-bit integers, in the ``ranges`` that it learns from images and ``ties``
changes such that all runtimes round alike. ``latency`` times networks in torch and in ONNX Runtime.
"""
