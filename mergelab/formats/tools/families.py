"""Base models that a tool treats alike, by their ids."""

UNETS = ("sd15", "sd2", "sdxl")
SD3 = ("sd3", "sd35-medium", "sd35-large")
FLUX2 = ("flux2-dev", "flux2-klein-9b", "flux2-klein-4b")
WAN = ("wan-1.3b", "wan-5b", "wan-14b")
LTX_VIDEO = ("ltx-video", "ltx-video-13b")
