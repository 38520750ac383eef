"""The device that networks run on."""

import torch

from hscc_search.errors import ModelError


def choose_device(name: str) -> torch.device:
    """Choose the device for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ModelError: CUDA is asked for and no CUDA device is available.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("no CUDA device is available: use --device cpu or --device auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        # TF32 would make float32 convolutions less precise, and networks are compared by small differences.
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def fast_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 autocast trains faster on a device than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
