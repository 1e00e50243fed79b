"""Move token rows onto the device."""

import numpy as np
import torch

from models.backbone import PackedTokens
from models.layers import to_device
from models.length_group import LengthGroup
from pipeline.rows import TokenRows


def pack(rows: TokenRows, groups: tuple[LengthGroup, ...], padding: int, device: torch.device) -> PackedTokens:
    """Move rows, whose lengths are those of `groups` in order, to the device; `padding` zero ids follow the last row."""
    ids = np.pad(rows.token_ids, (0, padding)).astype(np.int64)
    segments = rows.segments.astype(np.int64)
    return PackedTokens(token_ids=to_device(ids, device), segments=to_device(segments, device), groups=groups)
