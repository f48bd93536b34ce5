"""Prometheus metrics of the frame pipeline."""

from prometheus_client import Counter

FRAMES_DECODED = Counter("pathserve_frames_decoded_total", "Frames of slides decoded by the frame pipeline")
FRAMES_MISSING = Counter("pathserve_frames_missing_total", "Frames absent from the slide and read as background")
FRAME_BYTES = Counter("pathserve_frame_bytes_total", "Encoded bytes of the frames decoded by the frame pipeline")
