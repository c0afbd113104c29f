"""Options of the synthetic camera that blurs photographs."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class BlurOptions:
    """What the synthetic camera does. Lengths in pixels of the training crop, shares in 0..1.

    Motion. max_length: longest camera path; length_power: path length is max_length·u^power, u
    uniform, so that larger means more light blur. calm_share: paths that turn and change their
    speed little, as most do in the time that a video's shutter is open; the others are wilder.
    light_share: pairs whose paths are no longer than light_length. sharp_share: pairs without blur,
    which are to come back as they are, noise and coding included: their sharp picture is their
    blurred one. frames_share: exposures made of 7 to 13 shorter ones with gaps, as averaged frames
    are. varying_share: pairs whose path depends on the place: by roll and tilt (degrees), zoom and
    depth (by how much a path is longer at the edge of the crop than at its middle), each at most.
    anchors: transfer functions along each side where that matters much, two where little.
    layer_share: pairs with one to `layers` moving layers; at_rest_share: of these, those whose
    camera, or whose layer, is at rest.

    Light. coded_share: pairs averaged in coded values, as GoPro's `blur` folders are; the others
    have a response curve of a gamma out of `gammas` with an offset up to max_offset (see
    `degrade.Response`; sRGB is gamma 2.4, offset 0.055), half of them under a tone curve out of
    `contrasts`. highlight_share: pairs whose whites are brighter than white by up to
    `highlight` times, and saturate after averaging; lights_share: pairs with points of light.

    Camera. noise_share: pairs with noise, of a standard deviation up to `noise` in coded values at
    mid grey, half of them as coarse as demosaicing leaves it. smear_share: pairs whose fine texture
    is levelled by up to `smear`. sharpen_share: pairs of a camera that sharpens by up to `sharpen`,
    before averaging or after; the sharp picture is sharpened alike. jpeg_share, h264_share: pairs
    that are compressed, at a quality out of jpeg_quality, at a rate factor out of h264_crf.
    """

    max_length: float = 40.0
    length_power: float = 1.3
    calm_share: float = 0.7
    light_share: float = 0.1
    light_length: float = 4.0
    sharp_share: float = 0.12
    frames_share: float = 0.3
    steps: int = 64
    varying_share: float = 0.5
    roll_degrees: float = 1.2
    tilt_degrees: float = 0.4
    zoom: float = 0.02
    depth: float = 0.5
    anchors: int = 3
    layer_share: float = 0.4
    layers: int = 2
    at_rest_share: float = 0.3
    coded_share: float = 0.4
    gammas: tuple[float, float] = (1.8, 2.6)
    max_offset: float = 0.1
    contrasts: tuple[float, float] = (-0.2, 0.6)
    highlight_share: float = 0.2
    highlight: float = 5.0
    lights_share: float = 0.06
    noise_share: float = 0.6
    noise: float = 0.015
    smear_share: float = 0.08
    smear: float = 0.02
    sharpen_share: float = 0.4
    sharpen: float = 0.9
    jpeg_share: float = 0.35
    jpeg_quality: tuple[int, int] = (60, 98)
    h264_share: float = 0.1
    h264_crf: tuple[float, float] = (16.0, 30.0)


#: Nothing but motion: no noise, no curve, no coding, and no sharp pairs.
PURE = BlurOptions(
    light_share=0,
    sharp_share=0,
    frames_share=0,
    varying_share=0,
    layer_share=0,
    coded_share=1,
    highlight_share=0,
    lights_share=0,
    noise_share=0,
    smear_share=0,
    sharpen_share=0,
    jpeg_share=0,
    h264_share=0,
)


def lightly(options: BlurOptions) -> BlurOptions:
    """The same motion before a better camera, in a better file: what a network learns first.

    Much noise and coding hide a blur of a few pixels, and make all pictures alike bad.
    """
    return replace(
        options,
        noise_share=min(options.noise_share, 0.5),
        noise=min(options.noise, 0.008),
        smear_share=0.0,
        sharpen_share=min(options.sharpen_share, 0.25),
        sharpen=min(options.sharpen, 0.6),
        jpeg_share=min(options.jpeg_share, 0.15),
        jpeg_quality=(max(options.jpeg_quality[0], 80), max(options.jpeg_quality[1], 80)),
        h264_share=0.0,
    )
