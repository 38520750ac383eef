"""Networks in the runtimes that users deploy them to.

``onnx`` writes a network as a file, ``rewrites`` saves copies in it, and ``latency`` times networks in torch and in
ONNX Runtime.
"""
